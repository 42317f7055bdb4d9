"""A configuration of mergekit-evolve as one of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError
from evomerge.mergekit.genome import space_of
from evomerge.mergekit.imported import Imported
from evomerge.mergekit.models import Models
from evomerge.mergekit.reading import spelled
from evomerge.mergekit.settings import truth
from evomerge.mergekit.yaml_files import unknown_keys

_TOP = {
    "genome",
    "tasks",
    "limit",
    "num_fewshot",
    "shuffle",
    "random_init",
    "apply_chat_template",
    "fewshot_as_multiturn",
}
_GENOME = {
    "models",
    "merge_method",
    "base_model",
    "tokenizer_source",
    "layer_granularity",
    "normalize",
    "allow_negative_weights",
    "filters",
    "smooth",
}
_TASK = {"name", "weight", "metric"}
_METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
_BENCHMARKS = (
    "mmlu",
    "hendrycks",
    "agieval",
    "gsm8k",
    "hellaswag",
    "winogrande",
    "arc_",
    "ai2_arc",
    "truthfulqa",
    "bigbench",
    "piqa",
    "openbookqa",
    "leaderboard",
)
_EVALUATIONS = 100
"""mergekit-evolve's default of --max-fevals."""


def import_evolve(
    plain: Mapping[str, Any], name: str, folder: Path, *, n_layers: int | None = None
) -> Imported:
    """The configuration that searches what mergekit-evolve would search.

    Args:
        plain: The YAML file's keys.
        name: Of the file, for messages.
        folder: The file's.
        n_layers: Of the models, where the base is not on this machine.

    Raises:
        ConfigError: A key has a value that it cannot have, or the search has no counterpart here.
    """
    notes = unknown_keys(plain, _TOP, "")
    genome = plain.get("genome")
    if not isinstance(genome, dict) or not isinstance(genome.get("models"), list):
        raise ConfigError(f"a genome has models and a merge_method, but {name} has {genome!r}")
    notes += unknown_keys(genome, _GENOME, "genome.")
    method = str(genome.get("merge_method"))
    if method not in _METHODS:
        raise ConfigError(
            f"merge_method of mergekit-evolve is one of {', '.join(_METHODS)}, but {name} has "
            f"{method!r}: correct it"
        )
    models = _models(genome, method, folder, name, notes)
    space = space_of(genome, method, models, n_layers or models.n_layers, notes)
    config: dict[str, Any] = {
        "base": models.base,
        "experts": models.experts,
        "space": space,
        "objectives": _objectives(plain, models, name, notes),
        "budget": {"evaluations": _EVALUATIONS},
    }
    notes.append(
        f"--max-fevals is no key of the file: budget.evaluations is its default, {_EVALUATIONS}; "
        "--random-seed is `seed`, --force-population-size `sampler: {name: cma_es, population: N}`"
    )
    if truth(plain.get("random_init", False), "random_init"):
        notes.append("`random_init` has no counterpart: a search starts at known-good merges")
    if truth(plain.get("shuffle", False), "shuffle") or plain.get("limit") is not None:
        notes.append(
            "`shuffle` and `limit`: the seed draws items, the same for all candidates, where "
            "mergekit-evolve takes the first ones or shuffles without a seed"
        )
    if genome.get("tokenizer_source") not in (None, "base"):
        notes.append(
            f"`genome.tokenizer_source: {genome['tokenizer_source']}` has no counterpart: a merge "
            "has the base's tokenizer"
        )
    return Imported(config, (*models.notes, *notes))


