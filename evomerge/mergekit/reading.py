"""A mergekit merge file, read: which models, and which parameter has which value where."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError
from evomerge.mergekit.settings import Place, Scalar, Settings, lookup
from evomerge.mergekit.yaml_files import parse_mapping, unknown_keys

_TOP = {
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
}
_OF_MODEL = {"model", "parameters"}
_OF_SLICE = {"sources", "base_model", "parameters", "residual_weight"}


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers `first` to `last`, and the parameters there: of every model, and common ones."""

    first: int
    last: int | None
    each: Mapping[str, Settings]
    common: Settings


@dataclass(frozen=True, slots=True)
class MergeFile:
    """What a merge file says; models are as it spells them.

    Attributes:
        method: The merge method.
        base: Its base model, or None.
        models: Those it lists, in order; the base among them only if it is listed.
        slices: Consecutive layers from the first on; one for all layers if it has `models`.
        parameters: Of the whole file.
        notes: What it says and this reading does not use, a sentence each.
    """

    method: str
    base: str | None
    models: tuple[str, ...]
    slices: tuple[Slice, ...]
    parameters: Settings
    notes: tuple[str, ...]

    def value(
        self,
        parameter: str,
        tensor: str,
        *,
        layer: int | None = None,
        is_first: bool = False,
        model: str | None = None,
    ) -> Scalar | None:
        """A parameter for one tensor, as mergekit finds it; None if the file does not say.

        Args:
            parameter: Its name.
            tensor: The tensor's name in the files.
            layer: The number of its layer, None outside the layers.
            is_first: Outside the layers: whether it comes before them (embeddings), else after.
            model: Whose parameter; None for a common one.

        Raises:
            ConfigError: The value is of a form that the grammar does not have, or there is no such
                layer.
        """
        part = self._slice(layer, is_first)
        scopes = [part.common, self.parameters]
        if model is not None:
            scopes.insert(0, part.each.get(model, {}))
        return lookup(scopes, parameter, Place(tensor, _position(part, layer)))

    def _slice(self, layer: int | None, is_first: bool) -> Slice:
        if layer is None:
            return self.slices[0 if is_first else -1]
        for part in self.slices:
            if part.last is None or layer <= part.last:
                return part
        raise ConfigError(
            f"a merge that is read back has the layers of its base, but the file's slices end "
            f"before layer {layer}: give the base that it was written for"
        )


def read_merge_file(text: str, name: str, n_layers: int | None = None) -> MergeFile:
    """Read a merge file.

    Args:
        text: YAML.
        name: Of the file, for messages.
        n_layers: Of the models: gradients of a file with `models` run over them.

    Raises:
        ConfigError: It is no merge file, or says what cannot be read back as one coefficient for
            each tensor: other layers than the models', several modules.
    """
    plain = parse_mapping(text, name)
    notes = unknown_keys(plain, _TOP, "")
    given = [key for key in ("models", "slices", "modules") if plain.get(key)]
    if len(given) != 1:
        raise ConfigError(
            f"a merge file has exactly one of models, slices and modules, but {name} has "
            f"{' and '.join(given) or 'none'}: correct it"
        )
    if given == ["modules"]:
        plain = {**plain, **_only_module(plain["modules"], name)}
    base = None if plain.get("base_model") is None else spelled(plain["base_model"])
    if plain.get("models"):
        last = None if n_layers is None else n_layers - 1
        slices = [Slice(0, last, _each(plain["models"], name, notes), {})]
    else:
        slices = [_slice(one, i, name, notes) for i, one in enumerate(plain["slices"])]
        _refuse_other_layers(plain["slices"], slices, n_layers, name)
    return MergeFile(
        method=str(plain.get("merge_method")),
        base=base,
        models=tuple(slices[0].each),
        slices=tuple(slices),
        parameters=plain.get("parameters") or {},
        notes=tuple(notes),
    )


def spelled(reference: Any) -> str:
    """A model reference as one string: `path[@revision][+adapter[@revision]]`."""
    if isinstance(reference, str):
        return reference

    def one(part: Any) -> str:
        if isinstance(part, str):
            return part
        revision = part.get("revision")
        return str(part["path"]) + (f"@{revision}" if revision else "")

    if not isinstance(reference, dict) or "model" not in reference:
        raise ConfigError(
            f"a model in a mergekit file is a string or a mapping with `model`, but got "
            f"{reference!r}: correct it"
        )
    model, lora = one(reference["model"]), reference.get("lora")
    return model if lora is None else f"{model}+{one(lora)}"


def _only_module(modules: Any, name: str) -> dict[str, Any]:
    if not isinstance(modules, dict) or len(modules) != 1:
        raise ConfigError(
            f"a merge that is read back has one module, but {name} has {len(modules)}: evomerge "
            "merges the weights of a model as a whole"
        )
    (module,) = modules.values()
    return {"models": None, "slices": None, **module}


def _each(models: Any, name: str, notes: list[str]) -> dict[str, Settings]:
    each: dict[str, Settings] = {}
    for i, one in enumerate(models):
        if not isinstance(one, dict) or "model" not in one:
            raise ConfigError(
                f"an entry of models has `model` and `parameters`, but {name} has {one!r} there: "
                "correct it"
            )
        notes += unknown_keys(one, _OF_MODEL | {"layer_range"}, f"models[{i}].")
        if "layer_range" in one and name:
            notes.append(f"`models[{i}].layer_range` is ignored: it stands under `slices` only")
        each[spelled(one["model"])] = one.get("parameters") or {}
    return each


def _slice(plain: Mapping[str, Any], number: int, name: str, notes: list[str]) -> Slice:
    where = f"slices[{number}]."
    notes += unknown_keys(plain, _OF_SLICE, where)
    for key, what in (("residual_weight", "mergekit never reads it"), ("base_model", "ignored")):
        if plain.get(key) is not None:
            notes.append(f"`{where}{key}`: {what}")
    sources = plain.get("sources") or []
    ranges = {tuple(source.get("layer_range") or ()) for source in sources}
    if len(ranges) != 1 or len(next(iter(ranges))) != 2:
        raise ConfigError(
            f"a merge that is read back takes the same layers of every model, but "
            f"{where}sources of {name} have the ranges {sorted(ranges)}: layers that are stacked "
            "anew cannot be said by coefficients"
        )
    ((first, stop),) = ranges
    each = {spelled(source["model"]): source.get("parameters") or {} for source in sources}
    return Slice(int(first), int(stop) - 1, each, plain.get("parameters") or {})


def _refuse_other_layers(plain: Any, slices: list[Slice], n_layers: int | None, name: str) -> None:
    """Slices must be the model's layers in order, of the same models everywhere."""
    firsts = [0, *(int(part.last or 0) + 1 for part in slices)]
    is_whole = n_layers is None or firsts[-1] == n_layers
    if [part.first for part in slices] != firsts[:-1] or not is_whole:
        raise ConfigError(
            f"a merge that is read back has the layers of its models in their order, but the "
            f"{len(plain)} slices of {name} have others: layers that are stacked anew cannot be "
            "said by coefficients"
        )
    if len({frozenset(part.each) for part in slices}) > 1:
        raise ConfigError(
            f"a merge that is read back has the same models in all slices, but {name} has not: "
            "list every model in every slice, with weight 0 where it has no part"
        )


def _position(part: Slice, layer: int | None) -> float | None:
    """Where a layer is in its slice, from 0 to 1; 1 in a slice of one layer, 0 outside layers."""
    if layer is None:
        return 0.0
    if part.last is None:
        return None
    length = part.last - part.first
    return (layer - part.first) / length if length else 1.0
