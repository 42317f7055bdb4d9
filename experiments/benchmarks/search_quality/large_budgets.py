"""Evolutions at a budget of 1,000: which of them `auto` should take where models are too slow.

    python experiments/benchmarks/search_quality/large_budgets.py [--seeds 3]

True hypervolume at 400 and 1,000 evaluations, mean and standard error over seeds, in markdown.
"""

import argparse

import numpy as np
from problems import surface_of
from problems.surface import hypervolume, problem_of
from run import built

from evomerge.pareto import non_dominated

BUDGET, AT = 1000, (400, 1000)
SAMPLERS = ("m2n2", "cycle_qd", "moead", "nsga2", "nsga3", "genetic", "cma_es")
PROBLEMS = (
    "well_specified-24-3",
    "rugged-24-3",
    "rugged-8-3",
    "cliff-8-3",
    "well_specified-64-3",
    "well_specified-24-2",
    "well_specified-8-6",
    "rugged-24-6",
)


def main() -> None:
    """Print one row for each problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", nargs="+", default=PROBLEMS)
    given = parser.parse_args()
    print(f"| problem | {' | '.join(SAMPLERS)} |\n|---|{'---|' * len(SAMPLERS)}")
    for problem in given.problems:
        cells = []
        for sampler in SAMPLERS:
            values = np.array([volumes(sampler, problem, seed) for seed in range(given.seeds)])
            errors = values.std(axis=0) / np.sqrt(given.seeds)
            pairs = zip(values.mean(axis=0), errors, strict=True)
            cells.append(" / ".join(f"{mean:.3f} ({error:.3f})" for mean, error in pairs))
        print(f"| {problem} | {' | '.join(cells)} |", flush=True)


def volumes(name: str, problem: str, seed: int) -> list[float]:
    """Of one run."""
    surface, noise = surface_of(problem, seed), np.random.default_rng(seed)
    (sampler,) = built(name, problem_of(surface, BUDGET), seed)
    points = []
    for _ in range(BUDGET):
        candidate = sampler.ask()
        assert candidate is not None  # nothing is pending
        points.append(candidate.u)
        losses, evidence = surface.observe(surface.truth(np.array([candidate.u]))[0], noise)
        sampler.tell(candidate, tuple(losses.tolist()), evidence)
    known = np.array(points)
    best = [known[:n][non_dominated(surface.truth(known[:n]))] for n in AT]
    return [hypervolume(surface, rows) for rows in best]


if __name__ == "__main__":
    main()
