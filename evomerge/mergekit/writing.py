"""A recipe as a mergekit file that makes the same model."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import Recipe
from evomerge.errors import ConfigError
from evomerge.mergekit.filters import separate
from evomerge.mergekit.methods import Row, Value, say

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Names:
    """What a file calls models and tensors.

    Attributes:
        base: `path` or `path@revision`.
        experts: The same for every expert, in the recipe's order; `base+adapter` for an adapter.
        tensors: The label of the group of every tensor, by its name in the files, aliases of tied
            weights included.
        dtype: Of the base's weights.
        aligns_tokens: Whether rows of vocabularies are to be brought together by token. If not, the
            base's tokenizer is taken all the same, and padding rows stay.
    """

    base: str
    experts: tuple[str, ...]
    tensors: Mapping[str, str]
    dtype: str
    aligns_tokens: bool = False


def reference(path: str, revision: str | None = None) -> str:
    """A model as mergekit spells it.

    Raises:
        ConfigError: The path or the revision has a sign that mergekit cuts it at.
    """
    for part in (path, revision or ""):
        if set("+@") & set(part):
            raise ConfigError(
                f"a model's path in a mergekit file has no + and no @, at which it is cut, but "
                f"there is {part!r}: rename it, or export the weights"
            )
    return path if revision is None else f"{path}@{revision}"


def merge_file(recipe: Recipe, names: Names, *, comments: Sequence[str] = ()) -> str:
    """The YAML text.

    Arithmetic in fp32 and one rounding, as here; every number by filters, one for each group of
    tensors (or layer, or for all, where their numbers are equal), since gradients over depth give
    embeddings and head the numbers of the first layer.

    Args:
        recipe: Of the groups that `names.tensors` names.
        names: Of models and tensors.
        comments: Lines that stand above.

    Raises:
        ConfigError: mergekit cannot make this model; the message says why.
    """
    said = say(recipe)
    columns = {label: g for g, label in enumerate(recipe.groups)}
    by_group = [v for one in (said.shared, *said.each) for v in one.values() if _is_row(v)]
    entries = _entries(names.tensors, columns, [v for v in by_group if isinstance(v, tuple)])

    def value(v: Value, indent: int) -> str:
        if not isinstance(v, tuple):
            return f" {_scalar(v)}"
        if len(set(v)) == 1:
            return f" {_scalar(v[0])}"
        lines = [
            f"- {{filter: {json.dumps(fragment)}, value: {_scalar(v[g])}}}"
            for fragment, g in entries
        ]
        lines.append(f"- {{value: {_scalar(said.rest)}}}")
        return "".join(f"\n{' ' * indent}{line}" for line in lines)

    lines = [f"# {line}" for line in (*comments, *said.caveats)]
    lines.append(f"merge_method: {said.method}")
    if said.has_base:
        lines.append(f"base_model: {json.dumps(names.base)}")
    lines.append("models:")
    for model, parameters in zip(names.experts, said.each, strict=True):
        lines.append(f"  - model: {json.dumps(model)}")
        if parameters:
            lines.append("    parameters:")
            lines += [f"      {name}:{value(v, 8)}" for name, v in parameters.items()]
    if said.shared:
        lines.append("parameters:")
        lines += [f"  {name}:{value(v, 4)}" for name, v in said.shared.items()]
    exact = "float64" if names.dtype == "float64" else "float32"
    lines += [f"dtype: {exact}", f"out_dtype: {names.dtype}"]
    if names.aligns_tokens:
        tokenizer = "base" if said.has_base else json.dumps(names.base)
        lines.append(f"tokenizer_source: {tokenizer}")
    return "\n".join(lines) + "\n"


def _is_row(value: Value) -> bool:
    return isinstance(value, tuple)


def _entries(
    tensors: Mapping[str, str], columns: Mapping[str, int], rows: Sequence[Row]
) -> list[tuple[str, int]]:
    """Fragments of names, each with the number of a group whose numbers are right for it.

    The groups of a layer share an entry where no row tells them apart.
    """
    numbers = {label: tuple(row[g] for row in rows) for label, g in columns.items()}
    alike: dict[str, set[tuple[float, ...]]] = {}
    for label in tensors.values():
        alike.setdefault(_place(label), set()).add(numbers[label])
    keys = {
        name: _place(label) if len(alike[_place(label)]) == 1 else label
        for name, label in tensors.items()
    }
    a_group = {keys[name]: columns[label] for name, label in tensors.items()}
    return [(fragment, a_group[key]) for fragment, key in separate(keys)]


def _place(label: str) -> str:
    """The layer of a group's label; the label itself outside the layers."""
    layer = re.match(r"\d+(?=\.)", label)
    return layer[0] if layer else label


def _scalar(value: object) -> str:
    """YAML of a scalar; numbers in decimals: YAML 1.1 takes `1e-3` for a word."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return np.format_float_positional(value, trim="0")
    return json.dumps(value) if isinstance(value, str) else str(value)
