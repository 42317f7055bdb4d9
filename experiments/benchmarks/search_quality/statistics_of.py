"""From records to numbers: paired over seeds, intervals by Student's t."""

import json
import sys
from pathlib import Path

import numpy as np
from problems.known import best_known, key_of

from evomerge.datatypes import FloatArray

Curves = dict[tuple[str, str], dict[int, FloatArray]]
"""`(problem, sampler)` -> seed -> `(n,)` relative hypervolumes at 10, 20, .. evaluations."""

STEP = 10


def curves_of(folder: Path) -> Curves:
    """All records of a folder, divided by the best known; the longest of a seed counts."""
    known = best_known()
    curves: Curves = {}
    lacking: set[str] = set()
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            best = known.get(key_of(record["problem"], record["seed"]))
            if best is None:
                lacking.add(record["problem"])
                continue
            curve = np.array(record["hypervolume"]) / best
            seeds = curves.setdefault((record["problem"], record["sampler"]), {})
            if record["seed"] not in seeds or len(curve) > len(seeds[record["seed"]]):
                seeds[record["seed"]] = curve
    if lacking:
        print(
            f"results count relative to the best known, which seeds of {', '.join(sorted(lacking))}"
            " lack and are left out: run best_known.py on these problems",
            file=sys.stderr,
        )
    return curves


def at(seeds: dict[int, FloatArray], n: int) -> dict[int, float]:
    """The values after n evaluations, of the seeds that have so many."""
    i = n // STEP - 1
    return {seed: float(curve[i]) for seed, curve in seeds.items() if len(curve) > i}


def interval(values: FloatArray) -> float:
    """Half the width of the 95 % confidence interval of the mean; NaN of fewer than two."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return float("nan")
    return float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))


def difference(ours: dict[int, float], other: dict[int, float]) -> FloatArray:
    """Ours minus the other on the seeds that both have."""
    return np.array([ours[seed] - other[seed] for seed in sorted(ours.keys() & other.keys())])


def reached(seeds: dict[int, FloatArray], level: float) -> float:
    """Evaluations at which the mean curve passes a level, straight between tens; inf if never."""
    shortest = min(map(len, seeds.values()))
    mean = np.mean([curve[:shortest] for curve in seeds.values()], axis=0)
    if mean.max() < level:
        return float("inf")
    i = int(np.argmax(mean >= level))
    if i == 0:
        return float(STEP)
    return float(STEP * (i + (level - mean[i - 1]) / (mean[i] - mean[i - 1])))
