"""The split point of M2N2: one set of coefficients before a cut, another after it (GECCO 2025)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import FloatArray, Group
from search_spaces.genes import Gene
from search_spaces.maps.coefficient_map import RANGE, Range, coefficient_range, label_of
from search_spaces.options import known

OPTIONS: Mapping[str, object] = {**RANGE, "after": "mirrored"}


@dataclass(frozen=True, slots=True)
class SplitPoint:
    """Coefficients c before the cut, c' after it.

    The groups are laid end to end by their parameters; a group is before the cut if its middle is.
    Mirrored, `c'_k = 2 mean(c) - c_k` within the range: of two experts with weights w and 1 - w
    the second half has 1 - w and w, as in M2N2. Free, c' has genes of its own.
    """

    experts: tuple[str, ...]
    middles: tuple[float, ...]
    range: Range
    is_free: bool

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The coefficients before the cut, those after it if they are free, and the cut."""
        low, high, _ = self.range
        places = ("before the cut", "after the cut") if self.is_free else ("before the cut",)
        return (
            *(Gene(label_of(k, place), low, high) for place in places for k in self.experts),
            Gene("cut"),
        )

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """The same coefficient everywhere, the cut in the middle."""
        n = len(self.experts) * (2 if self.is_free else 1)
        return tuple((*(value,) * n, 0.5) for value in self.range.starts)

    def matrix(self, values: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        n = len(self.experts)
        before, cut = values[:n, None], values[-1]
        after = values[n:-1, None] if self.is_free else 2.0 * before.mean() - before
        C = np.where(np.array(self.middles) < cut, before, after)
        return np.clip(C, self.range.low, self.range.high)


def split_point(
    experts: Sequence[str], groups: Sequence[Group], options: Mapping[str, object]
) -> SplitPoint:
    """`after` is mirrored (K + 1 genes for K experts) or free (2 K + 1).

    Raises:
        ConfigError: it is something else.
    """
    after = known("after of the map split_point", options["after"], ["mirrored", "free"])
    sizes = np.array([max(group.n_parameters, 1) for group in groups], dtype=np.float64)
    middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    span = coefficient_range(options, len(experts))
    return SplitPoint(tuple(experts), tuple(middles.tolist()), span, after == "free")
