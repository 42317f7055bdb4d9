"""Runs of tests in processes of their own, so that they can be killed for real."""

import multiprocessing
import os
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_PRELOADED = ["torch", "transformers", "peft", "lm_eval", "evomerge.search", "evomerge.evaluation"]


def drive(config: str | None, run: str) -> None:
    """Search, or resume where there is something to resume. Top level: it crosses processes."""
    from evomerge.config import read_config
    from evomerge.run_folder import RunFolder
    from evomerge.search import resume, start

    if RunFolder(Path(run)).has_started:
        resume(Path(run))
    else:
        assert config is not None
        start(read_config(Path(config)), Path(run))


def spawn(config: Path, run: Path) -> ForkServerProcess:
    """A driver in a new process; imports are shared by a server, so that it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=drive, args=(str(config), str(run)))
    process.start()
    return process


def kill_when_journal_reaches(
    process: ForkServerProcess, journal: Path, n_bytes: int, pause_seconds: float = 0.0
) -> bool:
    """SIGKILL a driver once its journal is that long; whether it was still alive then."""
    while process.is_alive():
        if journal.exists() and journal.stat().st_size >= n_bytes:
            time.sleep(pause_seconds)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return process.exitcode == -signal.SIGKILL
        time.sleep(0.0005)
    return False


def comparable(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what may differ between two runs: times, and notes of being resumed."""
    return [
        {key: value for key, value in event.items() if key not in ("time", "seconds")}
        for event in events
        if event["event"] != "note"
    ]
