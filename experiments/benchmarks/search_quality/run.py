"""Run samplers on the problems of the bench, one JSON line for each sampler, problem and seed.

    python experiments/benchmarks/search_quality/run.py --samplers surrogate tpe \
        --problems well_specified-24-3 --seeds 10 --budget 100

What is in the results already is not run again; seeds are the outer loop, so that a part of a run
is balanced. Seed k is instance k of a family, noise k and sampler seed k for every sampler.
`cma_es_weights` is one CMA-ES per objective and one for all, in turns.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from problems import surface_of
from problems.surface import hypervolume, problem_of

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.loading import resolve
from evomerge.protocols import Sampler
from evomerge.samplers import SAMPLERS

HERE = Path(__file__).parent
AT = tuple(range(10, 151, 10))
SINGLE = ("cma_es", "genetic", "genome", "model_swarms", "lorahub", "evo_merging", "greedy")
"""Samplers of one loss: they get the mean of the objectives."""

SEVERAL = "cma_es_weights"
EMPHASIS = 3.0
"""What `cma_es_weights` multiplies the weight of one objective by."""

Task = tuple[str, str, int, int]
"""Sampler, problem, seed, budget."""


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samplers", nargs="+", required=True)
    parser.add_argument("--problems", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    given.results.mkdir(exist_ok=True)
    tasks = [
        (sampler, problem, seed, given.budget)
        for seed in range(given.first_seed, given.seeds)
        for problem in given.problems
        for sampler in given.samplers
        if not is_known(given.results / f"{sampler}.jsonl", problem, seed, given.budget)
    ]
    for record in records_of(tasks, given.jobs):
        if "refused" in record:
            print(record["sampler"], record["problem"], record["refused"], flush=True)
            continue
        path = given.results / f"{record['sampler']}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        last = record["hypervolume"][-1]
        print(record["sampler"], record["problem"], record["seed"], last, flush=True)


def is_known(path: Path, problem: str, seed: int, budget: int) -> bool:
    """Whether a result of that budget at least is there."""
    if not path.exists():
        return False
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return any(
        (line["problem"], line["seed"]) == (problem, seed) and line["budget"] >= budget
        for line in lines
    )


def records_of(tasks: list[Task], n_jobs: int) -> Iterator[dict[str, Any]]:
    """In the tasks' order; a worker process each where several may run at once."""
    if n_jobs == 1:
        yield from map(run, tasks)
    else:
        with ProcessPoolExecutor(n_jobs, mp_context=get_context("spawn")) as pool:
            yield from pool.map(run, tasks)


def run(task: Task) -> dict[str, Any]:
    """Evaluate one candidate after the other; the true hypervolume of all that were asked."""
    name, problem_name, seed, budget = task
    surface = surface_of(problem_name, seed)
    try:
        samplers = built(name, problem_of(surface, budget), seed)
    except ConfigError as error:
        return {"sampler": name, "problem": problem_name, "refused": str(error)}
    noise = np.random.default_rng(5000 + seed)
    points: list[FloatArray] = []
    seconds: list[float] = []
    for sampler in cycle(samplers):
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
        if len(points) == budget:
            break
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


def built(name: str, problem: Problem, seed: int) -> list[Sampler]:
    """The samplers that take turns: nearly always one.

    Raises:
        ConfigError: the sampler does not promise such a problem.
    """
    m = problem.n_objectives
    if name == SEVERAL:
        share = replace(problem, budget=problem.budget // (m + 1))
        weights = 1.0 + (EMPHASIS - 1.0) * np.vstack([np.zeros(m), np.eye(m)])
        seeds = np.random.SeedSequence(seed).generate_state(m + 1).tolist()
        return [
            resolve(SAMPLERS["cma_es"])(share, seed=one, weights=row.tolist())
            for one, row in zip(seeds, weights, strict=True)
        ]
    options = {"weights": [1.0] * m} if name in SINGLE and m > 1 else {}
    return [resolve(SAMPLERS[name])(problem, seed=seed, **options)]


if __name__ == "__main__":
    main()
