"""How long samplers take to ask and to learn, with a history of 300 trials in 64 dimensions.

    python experiments/benchmarks/ask_latency.py [SAMPLER...]

Three objectives (weights where a sampler takes one loss), binomial accuracies of 500 items. The
history is sobol points told to the sampler: those of history-based samplers are readmitted, others
ask for their own. Medians and largest of 15 rounds of ask, tell and a journal line on disk.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "search_quality"))
from problems.merge_like import MergeLike
from problems.surface import problem_of

from evomerge.datatypes import Candidate
from evomerge.errors import ConfigError
from evomerge.journal import Journal
from evomerge.loading import resolve
from evomerge.samplers import SAMPLERS

N_TOLD, N_TIMED, D, M = 300, 15, 64, 3


def main(names: list[str]) -> None:
    """Print one row for each sampler."""
    surface = MergeLike("well_specified", D, M, 0)
    problem = problem_of(surface, N_TOLD + N_TIMED)
    print(f"{'sampler':<18} {'median ms':>10} {'largest ms':>10}   (load {os.getloadavg()[0]:.1f})")
    for name in names:
        factory, options = resolve(SAMPLERS[name]), {}
        try:
            sampler = factory(problem, seed=0)
        except ConfigError:
            options = {"weights": [1.0] * M}
            try:
                sampler = factory(problem, seed=0, **options)
            except ConfigError as refused:
                print(f"{name:<18} {refused}")
                continue
        seconds = rounds(sampler, surface)
        print(
            f"{name:<18} {1000 * statistics.median(seconds):>10.1f} {1000 * max(seconds):>10.1f}",
            flush=True,
        )


def rounds(sampler: Any, surface: MergeLike) -> list[float]:
    """Seconds of each timed round."""
    rng = np.random.default_rng(0)
    points = np.clip(rng.normal(0.5, 0.2, (N_TOLD, D)), 0.0, 1.0).round(9)
    for i in range(N_TOLD):
        if hasattr(sampler, "readmit"):
            candidate = Candidate(i, 0, tuple(points[i].tolist()))
            sampler.readmit(candidate)
        else:
            candidate = sampler.ask()
        answer(sampler, candidate, surface, rng)
    seconds = []
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        for _ in range(N_TIMED):
            start = time.perf_counter()
            candidate = sampler.ask()
            spent = time.perf_counter() - start
            losses, evidence = surface.observe(surface.truth(np.array([candidate.u]))[0], rng)
            start = time.perf_counter()
            told = {"event": "told", "trial": str(candidate.id), "losses": losses.tolist()}
            journal.append(told, durable=True)
            sampler.tell(candidate, tuple(losses.tolist()), evidence)
            seconds.append(spent + time.perf_counter() - start)
    return seconds


def answer(
    sampler: Any, candidate: Candidate, surface: MergeLike, rng: np.random.Generator
) -> None:
    """Tell what an evaluation would."""
    losses, evidence = surface.observe(surface.truth(np.array([candidate.u]))[0], rng)
    sampler.tell(candidate, tuple(losses.tolist()), evidence)


if __name__ == "__main__":
    main(sys.argv[1:] or sorted(SAMPLERS))
