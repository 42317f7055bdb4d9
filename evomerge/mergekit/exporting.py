"""A run's recipe as a mergekit file, with the command that merges it, or why there is none."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from evomerge.config import Config, ModelRef, VocabularyConfig
from evomerge.datatypes import Recipe
from evomerge.errors import ConfigError
from evomerge.evaluation import OpenedModels
from evomerge.mergekit.writing import Names, merge_file, reference

FILE = "mergekit.yaml"
"""Its name beside an exported model."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What stands beside an exported model: the file if there is one, and a sentence on it."""

    text: str | None
    sentence: str


def of_run(
    config: Config, models: OpenedModels, recipe: Recipe, *, folders_by_name: bool = False
) -> str:
    """The YAML text of a recipe of a run.

    Args:
        config: Of the run.
        models: Its base and experts.
        recipe: One of its recipes.
        folders_by_name: Write local folders as `./base` and `./EXPERT` instead of their paths.

    Raises:
        ConfigError: mergekit cannot make this model; the message says why.
    """
    if config.vocabulary != VocabularyConfig():
        raise ConfigError(
            "a mergekit file has the base's vocabulary, but this run chose another in "
            "`vocabulary`: use the exported model"
        )
    names = _names(config, models, folders_by_name)
    version = importlib.metadata.version("evomerge")
    comments = [f"evomerge {version}, recipe {recipe.digest}", f"run: {_command(config, models)}"]
    if _adapters(models):
        comments.append("mergekit first merges each adapter into a rounded copy of the base")
    if names.aligns_tokens:
        comments.append("mergekit gives the vocabulary as many rows as the base has tokens")
    return merge_file(recipe, names, comments=comments)


def beside(config: Config, models: OpenedModels, recipe: Recipe) -> Beside:
    """The file that goes into an exported folder, which is to be shown to others."""
    try:
        text = of_run(config, models, recipe, folders_by_name=True)
    except ConfigError as error:
        return Beside(None, f"No mergekit file makes this model: {error}.")
    places = " (put local models where it names them)" if ': "./' in text else ""
    command = _command(config, models)
    return Beside(text, f"mergekit 0.1.5 makes this model too{places}: `{command}`.")


def _command(config: Config, models: OpenedModels) -> str:
    command = f"mergekit-yaml {FILE} OUT"
    if _adapters(models):
        command += " --lora-merge-cache CACHE"
    return command + (" --trust-remote-code" if config.trust_remote_code else "")


def _adapters(models: OpenedModels) -> set[str]:
    from evomerge.checkpoints.adapters import Adapter

    return {expert.name for expert in models.experts if isinstance(expert, Adapter)}


def _names(config: Config, models: OpenedModels, folders_by_name: bool) -> Names:
    from evomerge.checkpoints.experts import FullExpert

    base = models.base
    dtypes = sorted({facts.dtype for facts in base.tensors.values()})
    if len(dtypes) > 1:
        raise ConfigError(
            f"a mergekit file has one dtype for all weights, but the base has "
            f"{' and '.join(dtypes)}: export the weights"
        )

    def spelled(name: str, ref: ModelRef) -> str:
        is_local = Path(ref.path).is_absolute()
        return reference(f"./{name}" if folders_by_name and is_local else ref.path, ref.revision)

    of_base, adapters = spelled("base", config.base), _adapters(models)
    of_experts = {name: spelled(name, ref) for name, ref in config.experts.items()}
    labels = models.anatomy.group_labels
    tensors = {
        base.file_name(name): labels[role.group] for name, role in models.anatomy.roles.items()
    }
    # Some files hold tied weights twice, and then mergekit merges both.
    tensors |= {
        alias: labels[models.anatomy.roles[owner].group]
        for alias, owner in base.tied.items()
        if owner in models.anatomy.roles
    }
    rows = {
        expert.checkpoint.vocab_size for expert in models.experts if isinstance(expert, FullExpert)
    }
    return Names(
        of_base,
        tuple(f"{of_base}+{of}" if name in adapters else of for name, of in of_experts.items()),
        tensors,
        dtypes[0],
        aligns_tokens=bool(rows - {base.vocab_size}),
    )
