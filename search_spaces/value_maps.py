"""Ways to spread a few coefficients per expert over all groups of a model.

A value map has places with labels, one number each per expert, and gives every group a value in
the hull of its places' numbers: equal numbers give that number everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evomerge.datatypes import FloatArray, Group
from search_spaces.options import count
from search_spaces.partitions import by_depth, by_layer, by_part_and_depth, everything


class ValueMap(Protocol):
    """Places and how their numbers reach the groups; pure."""

    @property
    def labels(self) -> tuple[str, ...]:
        """One per place; the empty label stands for the whole model."""

    def values(self, v: FloatArray) -> FloatArray:
        """From `(n_places, n_experts)` numbers to `(n_groups, n_experts)` values."""


@dataclass(frozen=True, slots=True)
class DepthSpline:
    """A curve over depth through knots at equal distances from the first layer to the last.

    Between the knots runs the monotone cubic of Fritsch and Butland (1984), "PCHIP": exact at the
    knots, it never leaves the range of the two knots beside it, so a promised range holds
    everywhere. Two knots give a straight line, the linear scaling of LiNeS (Wang et al. 2024).
    """

    knots: int
    depths: tuple[float, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The depths of the knots."""
        return tuple(f"depth {place:.2f}" for place in np.linspace(0.0, 1.0, self.knots))

    def values(self, v: FloatArray) -> FloatArray:
        """From `(knots, n_experts)` numbers to `(n_groups, n_experts)` values."""
        from scipy.interpolate import PchipInterpolator

        places = np.linspace(0.0, 1.0, self.knots)
        return np.asarray(PchipInterpolator(places, v, axis=0)(np.array(self.depths)))


def depth_spline(groups: Sequence[Group], knots: object) -> ValueMap:
    """`knots` numbers per expert, interpolated over depth.

    A model with fewer different depths gets as many knots as it has: more would move nothing.
    """
    depths = tuple(group.depth for group in groups)
    n_knots = min(count("knots", knots, 2), len(set(depths)))
    return everything(groups) if n_knots == 1 else DepthSpline(n_knots, depths)


VALUE_MAPS: dict[str, tuple[Callable[..., ValueMap], Mapping[str, object]]] = {
    "global": (everything, {}),
    "depth_bins": (lambda groups, bins: by_depth(groups, count("bins", bins, 1)), {"bins": 4}),
    "depth_spline": (depth_spline, {"knots": 3}),
    "kind_depth": (
        lambda groups, bins: by_part_and_depth(groups, count("bins", bins, 1)),
        {"bins": 2},
    ),
    "per_layer": (by_layer, {}),
}
"""Name -> function of the groups and of the map's own options, and those options' defaults."""
