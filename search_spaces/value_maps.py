"""Ways to spread a few coefficients per expert over all groups of a model.

A value map has places with labels, one number each per expert, and gives every group a value in
the hull of its places' numbers: equal numbers give that number everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray, Group
from search_spaces.options import count
from search_spaces.partitions import (
    by_depth,
    by_group,
    by_layer,
    by_part_and_depth,
    everything,
)


class ValueMap(Protocol):
    """Places and how their numbers reach the groups; pure."""

    @property
    def labels(self) -> tuple[str, ...]:
        """One per place; the empty label stands for the whole model."""

    def values(self, v: FloatArray) -> FloatArray:
        """From `(n_places, n_experts)` numbers to `(n_groups, n_experts)` values."""


@dataclass(frozen=True, slots=True, eq=False)
class DepthSpline:
    """A curve over depth through knots at equal distances from the first layer to the last.

    Between the knots runs the monotone cubic of Fritsch and Butland (1984), "PCHIP": exact at the
    knots, it never leaves the range of the two knots beside it, so a promised range holds
    everywhere. Two knots give a straight line over all groups.

    `left[g]` is the knot before group g and `hermite` the four cubic Hermite polynomials there,
    shape `(4, n_groups)`: of the values left and right, and of the slopes left and right.
    """

    knots: int
    left: NDArray[np.intp]
    hermite: FloatArray

    @property
    def labels(self) -> tuple[str, ...]:
        """The depths of the knots."""
        return tuple(f"depth {place:.2f}" for place in np.linspace(0.0, 1.0, self.knots))

    def values(self, v: FloatArray) -> FloatArray:
        """From `(knots, n_experts)` numbers to `(n_groups, n_experts)` values."""
        d = _slopes(v)
        i, j = self.left, self.left + 1
        of_left, of_right, slope_left, slope_right = self.hermite[:, :, None]
        return np.asarray(of_left * v[i] + of_right * v[j] + slope_left * d[i] + slope_right * d[j])


def _slopes(v: FloatArray) -> FloatArray:
    """The slope at each knot, per distance of knots, shape `(knots, n_experts)` like the values."""
    m = np.diff(v, axis=0)  # secants
    if len(m) == 1:
        return np.repeat(m, 2, axis=0)
    d = np.zeros_like(v)
    before, after = m[:-1], m[1:]
    # the harmonic mean of the secants; 0 where they turn
    same = before * after > 0.0
    np.divide(2.0 * before * after, before + after, out=d[1:-1], where=same)
    d[0], d[-1] = _end_slope(m[0], m[1]), _end_slope(m[-1], m[-2])
    return d


def _end_slope(nearest: FloatArray, next_one: FloatArray) -> FloatArray:
    """The three-point slope at an end, cut so that the curve stays monotone."""
    d = (3.0 * nearest - next_one) / 2.0
    turns = (nearest * next_one <= 0.0) & (np.abs(d) > 3.0 * np.abs(nearest))
    d = np.where(turns, 3.0 * nearest, d)
    return np.where(d * nearest <= 0.0, 0.0, d)


def depth_spline(groups: Sequence[Group], knots: object) -> ValueMap:
    """`knots` numbers per expert, interpolated over depth.

    A model with fewer different depths gets as many knots as it has: more would move nothing.
    """
    depths = tuple(group.depth for group in groups)
    n_knots = min(count("knots", knots, 2), len(set(depths)))
    if n_knots == 1:
        return everything(groups)
    place = np.array(depths) * (n_knots - 1)
    left = np.minimum(place.astype(np.intp), n_knots - 2)
    t = place - left
    hermite = np.stack(
        [(1 + 2 * t) * (1 - t) ** 2, t * t * (3 - 2 * t), t * (1 - t) ** 2, t * t * (t - 1)]
    )
    return DepthSpline(n_knots, left, hermite)


VALUE_MAPS: dict[str, tuple[Callable[..., ValueMap], Mapping[str, object]]] = {
    "global": (everything, {}),
    "depth_bins": (lambda groups, bins: by_depth(groups, count("bins", bins, 1)), {"bins": 4}),
    "depth_spline": (depth_spline, {"knots": 3}),
    "kind_depth": (
        lambda groups, bins: by_part_and_depth(groups, count("bins", bins, 1)),
        {"bins": 2},
    ),
    "per_layer": (by_layer, {}),
    "per_tensor": (by_group, {}),
}
"""Name -> function of the groups and of the map's own options, and those options' defaults."""
