"""What a candidate costs beside its forward passes, over a whole search on the zoo.

    python experiments/benchmarks/candidate.py [--items 50 250 500] [--candidates 0] [--tiny]
    python experiments/benchmarks/candidate.py --memory

Runs searches in process, on one thread, with a stopwatch around the calls of the live model's
forward and nothing else. Everything else between one candidate's record and the next one's is
overhead: ask, decode, journal, materialize, the choice of tokens, decoding of generated text,
metrics, spool, tell, front. Wanted: at most 5 % of the forward time. Each figure is the median
over the candidates, so that a burst of other work on the machine counts little; the CPU time of
the same thread, in which waiting for the disk and for other processes does not count, stands
beside. `--memory` prints the resident set of a search over 1,000 candidates.
"""

import argparse
import ctypes
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evomerge.config import Config, parse
from evomerge.demo.zoo import DEFAULT_RECIPE, TINY_RECIPE, build_zoo
from evomerge.history import History
from evomerge.journal import Journal
from evomerge.run_folder import RunFolder
from evomerge.search import Driver
from evomerge.session import Session

_N_ITEMS_IN_ALL = 6000
"""Candidates times items of a task, where no number of candidates is given."""


class Stopwatch:
    """Adds up the wall and the CPU time of a model's forward calls, in seconds."""

    def __init__(self, model: Any) -> None:
        self.wall = self.cpu = 0.0
        self._since = (0.0, 0.0)
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._since = (time.perf_counter(), time.thread_time())

    def _stop(self, *_: Any) -> None:
        self.wall += time.perf_counter() - self._since[0]
        self.cpu += time.thread_time() - self._since[1]


@dataclass(frozen=True, slots=True)
class Mark:
    """The clocks, in seconds, when a trial had been recorded."""

    trial: str
    wall: float
    cpu: float
    forward_wall: float
    forward_cpu: float


def configure(cache: Path, candidates: int, items: int, *, tiny: bool) -> Config:
    """Four experts, four tasks, one thread: enough for models of this size."""
    import yaml

    zoo = build_zoo(None, TINY_RECIPE if tiny else DEFAULT_RECIPE)
    plain = {
        "base": str(zoo.base),
        "experts": {name: str(path) for name, path in zoo.experts.items()},
        "objectives": [
            {"name": name, "lm_eval": str(zoo.tasks[name]), "items": items, "held_out": 10}
            for name in zoo.experts
        ],
        "budget": {"evaluations": candidates},
        "fidelity": "off",  # every candidate answers the same items
        "final": {"front": 0},
        "workers": {"threads": 1},
        "cache": str(cache),  # its own: answers of an earlier benchmark would be taken over
    }
    return parse(yaml.safe_dump(plain), folder=Path.cwd())


def search(
    candidates: int, items: int, *, tiny: bool, each: Callable[[int], None] = lambda _: None
) -> tuple[History, list[Mark]]:
    """Search; `each` gets the number of evaluations after every one of them."""
    marks: list[Mark] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        folder.create()
        config = configure(Path(scratch) / "cache", candidates, items, tiny=tiny)
        with Journal(folder.path) as journal, Session(config, folder) as session:
            watch = Stopwatch(session.executor._worker._live.model)  # type: ignore[attr-defined]

            def mark(history: History) -> None:
                newest = next(reversed(history.trials.values()))  # one at a time, in order
                if newest.search is not None and (not marks or marks[-1].trial != newest.name):
                    clocks = (time.perf_counter(), time.thread_time(), watch.wall, watch.cpu)
                    marks.append(Mark(newest.name, *clocks))
                    each(len(marks))

            journal.append(started := session.started_event())
            history = Driver(session, folder, journal, [started], mark).run()
    return history, marks


def parts(history: History, marks: list[Mark]) -> dict[str, list[float]]:
    """Milliseconds of each part, for every candidate."""
    times: dict[str, list[float]] = {}
    for before, after in itertools.pairwise(marks):
        trial = history.trials[after.trial]
        if trial.is_baseline or history.trials[before.trial].is_baseline or not trial.seconds:
            continue  # baselines prepare operators on the fly; known answers cost no forward
        forward, wall = after.forward_wall - before.forward_wall, after.wall - before.wall
        forward_cpu, cpu = after.forward_cpu - before.forward_cpu, after.cpu - before.cpu
        materialize, respond = trial.seconds["materialize"], trial.seconds["respond"]
        for name, seconds in {
            "forward passes": forward,
            "materialize": materialize,
            "respond, forwards apart": respond - forward,
            "driver: ask, journal, spool, tell, front": wall - materialize - respond,
            "overhead": wall - forward,
            "forward passes, CPU": forward_cpu,
            "overhead, CPU": cpu - forward_cpu,
        }.items():
            times.setdefault(name, []).append(1000 * seconds)
    return times


def overheads(sizes: list[int], candidates: int, *, tiny: bool) -> Table:
    """One search for each number of items."""
    table = Table("part", title="one candidate: 4 tasks, in process, one thread; medians")
    columns = []
    for items in sizes:
        n = candidates or max(12, _N_ITEMS_IN_ALL // items)
        history, marks = search(n, items, tiny=tiny)
        columns.append(parts(history, marks))
        table.add_column(f"{items} items, ms", justify="right")
        table.add_column("of forward", justify="right")
    for name in columns[0]:
        cells = []
        for times in columns:
            against = times["forward passes, CPU" if name.endswith("CPU") else "forward passes"]
            shares = [a / b for a, b in zip(times[name], against, strict=True)]
            cells += [
                f"{statistics.median(times[name]):.2f}",
                f"{100 * statistics.median(shares):.1f} %",
            ]
        table.add_row(name, *cells, style="bold" if name.startswith("overhead") else None)
    table.caption = f"candidates: {', '.join(str(len(c['overhead'])) for c in columns)}"
    return table


def memory(candidates: int, items: int, *, tiny: bool) -> Table:
    """The resident set every hundred candidates.

    Free pages that the allocator holds back count as resident; after the first hundred and at the
    end they are given back, and what is then resident stands in a column of its own.
    """
    table = Table("evaluations", title=f"resident set of a search, 4 tasks x {items} items")
    for heading in ("MB", "of the first", "MB, free pages given back", "of the first"):
        table.add_column(heading, justify="right")
    held: list[float] = []
    used: list[float] = []

    def note(n: int) -> None:
        if n % 100:
            return
        held.append(resident_megabytes())
        cells = [str(n), f"{held[-1]:.1f}", f"{100 * held[-1] / held[0]:.2f} %"]
        if n == 100 or n > candidates - 100:
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            used.append(resident_megabytes())
            cells += [f"{used[-1]:.1f}", f"{100 * used[-1] / used[0]:.2f} %"]
        table.add_row(*cells)

    search(candidates, items, tiny=tiny, each=note)
    return table


def resident_megabytes() -> float:
    """Of this process, now (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS: this needs Linux")


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", help="per task; 50 250 500, memory: 5")
    parser.add_argument("--candidates", type=int, default=0, help="0: fewer for more items")
    parser.add_argument("--memory", action="store_true", help="1,000 candidates, resident set")
    parser.add_argument("--tiny", action="store_true", help="the tiny zoo instead of the zoo")
    given = parser.parse_args()
    if given.memory:
        table = memory(given.candidates or 1000, (given.items or [5])[0], tiny=given.tiny)
    else:
        table = overheads(given.items or [50, 250, 500], given.candidates, tiny=given.tiny)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
