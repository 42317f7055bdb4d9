"""The numbers of a mergekit file, brought to the groups of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.datatypes import Group
from evomerge.mergekit.reading import MergeFile
from evomerge.mergekit.settings import number


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's place in the model: `group` indexes the groups, `n_parameters` weighs it."""

    layer: int | None
    is_first: bool
    group: int
    n_parameters: int


def by_tensor(
    file: MergeFile,
    parameter: str,
    tensors: Mapping[str, Tensor],
    model: str | None,
    default: float,
) -> dict[str, float]:
    """What a parameter is for every tensor, by its name in the files.

    Args:
        file: The merge file.
        parameter: Its name.
        tensors: All tensors of the model.
        model: Whose parameter, as the file spells it; None for a common one.
        default: Where the file says nothing.

    Raises:
        ConfigError: A value is no number, or a layer is in none of its slices.
    """
    values: dict[str, float] = {}
    for name, tensor in tensors.items():
        value = file.value(
            parameter, name, layer=tensor.layer, is_first=tensor.is_first, model=model
        )
        values[name] = default if value is None else number(value, parameter)
    return values


def by_group(
    values: Mapping[str, float], tensors: Mapping[str, Tensor], groups: Sequence[Group]
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The mean of every group, weighted by parameters.

    Returns:
        One number per group, and the labels of those groups whose tensors have different ones.
    """
    members: dict[int, list[tuple[float, int]]] = {g: [] for g in range(len(groups))}
    for name, value in values.items():
        members[tensors[name].group].append((value, tensors[name].n_parameters))
    means, mixed = [], []
    for g, of_group in members.items():
        different = {value for value, _ in of_group}
        if len(different) == 1:
            means.append(different.pop())
            continue
        n = sum(size for _, size in of_group)
        means.append(sum(value * size for value, size in of_group) / n if n else 0.0)
        mixed += [groups[g].label] if n else []
    return tuple(means), tuple(mixed)
