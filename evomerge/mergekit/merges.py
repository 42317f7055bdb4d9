"""A mergekit merge file as a configuration that starts at that merge."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.datatypes import Knob, Recipe
from evomerge.errors import ConfigError
from evomerge.mergekit.coefficients import Tensor, by_group, by_tensor
from evomerge.mergekit.imported import Imported
from evomerge.mergekit.models import Models
from evomerge.mergekit.reading import MergeFile, read_merge_file
from evomerge.mergekit.settings import Place, lookup, number, truth

_RANGE = (-0.2, 1.5)


@dataclass(frozen=True, slots=True)
class _Method:
    """What a method of mergekit's is here.

    Attributes:
        operator: Our name.
        normalize: Its default; None if it has no such parameter.
        parameter: What becomes the coefficients: `weight` of every expert or `t`, common; None if
            it has none, and all are 1.
        knobs: Our knobs by its parameters of the whole merge, with its defaults.
        of_experts: The same of parameters of every expert.
        elects: Whether `normalize` is the mean after an election, a knob of the operator.
        notes: What is different here.
    """

    operator: str
    normalize: bool | None = None
    parameter: str | None = "weight"
    knobs: Mapping[str, tuple[str, float]] | None = None
    of_experts: Mapping[str, tuple[str, float]] | None = None
    elects: bool = False
    notes: tuple[str, ...] = ()


_DENSITY = {"density": ("density", 1.0)}
_BAND = {**_DENSITY, "gamma": ("gamma", 0.01)}
_RANKED = {**_DENSITY, "epsilon": ("epsilon", 0.15)}
_MASKS = (
    "masks are drawn from the seed and what they keep is divided by its probability: another draw "
    "than mergekit's, which restores the l1 norm"
)
_ROWS = "magnitudes are ranked within the tensor, not within the row"
_METHODS: dict[str, _Method] = {
    "task_arithmetic": _Method("task_arithmetic", False),
    "linear": _Method("task_arithmetic", True),
    "ties": _Method("ties_exact", True, of_experts=_DENSITY, elects=True),
    "dare_linear": _Method("dare", False, of_experts=_DENSITY, notes=(_MASKS,)),
    "dare_ties": _Method(
        "dare_ties_exact", False, of_experts=_DENSITY, elects=True, notes=(_MASKS,)
    ),
    "breadcrumbs": _Method("breadcrumbs", False, of_experts=_BAND),
    "breadcrumbs_ties": _Method(
        "breadcrumbs_ties_exact",
        False,
        of_experts=_BAND,
        elects=True,
    ),
    "della": _Method(
        "della_exact",
        True,
        of_experts=_RANKED,
        elects=True,
        notes=(_MASKS, _ROWS),
    ),
    "della_linear": _Method(
        "della_linear",
        False,
        of_experts=_RANKED,
        notes=(_MASKS, _ROWS),
    ),
    "slerp": _Method("slerp", parameter="t"),
    "nuslerp": _Method("nuslerp"),
    "multislerp": _Method("multislerp"),
    "karcher": _Method(
        "karcher", parameter=None, knobs={"max_iter": ("max_iter", 10), "tol": ("tol", 1e-5)}
    ),
    "sce": _Method("sce", parameter=None, knobs={"select_topk": ("density", 1.0)}),
    "model_stock": _Method("model_stock", parameter=None),
    "nearswap": _Method("nearswap", parameter=None, knobs={"t": ("strength", 0.001)}),
    "ram": _Method("ram", parameter=None, knobs={"epsilon": ("epsilon", 1e-5)}),
    "ramplus_tl": _Method(
        "ram_plus",
        parameter=None,
        knobs={"epsilon": ("epsilon", 1e-5), "r": ("r", 0.1), "alpha": ("alpha", 0.2)},
    ),
}


def import_merge(text: str, name: str, folder: Path, *, tasks: tuple[str, ...] = ()) -> Imported:
    """The configuration that searches around a merge, and the merge as a recipe.

    The recipe needs the names of the base's tensors: without the base on this machine there is
    none, and a note says so.

    Args:
        text: YAML.
        name: Of the file, for messages.
        folder: The file's.
        tasks: Of lm-eval, to be the objectives.

    Raises:
        ConfigError: It is no merge file, its method has no operator here, or it says what is no
            coefficient of each tensor.
    """
    file = read_merge_file(text, name)
    if file.method not in _METHODS:
        raise ConfigError(
            f"a merge is imported if evomerge has its method, but {file.method} of {name} is none "
            f"of {', '.join(_METHODS)}"
        )
    method = _METHODS[file.method]
    base = file.base
    if base is None or (file.method == "linear" and base not in file.models):
        base = file.models[0]
    models = Models(base, [model for model in file.models if model != base], folder, name)
    notes = [*file.notes, *models.notes, *method.notes, *_parameter_notes(file, method)]
    if file.base != base:
        notes.append(f"{base} is the base: a merge here is a base and changes of it")
    if file.method == "karcher" and file.base is not None:
        notes.append("the base takes part in mergekit's karcher, and here it does not")
    space: dict[str, Any] = {"operator": method.operator}
    knobs = _knobs(file, method, models, notes)
    if knobs:
        space["prepare"] = knobs
    start = None
    if models.base_folder is None:
        notes.append(
            "the merge itself is not imported as a start, since its base is not on this machine"
        )
        space["coefficients"] = {"map": "depth_spline", "knots": 3}
    else:
        file = read_merge_file(text, name, models.n_layers)
        start, mixed = _recipe(file, method, models, base, knobs)
        notes += mixed
        every = [c for of_expert in start.coefficients for c in of_expert]
        low, high = min(*_RANGE, *every), max(*_RANGE, *every)
        is_global = all(len(set(of_expert)) == 1 for of_expert in start.coefficients)
        shape = {"map": "global"} if is_global else {"map": "depth_spline", "knots": 3}
        space["coefficients"] = {**shape, "low": low, "high": high}
    config: dict[str, Any] = {"base": models.base, "experts": models.experts, "space": space}
    if tasks:
        config["objectives"] = [{"name": Path(task).stem, "lm_eval": task} for task in tasks]
    return Imported(config, notes, start, has_objectives=bool(tasks))


def _parameter_notes(file: MergeFile, method: _Method) -> list[str]:
    """What mergekit ignores without a word, and what has no counterpart here."""
    own = {method.parameter, *(method.of_experts or ())}
    common = {*(method.knobs or ())} | ({"t"} if method.parameter == "t" else set())
    if method.normalize is not None:
        common |= {"normalize", "lambda", "rescale", "int8_mask"}
    of_models = {key for part in file.slices for each in part.each.values() for key in each}
    of_all = {key for part in file.slices for key in part.common} | file.parameters.keys()
    notes = [
        f"`{key}` under a model is ignored: it is a parameter of the whole merge"
        for key in sorted(of_models & common)
    ]
    notes += [
        f"`{key}` is no parameter of {file.method}: ignored, there as here"
        for key in sorted((of_models | of_all) - own - common)
    ]
    is_random = file.method.startswith(("dare", "della"))
    rescale = lookup([file.slices[0].common, file.parameters], "rescale", Place(""))
    if rescale is not None and truth(rescale, "rescale") != is_random:
        notes.append(f"`rescale: {str(bool(rescale)).lower()}` has no counterpart: left out")
    return notes


def _knobs(file: MergeFile, method: _Method, models: Models, notes: list[str]) -> dict[str, Knob]:
    """The operator's knobs; a value that varies over the model is that of its first layer."""
    knobs: dict[str, Knob] = {}
    for theirs, (ours, default) in (method.knobs or {}).items():
        value = lookup([file.parameters], theirs, Place(""))
        knobs[ours] = default if value is None else number(value, theirs)
    for theirs, (ours, default) in (method.of_experts or {}).items():
        of_experts = {}
        for expert, model in models.spelled.items():
            scopes = [file.slices[0].each.get(model), file.slices[0].common, file.parameters]
            value = lookup(scopes, theirs, Place(""))
            of_experts[expert] = default if value is None else number(value, theirs)
        if file.method.startswith("dare"):
            ours = "drop_rate"
            of_experts = {
                name: min(max(round(1.0 - density, 9), 0.0), 0.99)
                for name, density in of_experts.items()
            }
        if len(set(of_experts.values())) == 1:
            knobs[ours] = next(iter(of_experts.values()))
        else:
            knobs |= {f"{ours}@{expert}": value for expert, value in of_experts.items()}
        notes += [
            f"`{theirs}` by filters or gradients has no counterpart: it is one number per expert"
            for model in models.spelled.values()
            if isinstance((file.slices[0].each.get(model) or {}).get(theirs), list)
        ]
    if method.elects:
        knobs["reduce"] = "mean" if _normalize(file, method) else "sum"
        factor = lookup([file.slices[0].common, file.parameters], "lambda", Place("", None))
        if factor is not None:
            knobs["scale"] = number(factor, "lambda")
    return knobs


