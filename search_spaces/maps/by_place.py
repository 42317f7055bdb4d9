"""One coefficient per expert and place: global, depth bins, kinds, layers, tensors, splines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import FloatArray
from search_spaces.genes import Gene
from search_spaces.maps.coefficient_map import Range, label_of
from search_spaces.value_maps import ValueMap


@dataclass(frozen=True, slots=True)
class ByPlace:
    """Every expert has a number at every place of a value map, all in one range."""

    experts: tuple[str, ...]
    places: ValueMap
    range: Range

    @property
    def genes(self) -> tuple[Gene, ...]:
        """Expert by expert, place by place."""
        low, high, _ = self.range
        return tuple(
            Gene(label_of(expert, place), low, high)
            for expert in self.experts
            for place in self.places.labels
        )

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """The same number everywhere."""
        n_genes = len(self.experts) * len(self.places.labels)
        return tuple((value,) * n_genes for value in self.range.starts)

    def matrix(self, values: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        v = values.reshape(len(self.experts), -1).T
        # rounding must not leave the range
        return np.clip(self.places.values(v), self.range.low, self.range.high).T


def by_place(experts: Sequence[str], places: ValueMap, span: Range) -> ByPlace:
    """Bind a value map to experts and a range."""
    return ByPlace(tuple(experts), places, span)
