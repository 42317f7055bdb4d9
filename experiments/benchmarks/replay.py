"""How long a run of 10,000 trials takes to resume, for every sampler, at 64 dimensions.

    python experiments/benchmarks/replay.py [SAMPLER...] [--trials 10000]

The driver writes a real journal: 4 experts x 16 layers, three objectives of 500 items each (weights
where a sampler takes one loss), no models: a simulated worker draws right and wrong answers with
the accuracies of MergeLike. Then the run is resumed in the same process, without evaluations, and
timed, in seconds of CPU time, so that other work on the machine counts little:

- `read`: opening the journal, checksums included;
- `sampler`: its asks (or readmissions) and tells;
- `driver`: the rest of the replay: history, points decoded and verified, evidence made;
- `resume`: all of it, and `wall` in wall time.

In the end a replayed sampler must propose what the one that was never interrupted does. What a
session loads besides (models, items) is not in it. Samplers that readmit their candidates are given
the journal of sobol: they take any, and asking them 10,000 times would take hours. `write` is the
whole run in wall time, the disk and the simulated worker included; TMPDIR names the disk.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "search_quality"))
from problems.merge_like import MergeLike

from evomerge.baselines import baselines
from evomerge.config import Config, parse
from evomerge.datatypes import (
    Evaluation,
    Group,
    ItemFacts,
    Job,
    Objective,
    Problem,
    Split,
    WorkerFacts,
)
from evomerge.errors import ConfigError
from evomerge.journal import Journal
from evomerge.loading import resolve
from evomerge.projection import landmarks
from evomerge.run_folder import RunFolder
from evomerge.samplers import SAMPLERS
from evomerge.scoring import Scoring
from evomerge.search import Driver
from evomerge.session import Session, bind_space, estimators_of

EXPERTS, LAYERS, ITEMS = 4, 16, 500
OBJECTIVES = ("first", "second", "third")


class SimulatedWorker:
    """Answers without a model: right with a probability that the coefficients decide."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        self._surface = MergeLike("well_specified", EXPERTS * LAYERS, len(OBJECTIVES), 0)
        self._queue: deque[Job] = deque()
        self.facts = WorkerFacts(
            model_digests={"base": "0"},
            groups=groups,
            objectives=tuple(Objective(name) for name in OBJECTIVES),
            items=tuple(
                ItemFacts((name,), split, tuple(f"{name} {i}" for i in range(n)))
                for name in OBJECTIVES
                for split, n in ((Split.SEARCH, ITEMS), (Split.HELD_OUT, 0))
            ),
            model_bytes=0,
        )

    @property
    def n_free(self) -> int:
        """One job at a time."""
        return 0 if self._queue else 1

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def next_done(self, timeout_seconds: float | None = None) -> Evaluation | None:  # noqa: ARG002 - it answers at once
        """Answer the next job; None when there is none."""
        if not self._queue:
            return None
        job = self._queue.popleft()
        point = np.clip(job.recipe.matrix().reshape(1, -1), 0.0, 1.0)
        accuracies = -self._surface.truth(point)[0]
        rng = np.random.default_rng([0, crc32(job.key.encode())])
        right = rng.random((len(OBJECTIVES), ITEMS)) < accuracies[:, None]
        responses = {
            name: tuple(row) for name, row in zip(OBJECTIVES, right.astype(float), strict=True)
        }
        return Evaluation(job.key, responses, {"total": 0.0})

    def close(self) -> None:
        """Nothing is held."""


class SimulatedSession(Session):
    """A session whose models, tasks and workers are the simulated worker."""

    def __init__(self, name: str, n_trials: int) -> None:
        groups = tuple(Group(i, "all", i / (LAYERS - 1), 1000) for i in range(LAYERS))
        self.config = configuration(n_trials)
        self.cache = ""
        self.space = bind_space(self.config, groups)
        self.baselines = baselines(
            tuple(self.config.experts),
            tuple(group.label for group in groups),
            scales=self.config.baselines.scales,
            seed=self.config.seed,
        )
        there = landmarks(self.space, groups)
        self.problem = Problem(
            dimensions=self.space.dimensions,
            n_objectives=len(OBJECTIVES),
            anchors=self.space.anchors,
            budget=n_trials,
            names=OBJECTIVES,
            origin=there.origin,
            experts=there.experts,
            owners=there.owners,
            depths=there.depths,
        )
        self.sampler_target, self.sampler_reason = SAMPLERS[name], "asked for"
        self.sampler = sampler_of(name, self.problem)
        self.weights = None
        self.executor = SimulatedWorker(groups)
        self.objectives = self.executor.facts.objectives
        facts = self.executor.facts
        self.scoring = Scoring(
            self.objectives,
            estimators_of(self.config, "ranking", facts),
            estimators_of(self.config, "reporting", facts),
        )
        self.schedule, self.schedule_reason = None, "asked for"


