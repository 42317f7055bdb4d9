"""From a trial to a model folder that loads anywhere, and proof that it scores as journaled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evomerge import loading
from evomerge.card import model_card
from evomerge.config import MEAN_ESTIMATOR, Config
from evomerge.datatypes import Estimate, Spec, Split
from evomerge.errors import RunError
from evomerge.evaluation import choose_device, load_live_model, open_models, worker_setup
from evomerge.history import History, Trial, read_history
from evomerge.live_model import LoadedModel
from evomerge.run_folder import RunFolder
from evomerge.search import answers_of
from evomerge.session import bind_space

if TYPE_CHECKING:
    from evomerge.protocols import Estimator, Fitness

RECIPE_FILE = "evomerge_recipe.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what it scored when it was loaded back (search items)."""

    folder: Path
    trial: Trial
    rescored: Mapping[str, Estimate] | None


def export(
    run: Path,
    name: str,
    folder: Path,
    *,
    max_shard_bytes: int = 5_000_000_000,
    verify: bool = True,
) -> Exported:
    """Write a trial's merged model as a Hugging Face folder.

    The weights are the bytes that were scored: same deltas, same arithmetic, one rounding.

    Args:
        run: A run directory; only read.
        name: A trial of it: a candidate's number or a baseline's name.
        folder: Where to write; must not exist, or be empty.
        max_shard_bytes: Upper limit of a weights file.
        verify: Load the folder back, answer the search items and compare with the journal.

    Raises:
        RunError: when the run has no such trial, its models changed, or the exported model does
            not score as journaled.
        CheckpointError: when the folder cannot be written.
    """
    from evomerge.checkpoints.writing import write_model
    from evomerge.merging.materialize import merged_tensors

    history = read_history(run)
    config = RunFolder(run).read_config()
    trial = find_trial(history, name)
    setup = worker_setup(config)
    models = open_models(setup.models)
    if models.digests != dict(history.started.model_digests):
        raise RunError(
            f"an export needs the models of the run, but they changed since {run} was made: "
            "restore them"
        )
    recipe = history.recipe(trial, bind_space(config, models.anatomy.groups).decode)
    write_model(
        folder,
        models.base,
        merged_tensors(models.base, models.experts, models.anatomy, recipe),
        card=model_card(history, trial, recipe, config),
        max_shard_bytes=max_shard_bytes,
        extra_files={RECIPE_FILE: json.dumps(recipe.to_json(), indent=1) + "\n"},
    )
    rescored = None
    if verify and trial.search is not None:
        rescored = rescore(folder, config)
        _refuse_other_scores(trial.search, rescored, folder)
    return Exported(folder, trial, rescored)


def find_trial(history: History, name: str) -> Trial:
    """A trial by name.

    Raises:
        RunError: when there is none of that name.
    """
    trial = history.trials.get(name)
    if trial is None:
        named = [t.name for t in history.trials.values() if t.is_baseline]
        count = len(history.trials) - len(named)
        raise RunError(
            f"a trial is a number below {count} or one of {', '.join(named)}, but got {name!r}: "
            "see `evomerge front`"
        )
    return trial


def rescore(folder: Path, config: Config) -> dict[str, Estimate]:
    """What a model folder scores on the search items of a configuration."""
    import torch

    from evomerge.checkpoints.reading import Checkpoint

    setup = worker_setup(config)
    torch.set_num_threads(setup.threads)
    checkpoint = Checkpoint.open(folder, trust_remote_code=config.trust_remote_code)
    model, tokenizer = load_live_model(
        checkpoint, choose_device(setup.device), trust_remote_code=config.trust_remote_code
    )
    estimator: Estimator = loading.build(Spec(MEAN_ESTIMATOR))
    estimates: dict[str, Estimate] = {}
    for spec in setup.fitness:
        fitness: Fitness = loading.build(spec)
        fitness.bind(LoadedModel(model, tokenizer))
        answers = fitness.respond(Split.SEARCH, range(len(fitness.items(Split.SEARCH))))
        for column, objective in enumerate(fitness.objectives):
            responses = answers_of(answers[:, column].tolist())
            (estimates[objective.name],) = estimator.estimate([responses], np.empty((0, 0)))
    return estimates


def _refuse_other_scores(
    journaled: Mapping[str, Estimate], rescored: Mapping[str, Estimate], folder: Path
) -> None:
    """On the machine of the run the scores are equal; elsewhere a near tie may flip an item."""
    for name, before in journaled.items():
        now = rescored[name]
        tolerance = max(1e-6, 1.0 / before.n_items) * max(1.0, abs(before.score))
        if abs(now.score - before.score) > tolerance:
            raise RunError(
                f"an exported model scores as journaled, but {folder} has {now.score:.6g} on "
                f"{name} instead of {before.score:.6g}: do not use it; check that the machine and "
                "the libraries are those of the run"
            )
