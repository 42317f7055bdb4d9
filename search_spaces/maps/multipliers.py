"""Factors by kind: attention and mlp of an expert may count more or less than its other tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import FloatArray, Group
from search_spaces.genes import Gene
from search_spaces.maps.coefficient_map import CoefficientMap, label_of
from search_spaces.options import interval, mapping
from search_spaces.partitions import PARTS, part

LOW, HIGH = 0.5, 1.5
PLACES = tuple(f"factor of {name}" for name in PARTS[:2])


@dataclass(frozen=True, slots=True)
class Multiplied:
    """A map whose coefficients in attention and mlp have factors, one per expert and kind.

    Norms, embedding and head keep theirs. Coefficients stay in the map's range.
    """

    inner: CoefficientMap
    experts: tuple[str, ...]
    parts: tuple[int, ...]
    factors: tuple[float, float]
    clip: tuple[float, float]

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The map's, then the factors expert by expert."""
        own = [Gene(label_of(k, place), *self.factors) for k in self.experts for place in PLACES]
        return (*self.inner.genes, *own)

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """The map's, with factors of one."""
        ones = (1.0,) * (len(PLACES) * len(self.experts))
        return tuple((*anchor, *ones) for anchor in self.inner.anchors)

    def matrix(self, values: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        n = len(PLACES) * len(self.experts)
        factors = values[-n:].reshape(len(self.experts), len(PLACES))
        with_rest = np.concatenate([factors, np.ones((len(self.experts), 1))], axis=1)
        C = self.inner.matrix(values[:-n]) * with_rest[:, np.array(self.parts)]
        return np.asarray(np.clip(C, *self.clip))


def multiplied(
    inner: CoefficientMap,
    experts: Sequence[str],
    groups: Sequence[Group],
    multipliers: object,
    clip: tuple[float, float],
) -> Multiplied:
    """`multipliers` has the range of the factors, `low` and `high`.

    Raises:
        ConfigError: the range is none.
    """
    given = mapping("multipliers", multipliers, ["low", "high"])
    factors = interval(given, LOW, HIGH, of="multipliers")
    parts = tuple(PARTS.index(part(group)) for group in groups)
    return Multiplied(inner, tuple(experts), parts, factors, clip)
