"""From a trial to a model folder that loads anywhere, and proof that it scores as journaled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.card import model_card
from evomerge.checkpoints.reading import Checkpoint
from evomerge.config import Config
from evomerge.datatypes import Answers, Job, Recipe, Split
from evomerge.errors import ConfigError, RunError
from evomerge.evaluation import (
    OpenedModels,
    Worker,
    choose_device,
    digests_of_statistics,
    load_live_model,
    open_models,
    statistics_for,
    worker_setup,
)
from evomerge.history import History, Trial, read_history
from evomerge.mergekit.exporting import FILE, beside, of_run
from evomerge.run_folder import RunFolder
from evomerge.scoring import plain_score
from evomerge.session import bind_space

RECIPE_FILE = "evomerge_recipe.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and its scores when it was loaded back, on the trial's search items."""

    folder: Path
    trial: Trial
    rescored: Mapping[str, float] | None


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
    models, recipe = _models_and_recipe(run, history, config, trial)
    aids = statistics_for([recipe.operator], worker_setup(config), models)
    for what, digest in digests_of_statistics(aids).items():
        if history.started.model_digests.get(what) != digest:
            raise RunError(
                f"an export needs the statistics of the run, but the {what} changed since {run} "
                "was made: restore space.statistics.text and the cache, or export on the machine "
                "of the run"
            )
    in_mergekit = beside(config, models, recipe)
    texts = {RECIPE_FILE: _recipe_text(recipe)}
    if in_mergekit.text is not None:
        texts[FILE] = in_mergekit.text
    write_model(
        folder,
        models.base,
        merged_tensors(models.base, models.experts, models.anatomy, recipe, aids=aids),
        card=model_card(history, trial, recipe, config, mergekit=in_mergekit.sentence),
        max_shard_bytes=max_shard_bytes,
        extra_files=texts,
    )
    rescored = None
    if verify and trial.rung > 0:
        answers = rescore(folder, config, history, trial, recipe)
        _refuse_other_scores(answers, folder)
        rescored = {o.name: plain_score(o, answers[o.name][1].values) for o in history.objectives}
    return Exported(folder, trial, rescored)


def export_mergekit(run: Path, name: str, file: Path) -> None:
    """Write a trial as a mergekit file.

    Raises:
        RunError: when the run has no such trial, or its models changed.
        ConfigError: when mergekit cannot make this model, or the file is there already.
    """
    if file.exists():
        raise ConfigError(
            f"a mergekit file is written anew, but {file} is there already: give another one, or "
            "remove it"
        )
    history = read_history(run)
    config = RunFolder(run).read_config()
    models, recipe = _models_and_recipe(run, history, config, find_trial(history, name))
    text = of_run(config, models, recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def export_adapter(run: Path, name: str, folder: Path, *, rank: int | None = None) -> float:
    """Write a trial that was merged in factors as one PEFT adapter.

    Args:
        run: A run directory; only read.
        name: A trial of it.
        folder: Where to write; must not exist, or be empty.
        rank: Of the adapter; None is exact (the sum of the experts' ranks, as a rule).

    Returns:
        What a rank leaves out: Frobenius norm over that of the whole change; 0 if exact.

    Raises:
        RunError: when the run has no such trial, or its models changed.
        ConfigError: when its operator merges no factors.
        IncompatibleError: when a weight is changed otherwise than by factors.
        CheckpointError: when the folder cannot be written.
    """
    from evomerge.merging.low_rank.as_adapter import merged_factors, truncated, write_adapter

    history = read_history(run)
    config = RunFolder(run).read_config()
    trial = find_trial(history, name)
    models, recipe = _models_and_recipe(run, history, config, trial)
    factors = merged_factors(models.base, models.experts, models.anatomy, recipe)
    error = 0.0
    if rank is not None:
        factors, error = truncated(factors, rank)
    sentence = beside(config, models, recipe).sentence
    card = model_card(history, trial, recipe, config, mergekit=sentence)
    texts = {RECIPE_FILE: _recipe_text(recipe)}
    write_adapter(folder, models.base, factors, card=card, extra_files=texts)
    return error


def _recipe_text(recipe: Recipe) -> str:
    return json.dumps(recipe.to_json(), indent=1) + "\n"


def _models_and_recipe(
    run: Path, history: History, config: Config, trial: Trial
) -> tuple[OpenedModels, Recipe]:
    models = open_models(worker_setup(config).models)
    started = history.started.model_digests
    if any(started.get(name) != digest for name, digest in models.digests.items()):
        raise RunError(
            f"an export needs the models of the run, but they changed since {run} was made: "
            "restore them"
        )
    return models, history.recipe(trial, bind_space(config, models.anatomy.groups).decode)


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


def rescore(
    folder: Path, config: Config, history: History, trial: Trial, recipe: Recipe
) -> dict[str, tuple[Answers, Answers]]:
    """What a model folder answers to the search items that a trial has answered.

    Returns:
        For each objective the trial's answers as journaled, and the folder's to the same items.

    Raises:
        RunError: when the folder's tokenizer is not that of the run.
    """
    setup = worker_setup(config)
    worker = Worker(setup)
    checkpoint = Checkpoint.open(folder, trust_remote_code=config.trust_remote_code)
    if checkpoint.tokenizer_digest != open_models(setup.models).base.tokenizer_digest:
        raise RunError(
            f"an exported model has the base's tokenizer, but {folder} has another: export again"
        )
    model, _ = load_live_model(
        checkpoint, choose_device(setup.device), trust_remote_code=config.trust_remote_code
    )
    journaled = {
        o.name: history.answers(trial.name, Split.SEARCH, o.name) for o in history.objectives
    }
    items = tuple(tuple(journaled[names[0]].items.tolist()) for names in history.started.fitness)
    answers = worker.answer_as(model, Job("export", recipe, Split.SEARCH, items))
    return {
        name: (
            before,
            Answers(before.items, np.reshape(answers[name], before.values.shape)),
        )
        for name, before in journaled.items()
    }


def _refuse_other_scores(rescored: Mapping[str, tuple[Answers, Answers]], folder: Path) -> None:
    """On the machine of the run answers are equal; elsewhere a near tie may flip an item."""
    for name, (before, now) in rescored.items():
        size = float(np.abs(before.values).max())
        allowed = max(1e-6, 1.0 / len(before.items)) * max(1.0, size)
        if abs(now.values.mean() - before.values.mean()) > allowed:
            raise RunError(
                f"an exported model scores as journaled, but {folder} answers with a mean of "
                f"{now.values.mean():.6g} to the items of {name} instead of "
                f"{before.values.mean():.6g}: do not use it; check that the machine and the "
                "libraries are those of the run"
            )
