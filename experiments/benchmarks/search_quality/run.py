"""Run samplers on the problems of the bench, one JSON line for each sampler, problem and seed.

    python experiments/benchmarks/search_quality/run.py --samplers surrogate tpe \
        --problems well_specified-24-3 --seeds 10 --budget 100

What is in the results already is not run again; seeds are the outer loop, so that a part of a run
is balanced. Seed k is instance k of a family, noise k and sampler seed k for every sampler.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
from problems import surface_of
from problems.surface import hypervolume, problem_of

from evomerge.datatypes import FloatArray
from evomerge.loading import resolve
from evomerge.samplers import SAMPLERS

HERE = Path(__file__).parent
AT = tuple(range(10, 151, 10))
SINGLE = ("cma_es", "genetic", "genome", "model_swarms", "lorahub", "evo_merging", "greedy")
"""Samplers of one loss: they get the mean of the objectives."""


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samplers", nargs="+", required=True)
    parser.add_argument("--problems", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    given.results.mkdir(exist_ok=True)
    for seed in range(given.first_seed, given.seeds):
        for problem in given.problems:
            for sampler in given.samplers:
                path = given.results / f"{sampler}.jsonl"
                if not is_known(path, problem, seed, given.budget):
                    record = run(sampler, problem, seed, given.budget)
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
                    print(sampler, problem, seed, record["hypervolume"][-1], flush=True)


def is_known(path: Path, problem: str, seed: int, budget: int) -> bool:
    """Whether a result of that budget at least is there."""
    if not path.exists():
        return False
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return any(
        (line["problem"], line["seed"]) == (problem, seed) and line["budget"] >= budget
        for line in lines
    )


def run(name: str, problem_name: str, seed: int, budget: int) -> dict[str, object]:
    """Evaluate one candidate after the other; the true hypervolume of all that were asked."""
    surface = surface_of(problem_name, seed)
    problem = problem_of(surface, budget)
    options: dict[str, object] = {}
    if name in SINGLE and problem.n_objectives > 1:
        options["weights"] = [1.0] * problem.n_objectives
    sampler = resolve(SAMPLERS[name])(problem, seed=seed, **options)
    noise = np.random.default_rng(5000 + seed)
    points: list[FloatArray] = []
    seconds: list[float] = []
    while len(points) < budget:
        start = time.perf_counter()
        candidate = sampler.ask()
        spent = time.perf_counter() - start
        if candidate is None:
            raise RuntimeError(f"{name} waits, though nothing is pending")
        points.append(np.array(candidate.u))
        losses, evidence = surface.observe(surface.truth(points[-1][None])[0], noise)
        start = time.perf_counter()
        sampler.tell(candidate, tuple(losses.tolist()), evidence)
        seconds.append(spent + time.perf_counter() - start)
    known = np.array(points)
    return {
        "sampler": name,
        "problem": problem_name,
        "seed": seed,
        "budget": budget,
        "evaluations": [n for n in AT if n <= budget],
        "hypervolume": [round(hypervolume(surface, known[:n]), 6) for n in AT if n <= budget],
        "seconds": round(sum(seconds), 2),
        "median_milliseconds": round(1000 * statistics.median(seconds), 2),
        "load": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main()
