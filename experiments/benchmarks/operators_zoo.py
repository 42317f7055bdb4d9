"""Every operator at its paper's defaults and searched with 60 evaluations, on the reference zoo.

    python experiments/benchmarks/operators_zoo.py [--evaluations 60] [--items 100] [--only ties]

The four full experts of the zoo; score is the mean of their four tasks. An operator's default is
one point: its usual coefficient for all experts and groups, its knobs at their defaults. Searched
is a line over depth for each expert (8 coordinates) and the knobs that are genes, by CMA-ES from
that point, on `--items` search items per task; the best mean on search items is then scored on the
500 held-out items per task, which no search has seen, as is the default. Standard errors are those
of the held-out items (both columns answer the same ones; the gain's is that of the difference).
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console

from evomerge import loading
from evomerge.config import parse
from evomerge.datatypes import Job, Problem, Recipe, Split
from evomerge.demo.zoo import build_zoo
from evomerge.evaluation import Worker, worker_setup
from evomerge.samplers import SAMPLERS

AVERAGE, SUM, WHOLE = 0.25, 0.4, 1.0
DENSITY = {"density": {"low": 0.05, "high": 1.0}}
EPSILON = {"epsilon": {"low": 0.0, "high": 0.3}}

# Operator: the default coefficient of all experts, and the genes. Coefficients are searched from 0
# (a little below) to three times the default.
PLANS: dict[str, tuple[float, Mapping[str, object]]] = {
    "task_arithmetic": (SUM, {}),
    "model_stock": (WHOLE, {"blend": {"low": 0.0, "high": 1.0}}),
    "karcher": (AVERAGE, {}),
    "multislerp": (AVERAGE, {}),
    "ties": (WHOLE, DENSITY),
    "ties_exact": (WHOLE, DENSITY),
    "dare": (SUM, {"drop_rate": {"low": 0.1, "high": 0.95}}),
    "dare_ties": (WHOLE, {"drop_rate": {"low": 0.1, "high": 0.95}}),
    "dare_ties_exact": (SUM, {"drop_rate": {"low": 0.1, "high": 0.95}}),
    "della_linear": (SUM, {**DENSITY, **EPSILON}),
    "della": (WHOLE, {**DENSITY, **EPSILON}),
    "della_exact": (WHOLE, {**DENSITY, **EPSILON}),
    "breadcrumbs": (SUM, {**DENSITY, "gamma": {"low": 0.0, "high": 0.1}}),
    "breadcrumbs_ties": (SUM, {**DENSITY, "gamma": {"low": 0.0, "high": 0.1}}),
    "breadcrumbs_ties_exact": (SUM, {**DENSITY, "gamma": {"low": 0.0, "high": 0.1}}),
    "pcb": (1.2, {}),
    "consensus": (SUM, {}),
    "sce": (WHOLE, {}),
    "magmax": (0.5, {}),
    "emr_uni": (0.5, {}),
    "cabs": (1.2, {}),
    "localize_and_stitch": (WHOLE, {}),
    "ram": (WHOLE, {}),
    "ram_plus": (WHOLE, {}),
    "widen": (WHOLE, {}),
    "tsv_merge": (WHOLE, {}),
    "iso_c": (WHOLE, {}),
    "iso_c_exact": (WHOLE, {}),
    "iso_cts": (WHOLE, {}),
    "svc(task_arithmetic)": (SUM, {}),
    "drm": (WHOLE, {}),
    "dc_merge": (WHOLE, {}),
    "opcm": (WHOLE, {}),
    "knots(ties)": (WHOLE, {}),
    "wudi": (WHOLE, {}),
    "optmerge": (WHOLE, {}),
    "random_delta": (AVERAGE, {}),
}


class Zoo:
    """One worker with the zoo's models and tasks, and what it takes to score recipes."""

    def __init__(self, n_items: int, folder: Path) -> None:
        zoo = build_zoo(progress=False)
        plain = {
            "base": str(zoo.base),
            "experts": {name: str(path) for name, path in zoo.experts.items()},
            "objectives": [
                {"name": n, "lm_eval": str(zoo.tasks[n]), "items": n_items, "held_out": 500}
                for n in zoo.experts
            ],
            "workers": {"threads": 1},
        }
        self.config = parse(yaml.safe_dump(plain, sort_keys=False), folder=folder)
        self.worker = Worker(worker_setup(self.config))
        self.experts = tuple(zoo.experts)
        self.groups = self.worker.facts.groups

    def answers(self, recipe: Recipe, split: Split) -> np.ndarray:
        """Right or wrong, `(n_tasks, n_items)`.

        Raises:
            RuntimeError: The recipe cannot be evaluated.
        """
        evaluation = self.worker.evaluate(Job("zoo", recipe, split))
        if evaluation.failure is not None:
            raise RuntimeError(f"{recipe.operator}: {evaluation.failure.message}")
        return np.array([evaluation.responses[name] for name in self.experts])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over tasks of means over items, and its standard error; `(n_tasks, n_items)`."""
    n_tasks, n_items = values.shape
    return float(values.mean()), float(
        np.sqrt((values.var(axis=1, ddof=1) / n_items).sum()) / n_tasks
    )


def searched(zoo: Zoo, operator: str, evaluations: int, seed: int) -> tuple[Recipe, Recipe]:
    """The default recipe, and the best that was found on search items."""
    default, genes = PLANS[operator]
    space = loading.build(
        parse(
            yaml.safe_dump(
                {
                    **yaml.safe_load(zoo.config.to_yaml()),
                    "space": {
                        "operator": operator,
                        "coefficients": {
                            "map": "depth_spline",
                            "knots": 2,
                            "low": -0.2 * default,
                            "high": 3.0 * default,
                            "start": default,
                        },
                        "genes": genes,
                    },
                }
            ),
            folder=Path(),
        ).space.spec(0),
        experts=zoo.experts,
        groups=zoo.groups,
    )
    n = len(zoo.groups)
    flat = Recipe(
        operator,
        zoo.experts,
        tuple(group.label for group in zoo.groups),
        ((default,) * n,) * len(zoo.experts),
    )
    problem = Problem(space.dimensions, 1, space.anchors, evaluations)
    sampler = loading.resolve(SAMPLERS["cma_es"])(problem, seed=seed, sigma=0.15)
    best, highest = flat, mean_and_error(zoo.answers(flat, Split.SEARCH))[0]
    told = 0
    while told < evaluations:
        candidate = sampler.ask()
        recipe = space.decode(candidate.u)
        mean, _ = mean_and_error(zoo.answers(recipe, Split.SEARCH))
        sampler.tell(candidate, [-mean])
        told += 1
        if mean > highest:
            best, highest = recipe, mean
    return flat, best


def row(zoo: Zoo, operator: str, evaluations: int, seed: int) -> str:
    """One line of the table."""
    start = time.perf_counter()
    flat, best = searched(zoo, operator, evaluations, seed)
    before, after = zoo.answers(flat, Split.HELD_OUT), zoo.answers(best, Split.HELD_OUT)
    cells = [f"`{operator}`", f"{PLANS[operator][0]:g}", ", ".join(PLANS[operator][1]) or "none"]
    cells += [
        f"{mean:.3f} ± {error:.3f}"
        for mean, error in map(mean_and_error, (before, after, after - before))
    ]
    cells.append(f"{(time.perf_counter() - start) / (evaluations + 3):.2f}")
    return f"| {' | '.join(cells)} |"


def references(zoo: Zoo) -> list[str]:
    """Base and experts, which nothing is searched for."""
    labels = tuple(group.label for group in zoo.groups)
    lines = []
    for name in ("base", *zoo.experts):
        C = tuple((float(name == e),) * len(labels) for e in zoo.experts)
        recipe = Recipe("task_arithmetic", zoo.experts, labels, C)
        mean, error = mean_and_error(zoo.answers(recipe, Split.HELD_OUT))
        lines.append(f"{name} {mean:.3f} ± {error:.3f}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Score, search, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(PLANS), default=list(PLANS))
    options = parser.parse_args(arguments)
    console = Console(width=160, highlight=False)
    with tempfile.TemporaryDirectory(prefix="evomerge-benchmark-") as temporary:
        zoo = Zoo(options.items, Path(temporary))
        console.print("held-out mean of", "; ".join(references(zoo)))
        console.print("| operator | c | genes | default | searched | gain | s per candidate |")
        console.print("|---|---|---|---|---|---|---|")
        for operator in options.only:
            console.print(row(zoo, operator, options.evaluations, options.seed), markup=False)


if __name__ == "__main__":
    main()