def configuration(n_trials: int) -> Config:
    """A coefficient between 0 and 1 for each expert in each layer."""
    import yaml

    plain = {
        "base": "/base",
        "experts": {f"expert{k}": f"/expert{k}" for k in range(EXPERTS)},
        "space": {"coefficients": {"map": "per_layer", "low": 0.0, "high": 1.0}},
        "objectives": [{"name": name, "lm_eval": name, "items": ITEMS} for name in OBJECTIVES],
        "budget": {"evaluations": n_trials},
        "fidelity": "off",
        "final": {"front": 0},
        "reuse_evaluations": False,
    }
    return parse(yaml.safe_dump(plain), folder=Path("/"))


def sampler_of(name: str, problem: Problem) -> Any:
    """A sampler with its default options, weights where it takes one loss."""
    factory = resolve(SAMPLERS[name])
    try:
        return factory(problem, seed=0)
    except ConfigError:
        return factory(problem, seed=0, weights=[1.0] * problem.n_objectives)


class Stopwatch:
    """Adds up the seconds of CPU time within a sampler's calls."""

    def __init__(self, sampler: Any) -> None:
        self.seconds = 0.0
        for name in ("ask", "readmit", "tell"):
            if hasattr(sampler, name):
                setattr(sampler, name, self._timed(getattr(sampler, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.process_time()
            result = call(*arguments)
            self.seconds += time.process_time() - start
            return result

        return timed


@dataclass(frozen=True, slots=True)
class Resume:
    """Seconds of CPU time of each part, and of wall time of all."""

    read: float
    sampler: float
    driver: float
    wall: float

    @property
    def total(self) -> float:
        """CPU time of all."""
        return self.read + self.sampler + self.driver


def write(name: str, n_trials: int, folder: RunFolder) -> Any:
    """Search to the end of the budget; the point that the sampler would propose next."""
    folder.create()
    session = SimulatedSession(name, n_trials)
    with Journal(folder.path) as journal:
        journal.append(started := session.started_event())
        Driver(session, folder, journal, [started]).run()
    return session.sampler.ask()


def resume(name: str, n_trials: int, folder: RunFolder) -> tuple[Resume, Any]:
    """Replay the journal as a resume does, and what the sampler proposes next."""
    session = SimulatedSession(name, n_trials)
    watch = Stopwatch(session.sampler)
    wall, start = time.perf_counter(), time.process_time()
    with Journal(folder.path) as journal:
        read = time.process_time() - start
        Driver(session, folder, journal, journal.events)
        replayed = time.process_time() - start - read
    wall = time.perf_counter() - wall
    times = Resume(read, watch.seconds, replayed - watch.seconds, wall)
    is_readmitted = hasattr(session.sampler, "readmit")  # to ask it could take minutes
    return times, None if is_readmitted else session.sampler.ask()


def main() -> None:
    """Print one row for each sampler."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("samplers", nargs="*", help="by short name; all if left out")
    parser.add_argument("--trials", type=int, default=10_000, help="candidates of the run")
    given = parser.parse_args()
    columns = ("write", "MB", "read", "sampler", "driver", "resume", "wall")
    heading = "".join(f"{column:>9}" for column in columns)
    print(f"{'sampler':<18}{heading}   (seconds; load {os.getloadavg()[0]:.1f})")
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.samplers or sorted(SAMPLERS):
            try:
                sampler = SimulatedSession(name, given.trials).sampler
            except ConfigError as refused:
                print(f"{name:<18} {refused}")
                continue
            is_readmitted = hasattr(sampler, "readmit")
            written = "sobol" if is_readmitted else name
            folder = RunFolder(Path(scratch) / written)
            start, following, seconds = time.perf_counter(), None, "-"
            if not folder.has_started:
                following = write(written, given.trials, folder)
                seconds = f"{time.perf_counter() - start:.1f}"
            times, proposed = resume(name, given.trials, folder)
            if not is_readmitted and following is not None and proposed != following:
                raise SystemExit(f"{name} proposes something else after its replay")
            print(
                f"{name:<18}{seconds:>9}{folder.journal.stat().st_size / 1e6:>9.1f}"
                f"{times.read:>9.2f}{times.sampler:>9.2f}{times.driver:>9.2f}"
                f"{times.total:>9.2f}{times.wall:>9.2f}"
                + (f"   readmitted, journal of {written}" if is_readmitted else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
