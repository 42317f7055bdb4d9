"""LiNeS: coefficients rise or fall in a straight line with depth (Wang et al. 2024)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import FloatArray, Group
from search_spaces.genes import Gene
from search_spaces.maps.coefficient_map import RANGE, Range, coefficient_range
from search_spaces.options import interval

SLOPE_LOW, SLOPE_HIGH = -1.0, 1.5
SLOPE = 0.4
"""Where the method itself starts: its slope is tuned like the coefficient of task arithmetic."""

OPTIONS: Mapping[str, object] = {**RANGE, "slope_low": SLOPE_LOW, "slope_high": SLOPE_HIGH}


@dataclass(frozen=True, slots=True)
class Lines:
    """`alpha_k + beta_k l / (L - 1)` in layer l of L; `alpha_k` outside the layers.

    Coefficients are kept in the range of alpha.
    """

    experts: tuple[str, ...]
    depths: tuple[float, ...]
    range: Range
    slopes: tuple[float, float]

    @property
    def genes(self) -> tuple[Gene, ...]:
        """Alpha and beta of each expert."""
        low, high, _ = self.range
        return tuple(
            gene
            for expert in self.experts
            for gene in (
                Gene(f"{expert} @ first layer", low, high),
                Gene(f"{expert} @ slope", *self.slopes),
            )
        )

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """Flat, then the method's own: from the first start upwards."""
        n = len(self.experts)
        flat = min(max(0.0, self.slopes[0]), self.slopes[1])
        rising = min(max(SLOPE, self.slopes[0]), self.slopes[1])
        lines = [*((alpha, flat) for alpha in self.range.starts), (self.range.starts[0], rising)]
        return tuple(line * n for line in dict.fromkeys(lines))

    def matrix(self, values: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        alpha, beta = values.reshape(-1, 2, 1).transpose(1, 0, 2)
        C = alpha + beta * np.array(self.depths)
        return np.asarray(np.clip(C, self.range.low, self.range.high))


def lines(experts: Sequence[str], groups: Sequence[Group], options: Mapping[str, object]) -> Lines:
    """Two genes per expert."""
    slopes = interval(options, SLOPE_LOW, SLOPE_HIGH, prefix="slope_")
    depths = tuple(0.0 if group.layer is None else group.depth for group in groups)
    return Lines(tuple(experts), depths, coefficient_range(options, len(experts)), slopes)
