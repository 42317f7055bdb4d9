"""Samplers on synthetic pools of experts: python experiments/benchmarks/pools.py [--seeds 20].

A quarter of the experts help by different amounts, an eighth is right with a negative sign, the
others should be left out: loss = log(1 + 4 e'Ae) / 4 of the coefficients' error e, without noise.
Best loss, without any price, mean and standard error over seeds; pools of 20 experts with one
coefficient and of 8 with six each, coefficients within -1.5 and 1.5.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.loading import resolve
from evomerge.samplers import SAMPLERS

LOW, HIGH = -1.5, 1.5
CASES = ((20, 1, 40), (20, 1, 100), (20, 1, 400), (8, 6, 100), (8, 6, 400))
"""Experts, coefficients of each, evaluations."""

RUNS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("genetic", {}),
    ("greedy", {}),
    ("cma_es", {"sigma": 0.05}),
    ("genome", {}),
    ("genome", {"swarm": True}),
    ("model_swarms", {"repulsion": 0.3}),
    ("model_swarms", {}),
    ("lorahub", {}),
    ("evo_merging", {}),
    ("evo_merging", {"denoise": 0}),
)


def main() -> None:
    """Print one row for each sampler."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    n_seeds = parser.parse_args().seeds
    heads = [f"{n} x {per} at {budget}" for n, per, budget in CASES]
    print(f"| sampler | {' | '.join(heads)} |\n|---|{'---|' * len(CASES)}")
    for name, options in RUNS:
        cells = []
        for case in CASES:
            best = np.array([best_of(name, options, seed, *case) for seed in range(n_seeds)])
            cells.append(f"{best.mean():.3f} ({best.std() / np.sqrt(n_seeds):.3f})")
        print(f"| {name} {dict(options) or ''} | {' | '.join(cells)} |", flush=True)


def pool(seed: int, n: int, per: int, budget: int) -> tuple[Problem, Callable[[Candidate], float]]:
    """A pool and its loss."""
    rng = np.random.default_rng([9, seed])
    d = n * per
    origin, step = -LOW / (HIGH - LOW), 1.0 / (HIGH - LOW)
    owners = tuple(i // per for i in range(d))
    wanted, order = np.zeros(n), rng.permutation(n)
    wanted[order[: n // 4]] = rng.uniform(0.15, 0.7, n // 4)
    wanted[order[n // 4 : n // 4 + n // 8]] = -rng.uniform(0.05, 0.3, n // 8)
    w = np.repeat(wanted, per) * (rng.uniform(0.3, 1.0, d) if per > 1 else 1.0)
    B = rng.normal(size=(d, d)) / np.sqrt(d)
    A = np.eye(d) + 0.5 * B @ B.T

    def loss(candidate: Candidate) -> float:
        e = LOW + np.array(candidate.u) * (HIGH - LOW) - w
        return float(np.log1p(4.0 * e @ A @ e / per) / 4.0)

    experts = tuple(tuple(origin + step * (o == k) for o in owners) for k in range(n))
    anchors = tuple((round(origin + step * c, 9),) * d for c in (1.0 / n, 0.4))
    dimensions = tuple(Dimension(f"x{i}") for i in range(d))
    problem = Problem(
        dimensions, 1, anchors, budget, origin=(origin,) * d, experts=experts, owners=owners
    )
    return problem, loss


def best_of(
    name: str, options: Mapping[str, Any], seed: int, n: int, per: int, budget: int
) -> float:
    """The smallest loss of a run."""
    problem, loss = pool(seed, n, per, budget)
    sampler = resolve(SAMPLERS[name])(problem, seed=100 + seed, **options)
    pending: list[Candidate] = []
    found: list[float] = []
    while len(found) < budget:
        candidate = sampler.ask()
        if candidate is None:
            for one in pending:
                sampler.tell(one, [loss(one)])
            pending = []
        else:
            pending.append(candidate)
            found.append(loss(candidate))
    return min(found)


if __name__ == "__main__":
    main()
