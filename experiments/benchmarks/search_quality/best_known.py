"""The best known hypervolume of each problem, by which results are divided.

    python experiments/benchmarks/search_quality/best_known.py well_specified-24-3 rugged-24-3

NSGA-II without noise, 200 individuals, 400 generations, seed 1; kept in `best_known.json`.
"""

import argparse
import json
import os

import numpy as np
from problems import surface_of
from problems.known import PATH, best_known, key_of
from problems.surface import Surface, hypervolume
from problems.t0 import BEST_KNOWN as T0_BEST


def main() -> None:
    """Compute what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="+")
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    for seed in range(given.seeds):
        for name in given.problems:
            key = key_of(name, seed)
            if key not in best_known():
                surface = surface_of(name, seed)
                value = T0_BEST if name.startswith("t0") else best_of(surface)
                known = best_known() | {key: round(value, 6)}
                text = json.dumps(dict(sorted(known.items())), indent=1) + "\n"
                partial = PATH.with_suffix(f".{os.getpid()}.partial")
                partial.write_text(text, encoding="utf-8")
                partial.replace(PATH)
                print(key, known[key], flush=True)


def best_of(surface: Surface, population: int = 200, generations: int = 400) -> float:
    """The hypervolume of the last population; of a dense grid in one dimension."""
    if surface.n_dimensions == 1:
        return hypervolume(surface, np.linspace(0.0, 1.0, 1001)[:, None])
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem as PymooProblem
    from pymoo.optimize import minimize

    class Wrapped(PymooProblem):  # type: ignore[misc]  # pymoo ships no types
        def _evaluate(self, x, out, *_args, **_kwargs) -> None:  # type: ignore[no-untyped-def]
            out["F"] = surface.truth(x)

    problem = Wrapped(n_var=surface.n_dimensions, n_obj=len(surface.reference), xl=0.0, xu=1.0)
    result = minimize(problem, NSGA2(pop_size=population), ("n_gen", generations), seed=1)
    return hypervolume(surface, np.atleast_2d(result.X))


if __name__ == "__main__":
    main()