def _normalize(file: MergeFile, method: _Method) -> bool:
    value = lookup([file.slices[0].common, file.parameters], "normalize", Place(""))
    return bool(method.normalize) if value is None else truth(value, "normalize")


def _recipe(
    file: MergeFile, method: _Method, models: Models, base: str, knobs: Mapping[str, Knob]
) -> tuple[Recipe, list[str]]:
    """The merge, and notes on what its groups cannot say."""
    from evomerge.checkpoints.reading import Checkpoint

    checkpoint = Checkpoint.open(str(models.base_folder))
    anatomy = Anatomy.of(checkpoint)
    tensors = {
        checkpoint.file_name(name): Tensor(
            role.layer, role.kind == "embed", role.group, checkpoint.tensors[name].n_parameters
        )
        for name, role in anatomy.roles.items()
    }
    of_experts = {
        expert: _values(file, method, tensors, model) for expert, model in models.spelled.items()
    }
    if method.normalize is not None and not method.elects:
        of_base = _values(file, method, tensors, base) if file.method == "linear" else None
        of_experts = _scaled(file, method, tensors, of_experts, of_base)
    rows, notes = [], []
    for expert, values in of_experts.items():
        row, mixed = by_group(values, tensors, anatomy.groups)
        rows.append(row)
        if mixed:
            notes.append(
                f"{expert}: tensors of one group have different numbers there and their mean here "
                f"({', '.join(mixed[:3])}{' ...' if len(mixed) > 3 else ''})"
            )
    experts, labels = tuple(models.experts), anatomy.group_labels
    return Recipe(method.operator, experts, labels, tuple(rows), dict(knobs)), notes


