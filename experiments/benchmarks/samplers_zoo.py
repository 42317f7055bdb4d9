"""Samplers on real merges of the reference zoo: python experiments/benchmarks/samplers_zoo.py.

The four full experts, two coefficients each (first and last layer), the same labelled objectives,
items, seeds and budget for all. Hypervolume of the candidates' search scores, from the reference of
the seed; then what the run ends with on held-out items: hypervolume of the final front and the
mean of its best. Samplers of one loss get equal weights.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from evomerge.config import parse
from evomerge.datatypes import Split
from evomerge.demo.zoo import Zoo, build_zoo
from evomerge.history import History
from evomerge.pareto import hypervolume
from evomerge.search import start

N_ITEMS, N_HELD_OUT = 100, 200
CHECKPOINTS = (16, 30, 60)
SAMPLERS = ("surrogate", "gaussian_process", "tpe", "cma_es", "nsga2", "m2n2", "sobol")
ONE_LOSS = ("cma_es",)


def main() -> None:
    """Run all and print a table of means over seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    given = parser.parse_args()
    zoo = build_zoo()
    found: dict[str, list[list[float]]] = {name: [] for name in given.samplers}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(given.seeds):
            for name in given.samplers:
                history = search(zoo, Path(scratch) / f"{name}-{seed}", name, seed)
                found[name].append(figures(history))
                print(seed, name, [round(x, 4) for x in found[name][-1]], flush=True)
    print_table(found)


def search(zoo: Zoo, run: Path, name: str, seed: int) -> History:
    """One run."""
    sampler: dict[str, object] = {"name": name}
    if name in ONE_LOSS:
        sampler["weights"] = [1.0] * len(zoo.experts)
    config = {
        "base": str(zoo.base),
        "experts": {n: str(path) for n, path in zoo.experts.items()},
        "objectives": [
            {"name": n, "lm_eval": str(zoo.tasks[n]), "items": N_ITEMS, "held_out": N_HELD_OUT}
            for n in zoo.experts
        ],
        "space": {"coefficients": {"map": "depth_spline", "knots": 2, "low": -0.2, "high": 1.0}},
        "sampler": sampler,
        "budget": {"evaluations": max(CHECKPOINTS)},
        "fidelity": "off",
        "workers": {"threads": 1},
        "seed": seed,
    }
    return start(parse(yaml.safe_dump(config), folder=run.parent), run)


def figures(history: History) -> list[float]:
    """Hypervolumes of the first candidates, the front's on held-out items and its best mean."""
    assert history.front is not None
    reference = history.front.reference
    losses = history.losses([t for t in history.scored() if not t.is_baseline])
    volumes = [hypervolume(losses[:n], reference) for n in CHECKPOINTS]
    final = [t for t in history.scored(Split.HELD_OUT) if not t.is_baseline]
    held_out = history.losses(final, Split.HELD_OUT)
    chosen = int(np.argmin(history.losses(final).mean(axis=1)))  # by what the search saw
    return [*volumes, hypervolume(held_out, reference), float(-held_out[chosen].mean())]


def print_table(found: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Means, and the standard error of the difference to the first row over paired seeds."""
    names = [f"hypervolume at {n}" for n in CHECKPOINTS]
    names += ["of the front, held out", "best mean, held out"]
    print(f"| sampler | {' | '.join(names)} |")
    print("|---|" + "---|" * len(names))
    first = np.array(next(iter(found.values())))
    for name, rows in found.items():
        values = np.array(rows)
        errors = (values - first).std(axis=0, ddof=1) / np.sqrt(len(values))
        cells = [f"{m:.4f} ({e:.4f})" for m, e in zip(values.mean(axis=0), errors, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