def _models(
    genome: Mapping[str, Any], method: str, folder: Path, name: str, notes: list[str]
) -> Models:
    listed = [spelled(model) for model in genome["models"]]
    base = None if genome.get("base_model") is None else spelled(genome["base_model"])
    if base is None:
        if method not in ("linear", "slerp"):
            raise ConfigError(
                f"{method} needs a base_model, but {name} has none: name the model that the others "
                "were fine-tuned from"
            )
        base = listed[0]
        notes.append(f"{base} is the base: a merge here is a base and changes of it")
    elif base not in listed and method in ("linear", "slerp"):
        notes.append(
            f"{method} with a base_model that is not among the models fails in mergekit-evolve: "
            "here the base takes part"
        )
    elif base in listed and method not in ("linear", "slerp"):
        notes.append(
            f"{base} is the base and stands among the models too: its genes had no effect, and it "
            "is no expert here"
        )
    experts = [model for model in listed if model != base]
    if method == "slerp" and len(experts) != 1:
        raise ConfigError(
            f"slerp is imported for two models, but {name} has {len(experts) + 1}: mergekit-evolve "
            "merges the two with the largest genes, another pair for each group, which is no space "
            "here; keep two, or take another method"
        )
    return Models(base, experts, folder, name)


def _objectives(
    plain: Mapping[str, Any], models: Models, name: str, notes: list[str]
) -> list[dict[str, Any]]:
    tasks = plain.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise ConfigError(f"a search needs tasks, but {name} has {tasks!r}: add some")
    options = _chat(plain, models, notes)
    objectives: list[dict[str, Any]] = []
    weights: dict[str, float] = {}
    for i, given in enumerate(tasks):
        task = {"name": given} if isinstance(given, str) else dict(given)
        notes += unknown_keys(task, _TASK, f"tasks[{i}].")
        title, weight = str(task["name"]), float(task.get("weight", 1.0))
        metric = str(task.get("metric", "acc,none"))
        short = Path(title).stem if "/" in title else title
        named = short if short not in weights else f"{short}_{metric.partition(',')[0]}"
        weights[named] = abs(weight)
        objective: dict[str, Any] = {"name": named, "lm_eval": title, "metric": metric}
        if weight < 0:
            objective["direction"] = "minimize"
        for theirs, ours in (("limit", "items"), ("num_fewshot", "num_fewshot")):
            if plain.get(theirs) is not None:
                objective[ours] = int(plain[theirs])
        objectives.append(objective | ({"options": options} if options else {}))
        if short.startswith(_BENCHMARKS) and not short.endswith("_train"):
            notes.append(
                f"warning: {title} is a public benchmark: a merge that is searched on its test "
                "items must not be compared with published scores"
            )
    if len(objectives) > 1:
        shares = ", ".join(f"{name}: {weight:g}" for name, weight in weights.items())
        notes.append(
            "every task is an objective of its own and the result a front; for the weighted sum "
            f"of mergekit-evolve write `sampler: {{name: cma_es, weights: {{{shares}}}}}`"
        )
    return objectives


def _chat(plain: Mapping[str, Any], models: Models, notes: list[str]) -> dict[str, Any]:
    """Options of every task; says the default aloud, and what the base's tokenizer can do."""
    from evomerge.checkpoints.vocabulary import read_chat_template

    is_said = "apply_chat_template" in plain
    wants = truth(plain.get("apply_chat_template", True), "apply_chat_template")
    multiturn = truth(plain.get("fewshot_as_multiturn", True), "fewshot_as_multiturn")
    if not wants:
        return {}
    folder = models.base_folder
    if folder is not None and read_chat_template(folder) is None:
        if is_said:
            raise ConfigError(
                f"apply_chat_template needs a template, but the tokenizer of {folder} has none: "
                "set it to false"
            )
        notes.append(
            "apply_chat_template is true by default in mergekit-evolve, but the base's tokenizer "
            "has no template: left out"
        )
        return {}
    if not is_said:
        notes.append(
            "warning: apply_chat_template is true by default in mergekit-evolve, and is so here: "
            "for a base model without chat training set it to false"
        )
    options: dict[str, Any] = {"apply_chat_template": True}
    return options | ({"fewshot_as_multiturn": True} if multiturn else {})