def _values(
    file: MergeFile, method: _Method, tensors: Mapping[str, Tensor], model: str
) -> dict[str, float]:
    """The coefficient of every tensor, before any division."""
    if method.parameter is None:
        return dict.fromkeys(tensors, 1.0)
    whose = None if method.parameter == "t" else model
    values = by_tensor(file, method.parameter, tensors, whose, default=math.nan)
    missing = next((name for name, value in values.items() if math.isnan(value)), None)
    if missing is not None:
        raise ConfigError(
            f"{method.parameter} is required for every tensor, but {model} has none for {missing}: "
            "add a catch-all"
        )
    return values


def _scaled(
    file: MergeFile,
    method: _Method,
    tensors: Mapping[str, Tensor],
    of_experts: Mapping[str, Mapping[str, float]],
    of_base: Mapping[str, float] | None,
) -> dict[str, dict[str, float]]:
    """Weights times lambda, divided by their sum if they are normalized."""
    factor = by_tensor(file, "lambda", tensors, None, default=1.0)
    for name in factor:
        total = sum(values[name] for values in of_experts.values())
        total += of_base[name] if of_base is not None else 0.0
        if _normalize(file, method):
            # mergekit's own guard
            factor[name] /= total if abs(total) >= 1e-8 else 1.0
        elif of_base is not None and abs(total - 1.0) > 1e-6:
            raise ConfigError(
                f"linear without normalize is imported where weights add up to 1, but those of "
                f"{name} add up to {total:g}: a base and changes of it cannot scale the base"
            )
    return {
        expert: {name: value * factor[name] for name, value in values.items()}
        for expert, values in of_experts.items()
    }
