"""Few items for a candidate against all items for every candidate, on the reference zoo.

    python experiments/benchmarks/fidelity_zoo.py [--seeds 10] [--evaluations 300] [--arms ...]

Searches the pool of six experts for the mean of four tasks with 500 search items each, with CMA-ES
as the demo does: with every candidate answering all items, with the default fidelity, and (where
--arms asks for it) with twice as many candidates that answer half as many items. The winner is the
best mean on search items of the final front; it is judged by 500 held-out items per task that no
search has seen. Wanted: the same held-out mean, within one standard error of the paired difference
over seeds, at no more than one tenth of the item answers of the first arm (baselines included).

Runs are kept in --folder and continued there; two processes work side by side.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from evomerge.config import parse
from evomerge.datatypes import Split
from evomerge.demo.zoo import build_zoo
from evomerge.errors import RunError
from evomerge.history import read_history
from evomerge.reporting.rows import best_in_mean, front_trials, mean_estimate
from evomerge.search import resume, start

ARMS: dict[str, tuple[object, int]] = {
    "all items": ("off", 1),
    "fidelity": ("auto", 1),
    "fidelity, twice the candidates": ({"first": 12}, 2),
}
"""Fidelity, and candidates as a multiple of --evaluations."""

N_ITEMS = 500


def run_one(arm: str, seed: int, evaluations: int, sampler: str, folder: Path) -> dict[str, object]:
    """One search; what its winner scores on held-out items, and what the search has spent."""
    zoo = build_zoo(progress=False)
    experts = {**zoo.experts, **zoo.adapters}
    weights = dict.fromkeys(zoo.experts, 1.0)
    samplers = {
        "cma_es": {"name": "cma_es", "sigma": 0.15, "weights": weights},
        "nsga2": {"name": "nsga2"},
    }
    plain = {
        "base": str(zoo.base),
        "experts": {name: str(path) for name, path in experts.items()},
        "objectives": [
            {"name": n, "lm_eval": str(zoo.tasks[n]), "items": N_ITEMS, "held_out": N_ITEMS}
            for n in zoo.experts
        ],
        "space": {"coefficients": {"map": "depth_spline", "knots": 2, "low": -0.2, "high": 0.8}},
        "sampler": samplers[sampler],
        "fidelity": ARMS[arm][0],
        "budget": {"evaluations": ARMS[arm][1] * evaluations},
        "final": {"front": 4},
        "workers": {"threads": 1},
        "reuse_evaluations": False,
        "seed": seed,
    }
    config = parse(yaml.safe_dump(plain), folder=folder)
    run = folder / name_of(arm, sampler, evaluations, seed)
    try:
        start(config, run)
    except RunError:
        resume(run)
    history = read_history(run)
    best = best_in_mean(front_trials(history), history.objectives)
    assert best is not None  # a finished run has a front
    held_out = mean_estimate(best, history.objectives, Split.HELD_OUT)
    search = mean_estimate(best, history.objectives)
    assert held_out is not None
    assert search is not None
    n_models = history.started.n_baselines + evaluations
    n_full = n_models * N_ITEMS * len(history.objectives)
    return {
        "arm": arm,
        "seed": seed,
        "trial": best.name,
        "held_out": held_out.score,
        "search": search.score,
        "share": history.n_item_answers / n_full,
    }


def name_of(arm: str, sampler: str, evaluations: int, seed: int) -> str:
    """What the run and its result are called."""
    return f"{arm.replace(',', '').replace(' ', '-')}-{sampler}-{evaluations}-{seed}"


def main() -> None:
    """Run what is missing, then print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--evaluations", type=int, default=300)
    arguments.add_argument("--sampler", default="cma_es", choices=["cma_es", "nsga2"])
    arguments.add_argument("--arms", nargs="+", default=list(ARMS)[:2], choices=list(ARMS))
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--folder", type=Path, default=Path("runs/fidelity_zoo"))
    arguments.add_argument("--one", nargs=2, metavar=("ARM", "SEED"))
    given = arguments.parse_args()
    folder: Path = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if given.one:
        arm, seed = given.one
        found = run_one(arm, int(seed), given.evaluations, given.sampler, folder)
        name = name_of(arm, given.sampler, given.evaluations, int(seed))
        (folder / f"{name}.json").write_text(json.dumps(found))
        return
    build_zoo(progress=False)
    waiting = [(arm, seed) for seed in range(given.seeds) for arm in given.arms]
    results: dict[tuple[str, int], dict[str, object]] = {}
    running: list[tuple[tuple[str, int], subprocess.Popen[bytes]]] = []
    while waiting or running:
        while waiting and len(running) < given.processes:
            arm, seed = waiting.pop(0)
            path = folder / f"{name_of(arm, given.sampler, given.evaluations, seed)}.json"
            if path.exists():
                results[arm, seed] = json.loads(path.read_text())
                continue
            command = [sys.executable, __file__, "--one", arm, str(seed)]
            command += ["--evaluations", str(given.evaluations), "--sampler", given.sampler]
            command += ["--folder", str(folder)]
            running.append(((arm, seed), subprocess.Popen(command)))
        if running:
            (arm, seed), process = running.pop(0)
            if process.wait() != 0:
                raise SystemExit(f"the search with {arm} and seed {seed} failed")
            path = folder / f"{name_of(arm, given.sampler, given.evaluations, seed)}.json"
            results[arm, seed] = json.loads(path.read_text())
            print(results[arm, seed], flush=True)
    show(results, given.arms, given.seeds)


def show(results: dict[tuple[str, int], dict[str, object]], arms: list[str], n_seeds: int) -> None:
    """One row per arm, differences paired by seed."""
    table = Table(title=f"held-out mean of the winner, {n_seeds} seeds")
    for heading in ("arm", "held-out", "± s.e.", "difference", "± s.e.", "optimism", "answers"):
        table.add_column(heading, justify="right")
    first = np.array([results[arms[0], seed]["held_out"] for seed in range(n_seeds)], dtype=float)
    for arm in arms:
        rows = [results[arm, seed] for seed in range(n_seeds)]
        held_out, search, share = (
            np.array([row[key] for row in rows], dtype=float)
            for key in ("held_out", "search", "share")
        )
        difference = held_out - first
        error = np.sqrt(n_seeds)
        table.add_row(
            arm,
            f"{held_out.mean():.4f}",
            f"{held_out.std(ddof=1) / error:.4f}",
            f"{difference.mean():+.4f}",
            f"{difference.std(ddof=1) / error:.4f}",
            f"{(search - held_out).mean():+.4f}",
            f"{share.mean():.1%}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
