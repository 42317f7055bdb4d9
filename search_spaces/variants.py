"""Categorical variants: several spaces as one, their coordinates shared."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.datatypes import Dimension, Recipe
from evomerge.protocols import SearchSpace


@dataclass(slots=True)
class _Slot:
    """A coordinate and the variants that use it: number of the variant -> its own dimension."""

    kind: tuple[str, int]
    users: dict[int, int] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)


class VariantSpace:
    """A choice between spaces; a point holds the choice and what the chosen space needs.

    Dimensions of the same label and kind share a coordinate; what is left shares as far as the
    kinds allow, so that there are as many coordinates of a kind as the variant with most of them
    has, not the sum. A coordinate that the chosen variant does not use changes nothing.
    """

    def __init__(self, names: Sequence[str], spaces: Sequence[SearchSpace]) -> None:
        """Share the coordinates out.

        Raises:
            ValueError: there are fewer than two spaces, or not one name for each.
        """
        if len(spaces) < 2 or len(set(names)) != len(spaces) or len(names) != len(spaces):
            raise ValueError(f"variants need two spaces and distinct names, got {list(names)}")
        self._spaces = tuple(spaces)
        slots = _shared([space.dimensions for space in spaces])
        self._choice = Dimension(f"variant ({', '.join(names)})", "categorical", len(spaces))
        self._dimensions = (self._choice, *(_dimension(slot, names) for slot in slots))
        # for each variant: the coordinates of its own dimensions, in their order
        self._coordinates = tuple(
            tuple(
                1 + next(s for s, slot in enumerate(slots) if slot.users.get(i) == own)
                for own in range(len(space.dimensions))
            )
            for i, space in enumerate(spaces)
        )
        # an unused coordinate stands where the first variant that uses it would start
        self._default = tuple(
            spaces[min(slot.users)].anchors[0][slot.users[min(slot.users)]] for slot in slots
        )

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The choice of a variant, then the shared coordinates."""
        return self._dimensions

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """The best guess of each variant, in the order of the variants."""
        found = []
        for i, (space, coordinates) in enumerate(zip(self._spaces, self._coordinates, strict=True)):
            point = [self._choice.position(i), *self._default]
            for coordinate, u in zip(coordinates, space.anchors[0], strict=True):
                point[coordinate] = u
            found.append(tuple(point))
        return tuple(found)

    def decode(self, u: Sequence[float]) -> Recipe:
        """The recipe of a point: that of the chosen variant.

        Raises:
            ValueError: `u` has another length or leaves [0, 1].
        """
        point = np.asarray(u, dtype=np.float64)
        if point.shape != (len(self._dimensions),):
            raise ValueError(
                f"the space has {len(self._dimensions)} dimensions, got a point of shape "
                f"{point.shape}"
            )
        if not ((point >= 0.0) & (point <= 1.0)).all():  # False for NaN
            raise ValueError(f"a point must lie in the unit cube, got {tuple(u)}")
        i = self._choice.choice(float(point[0]))
        return self._spaces[i].decode(point[list(self._coordinates[i])].tolist())


def _shared(variants: Sequence[Sequence[Dimension]]) -> list[_Slot]:
    """Give every dimension of every variant a slot: that of its label, else the first free one."""
    slots: list[_Slot] = []
    for i, dimensions in enumerate(variants):
        without: list[int] = []
        for own, dimension in enumerate(dimensions):
            kind = (dimension.kind, dimension.n_choices)
            same = [s for s in slots if s.kind == kind and dimension.label in s.labels.values()]
            if same and i not in same[0].users:
                same[0].users[i], same[0].labels[i] = own, dimension.label
            else:
                without.append(own)
        for own in without:
            dimension = dimensions[own]
            kind = (dimension.kind, dimension.n_choices)
            free = next((s for s in slots if s.kind == kind and i not in s.users), None)
            if free is None:
                free = _Slot(kind)
                slots.append(free)
            free.users[i], free.labels[i] = own, dimension.label
    return slots


def _dimension(slot: _Slot, names: Sequence[str]) -> Dimension:
    """A coordinate; its label tells what it is in which variants, unless it is the same in all."""
    kind, n_choices = slot.kind
    label = next(iter(slot.labels.values()))
    if len(slot.users) < len(names) or len(set(slot.labels.values())) > 1:
        by_label: dict[str, list[str]] = {}
        for i, own in slot.labels.items():
            by_label.setdefault(own, []).append(names[i])
        label = "; ".join(f"{own} ({', '.join(users)})" for own, users in by_label.items())
    return Dimension(label, kind, n_choices)  # type: ignore[arg-type]  # a kind of a Dimension
