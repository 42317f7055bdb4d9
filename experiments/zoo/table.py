"""The reference zoo as a test-bed: what its models know, and what merging them can reach.

    python experiments/zoo/table.py [--evaluations 400] [--seeds 0 1 2]

Prints Markdown: every model on the held-out items of every skill; then, for the four skills of the
full experts, hand-made merges of the whole pool against searched ones, one run per seed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from evomerge.config import parse
from evomerge.datatypes import Split
from evomerge.demo.showcase import demo_yaml
from evomerge.demo.zoo import Zoo, build_zoo
from evomerge.history import History, Trial
from evomerge.reporting.rows import best_in_mean, front_trials, mean_estimate
from evomerge.search import start


def everyone_yaml(zoo: Zoo) -> str:
    """All models on all skills, baselines only."""
    experts = {**zoo.experts, **zoo.adapters}
    plain = {
        "base": str(zoo.base),
        "experts": {name: str(path) for name, path in experts.items()},
        "objectives": [
            {"name": skill, "lm_eval": str(zoo.tasks[skill]), "items": 20} for skill in experts
        ],
        "budget": {"evaluations": 0},
        "workers": {"threads": 1},
    }
    return yaml.safe_dump(plain, sort_keys=False)


def row(name: str, cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {name} | {' | '.join(cells)} |"


def held_out(trial: Trial, history: History) -> list[str]:
    """Held-out scores per objective and their mean with its standard error."""
    assert trial.held_out is not None
    mean = mean_estimate(trial, history.objectives, Split.HELD_OUT)
    assert mean is not None
    scores = [f"{trial.held_out[o.name].score:.3f}" for o in history.objectives]
    return [*scores, f"**{mean.score:.3f}** ± {mean.standard_error:.3f}"]


def print_table(history: History, trials: dict[str, Trial]) -> None:
    """One line per trial."""
    print(row("model", [*(o.name for o in history.objectives), "mean"]))
    print(row("---", ["---"] * (len(history.objectives) + 1)))
    for name, trial in trials.items():
        print(row(name, held_out(trial, history)))
    print()


def main() -> None:
    """Build the zoo if it is not there, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--evaluations", type=int, default=400)
    arguments.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    given = arguments.parse_args()
    zoo = build_zoo()
    with tempfile.TemporaryDirectory() as scratch:
        config = parse(everyone_yaml(zoo), folder=Path.cwd())
        history = start(config, Path(scratch) / "all")
        print("Every model on every skill, held-out items:\n")
        print_table(history, {t.name: t for t in history.trials.values() if is_model(t)})

        for seed in given.seeds:
            text = demo_yaml(zoo, evaluations=given.evaluations, seed=seed)
            config = parse(text, folder=zoo.folder.parent)
            history = start(config, Path(scratch) / f"search-{seed}")
            print_table(history, rivals(history))
            print(f"(search seed {seed}; {given.evaluations} candidates; {front(history)})\n")


def is_model(trial: Trial) -> bool:
    """Whether a baseline is one of the zoo's own models."""
    return trial.name == "base" or trial.name.startswith("expert:")


def rivals(history: History) -> dict[str, Trial]:
    """Hand-made merges, each at its best on the held-out items, and what the search chose."""
    baselines = [t for t in history.scored(Split.HELD_OUT) if t.is_baseline]

    def best(prefix: str) -> Trial:
        group = [t for t in baselines if t.name.startswith(prefix)]
        found = best_in_mean(group, history.objectives, Split.HELD_OUT)
        assert found is not None
        return found

    searched = best_in_mean(front_trials(history), history.objectives)
    assert searched is not None
    expert, scale = best("expert:"), best("task_arithmetic_")
    return {
        "random directions": history.trials["random_delta"],
        f"best expert ({expert.name.removeprefix('expert:')})": expert,
        "uniform average": history.trials["uniform_average"],
        f"best global scale ({scale.name.removeprefix('task_arithmetic_')})": scale,
        "TIES": history.trials["ties"],
        "model stock": history.trials["model_stock"],
        f"searched, best mean on search items (trial {searched.name})": searched,
    }


def front(history: History) -> str:
    """How wide the front is on held-out items: the trade-offs."""
    trials = [t for t in front_trials(history) if t.held_out is not None]
    ranges = []
    for objective in history.objectives:
        scores = [t.held_out[objective.name].score for t in trials if t.held_out is not None]
        ranges.append(f"{objective.name} {min(scores):.2f} to {max(scores):.2f}")
    assert history.front is not None
    size = len(history.front.trials)
    return f"front of {size}, {len(trials)} of them re-scored: {', '.join(ranges)}"


if __name__ == "__main__":
    main()
