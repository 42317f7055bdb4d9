"""Ways to divide the groups of a model into places that share one number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray, Group

PARTS = ("attention", "mlp", "rest")


@dataclass(frozen=True, slots=True)
class Partition:
    """Places with readable labels, none of them empty; `index[g]` is the place of group g."""

    labels: tuple[str, ...]
    index: tuple[int, ...]

    def values(self, v: FloatArray) -> FloatArray:
        """Give every group its place's number: `(n_places, n)` -> `(n_groups, n)`."""
        chosen: NDArray[np.intp] = np.array(self.index, dtype=np.intp)
        return v[chosen]


def part(group: Group) -> str:
    """What a group does, coarsely: attention, mlp, or rest (norms, embedding, head, other)."""
    return {"attn": "attention", "mlp": "mlp"}.get(group.kind.split(".")[0], "rest")


def everything(groups: Sequence[Group]) -> Partition:
    """One place for the whole model, without a label."""
    return Partition(labels=("",), index=(0,) * len(groups))


def by_depth(groups: Sequence[Group], bins: int) -> Partition:
    """Runs of consecutive layers, as equal in number as they can be.

    What comes before the layers (embedding) counts to the first bin, what comes after (final norm,
    head) to the last. With more bins than layers some bins are empty and left out.
    """
    n_layers = _n_layers(groups)
    return _divide(groups, lambda group: _bin(group, n_layers, bins))


def by_part_and_depth(groups: Sequence[Group], bins: int) -> Partition:
    """Attention, mlp and rest, each in depth bins of its own."""
    n_layers = _n_layers(groups)

    def key(group: Group) -> tuple[int, str]:
        number, label = _bin(group, n_layers, bins)
        return PARTS.index(part(group)) * bins + number, f"{part(group)}, {label}"

    return _divide(groups, key)


def by_part(groups: Sequence[Group]) -> Partition:
    """Attention, mlp and rest."""
    return _divide(groups, lambda group: (PARTS.index(part(group)), part(group)))


def by_layer(groups: Sequence[Group]) -> Partition:
    """Every layer, and every kind outside the layers (embed, head, norm, other)."""
    n_layers = _n_layers(groups)
    kinds = sorted({group.kind for group in groups if group.layer is None})

    def key(group: Group) -> tuple[int, str]:
        if group.layer is None:
            return n_layers + kinds.index(group.kind), group.kind
        return group.layer, f"layer {group.layer}"

    return _divide(groups, key)


def by_group(groups: Sequence[Group]) -> Partition:
    """Every group: the tensors of one kind in one layer, mostly one tensor."""
    return Partition(labels=tuple(g.label for g in groups), index=tuple(range(len(groups))))


def by_block(groups: Sequence[Group]) -> Partition:
    """Every layer, and all that is outside the layers together."""
    n_layers = _n_layers(groups)
    return _divide(
        groups,
        lambda group: (
            (n_layers, "outside the layers")
            if group.layer is None
            else (group.layer, f"layer {group.layer}")
        ),
    )


def _n_layers(groups: Sequence[Group]) -> int:
    return 1 + max((group.layer for group in groups if group.layer is not None), default=-1)


def _bin(group: Group, n_layers: int, bins: int) -> tuple[int, str]:
    if group.layer is not None:
        number = group.layer * bins // n_layers
    else:
        number = 0 if group.depth < 0.5 else bins - 1
    return number, f"depth {number + 1}/{bins}"


def _divide(groups: Sequence[Group], key: Callable[[Group], tuple[int, str]]) -> Partition:
    """Number the keys that occur in their order; a key is (rank, label)."""
    keys = [key(group) for group in groups]
    places = sorted(set(keys))
    return Partition(
        labels=tuple(label for _, label in places),
        index=tuple(places.index(k) for k in keys),
    )
