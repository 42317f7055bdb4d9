"""What a candidate costs beside its forward passes, over a whole search on the zoo.

    python experiments/benchmarks/candidate.py [--evaluations 200] [--items 50]

Runs a search in process with a stopwatch around the live model's forward passes. Everything else
between the first and the last candidate (ask, decode, journal, materialize, metrics, decoding of
generated text, spool, tell, front) is overhead. Wanted: at most 5 % of the forward time.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evomerge.config import Config, parse
from evomerge.demo.zoo import build_zoo
from evomerge.history import History
from evomerge.journal import Journal
from evomerge.run_folder import RunFolder
from evomerge.search import Driver
from evomerge.session import Session


class Stopwatch:
    """Adds up the wall time of a model's forward calls."""

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        self._since = 0.0
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._since


def configure(evaluations: int, items: int) -> Config:
    """Four experts, four tasks, one thread: enough for models of this size."""
    import yaml

    zoo = build_zoo()
    plain = {
        "base": str(zoo.base),
        "experts": {name: str(path) for name, path in zoo.experts.items()},
        "objectives": [
            {
                "name": name,
                "lm_eval": str(zoo.tasks[name]),
                "items": items,
                "held_out": items,
            }
            for name in zoo.experts
        ],
        "budget": {"evaluations": evaluations},
        "final": {"front": 0},
        "workers": {"threads": 1},
    }
    return parse(yaml.safe_dump(plain), folder=Path.cwd())


def main() -> None:
    """Run, print a table and the ratio."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--evaluations", type=int, default=200)
    arguments.add_argument("--items", type=int, default=50)
    given = arguments.parse_args()
    config = configure(given.evaluations, given.items)
    marks: list[tuple[float, float]] = []

    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        folder.create()
        with Journal(folder.path) as journal, Session(config, folder) as session:
            watch = Stopwatch(session.executor._worker._model)  # type: ignore[attr-defined]

            def mark(history: History) -> None:
                if history.n_evaluations > len(marks):
                    marks.append((time.perf_counter(), watch.seconds))

            journal.append(session.started_event())
            history = Driver(session, folder, journal, mark).run()

    first = history.started.n_baselines - 1  # baselines prepare their operators on the fly
    last = history.n_planned - 1
    n = last - first
    wall = marks[last][0] - marks[first][0]
    forward = marks[last][1] - marks[first][1]
    materialize = sum(
        trial.seconds.get("materialize", 0.0)
        for trial in history.trials.values()
        if not trial.is_baseline
    )
    table = Table(title=f"{n} candidates, 4 tasks x {given.items} items, in process")
    table.add_column("part")
    table.add_column("ms per candidate", justify="right")
    table.add_column("of forward", justify="right")
    rows = {
        "forward passes": forward,
        "materialize": materialize,
        "other overhead": wall - forward - materialize,
        "overhead (wanted: at most 5 %)": wall - forward,
    }
    for name, seconds in rows.items():
        table.add_row(name, f"{1000 * seconds / n:.2f}", f"{100 * seconds / forward:.1f} %")
    Console().print(table)


if __name__ == "__main__":
    main()
