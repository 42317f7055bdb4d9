"""What a coefficient map is: genes, where to start, and a matrix of coefficients."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from evomerge.datatypes import FloatArray, Group
from search_spaces.genes import Gene
from search_spaces.options import DECIMALS, interval, starts

LOW, HIGH = -0.2, 1.5
SCALES = (0.3, 0.4)
"""Task arithmetic at these is known to be good, besides the average."""


class CoefficientMap(Protocol):
    """From the values of its genes to coefficients; pure."""

    @property
    def genes(self) -> tuple[Gene, ...]:
        """What varies."""

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """Values of the genes to start from, best guess first; at least one."""

    def matrix(self, values: FloatArray) -> FloatArray:
        """From `(n_genes,)` values to `C[k, g]`, shape `(n_experts, n_groups)`."""


Build = Callable[[Sequence[str], Sequence[Group], Mapping[str, object]], CoefficientMap]
"""From experts, groups and the map's options (complete, keys known) to a map."""


class Range(NamedTuple):
    """Of a coefficient, and the values that are tried first."""

    low: float
    high: float
    starts: tuple[float, ...]


RANGE: Mapping[str, object] = {"low": LOW, "high": HIGH, "start": None}
"""The options of a range and their defaults."""


def coefficient_range(options: Mapping[str, object], n_experts: int) -> Range:
    """The range of `low`, `high` and `start`.

    Without `start` it begins at the average, then at task arithmetic of 0.3 and 0.4, each moved to
    the nearest value inside the range; values that coincide appear once.

    Raises:
        ConfigError: an option is no number, the range does not rise, or a start is outside of it.
    """
    low, high = interval(options, LOW, HIGH)
    said = starts("the start of coefficients", options.get("start"), low, high, n_experts)
    wished = np.clip((1.0 / n_experts, *SCALES) if said is None else said, low, high)
    return Range(low, high, tuple(dict.fromkeys(np.round(wished, DECIMALS).tolist())))


def label_of(expert: str, place: str) -> str:
    """How a gene of an expert at a place is called; the empty place is the whole model."""
    return f"{expert} @ {place}" if place else expert
