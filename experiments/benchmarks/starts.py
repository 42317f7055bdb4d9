"""What a start is worth on the reference zoo: python experiments/benchmarks/starts.py [--seeds 3].

The four full experts, two coefficients each (first and last layer), NSGA-II. Each start gets the
same labelled objectives, items, seeds and budget; the one from an unlabeled run got that run's
evaluations besides, whose objectives are the divergence to the experts and the entropy on prompts
without their answers. Hypervolumes are of the candidates alone, from the reference of the seed.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from evomerge.config import parse
from evomerge.demo.zoo import Zoo, build_zoo
from evomerge.history import History
from evomerge.pareto import hypervolume
from evomerge.search import start

N_ITEMS = 60
CHECKPOINTS = (8, 16, 24)

STARTS: Mapping[str, Mapping[str, object] | None] = {
    "space's anchors": None,
    "baselines": {"baselines": True},
    "layer priors": {"layer_priors": True},
    "unlabeled run, 8 of its front": {"run": "unlabeled", "n": 8},
    "unlabeled run, 2 of its front": {"run": "unlabeled", "n": 2},
}


def main() -> None:
    """Run all and print a table of means over seeds with standard errors."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    n_seeds = parser.parse_args().seeds
    zoo = build_zoo()
    found: dict[str, list[list[float]]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(n_seeds):
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            write_text(zoo, folder / "prompts.txt")
            search(zoo, folder, "unlabeled", seed, unlabeled(), None)
            for name, options in STARTS.items():
                history = search(zoo, folder, name, seed, labelled(zoo), options)
                found[name].append(figures(history))
                print(seed, name, [round(x, 4) for x in found[name][-1]], flush=True)
    print_table(found)


def write_text(zoo: Zoo, file: Path) -> None:
    """Prompts of all skills in turn, without answers."""
    lines = [
        (zoo.folder / "data" / f"{n}.search.jsonl").read_text().splitlines()[-20:]
        for n in zoo.experts
    ]
    prompts = [json.loads(line)["prompt"] for group in zip(*lines, strict=True) for line in group]
    file.write_text("\n".join(prompts) + "\n", encoding="utf-8")


def unlabeled() -> list[dict[str, object]]:
    """Objectives that need no label."""
    common = {"text": "prompts.txt", "direction": "minimize"}
    measures = {"divergence": "js_to_experts", "entropy": "entropy"}
    return [{"name": name, "unlabeled": m, **common} for name, m in measures.items()]


def labelled(zoo: Zoo) -> list[dict[str, object]]:
    """The tasks of the experts."""
    return [{"name": n, "lm_eval": str(zoo.tasks[n]), "items": N_ITEMS} for n in zoo.experts]


def search(
    zoo: Zoo,
    folder: Path,
    name: str,
    seed: int,
    objectives: list[dict[str, object]],
    options: Mapping[str, object] | None,
) -> History:
    """One run in a folder of its name."""
    config = {
        "base": str(zoo.base),
        "experts": {n: str(path) for n, path in zoo.experts.items()},
        "objectives": objectives,
        "space": {"coefficients": {"map": "depth_spline", "knots": 2, "low": -0.2, "high": 1.0}},
        "sampler": {"name": "nsga2", "population": 8},
        "budget": {"evaluations": max(CHECKPOINTS)},
        "fidelity": "off",
        "workers": {"threads": 1},
        "seed": seed,
        **({"start": dict(options)} if options else {}),
    }
    return start(parse(yaml.safe_dump(config), folder=folder), folder / name)


def figures(history: History) -> list[float]:
    """Hypervolume of the first candidates, then the best mean, then its held-out mean."""
    assert history.front is not None
    candidates = [t for t in history.scored() if not t.is_baseline]
    losses = history.losses(candidates)
    volumes = [hypervolume(losses[:n], history.front.reference) for n in CHECKPOINTS]
    best_first, best = (-losses[:n].mean(axis=1).min() for n in (CHECKPOINTS[0], len(losses)))
    return [*volumes, float(best_first), float(best)]


def print_table(found: Mapping[str, list[list[float]]]) -> None:
    """Means, and the standard error of the difference to the first row over paired seeds."""
    names = [
        *(f"hypervolume at {n}" for n in CHECKPOINTS),
        f"best mean at {CHECKPOINTS[0]}",
        "at the end",
    ]
    print(f"| start | {' | '.join(names)} |")
    print("|---|" + "---|" * len(names))
    first = np.array(next(iter(found.values())))
    for name, rows in found.items():
        values = np.array(rows)
        errors = (values - first).std(axis=0, ddof=1) / np.sqrt(len(values))
        cells = [f"{m:.4f} ({e:.4f})" for m, e in zip(values.mean(axis=0), errors, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
