"""What may vary, in its own units, and its coordinates in the unit cube."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evomerge.datatypes import Dimension, FloatArray


@dataclass(frozen=True, slots=True)
class Gene:
    """A number in `[low, high]`.

    `whole` ones are whole numbers, all equally likely; `choice` ones the same from 0, without an
    order; `binary` ones 0 or 1. The `log` scale makes equal factors equally likely.
    """

    label: str
    low: float = 0.0
    high: float = 1.0
    kind: Literal["real", "whole", "binary", "choice"] = "real"
    scale: Literal["linear", "log"] = "linear"

    @property
    def dimension(self) -> Dimension:
        """How a sampler sees it."""
        if self.kind == "choice":
            return Dimension(self.label, "categorical", round(self.high) + 1)
        return Dimension(self.label, "binary" if self.kind == "binary" else "real")


class Genes:
    """From coordinates to values and back, for many genes at once."""

    def __init__(self, genes: Sequence[Gene]) -> None:
        self._low = np.array([gene.low for gene in genes], dtype=np.float64)
        self._high = np.array([gene.high for gene in genes], dtype=np.float64)
        self._whole = np.array([gene.kind in ("whole", "choice") for gene in genes], dtype=bool)
        self._binary = np.array([gene.kind == "binary" for gene in genes], dtype=bool)
        self._log = np.array([gene.scale == "log" for gene in genes], dtype=bool)
        self._wide = self._high - self._low

    def values(self, u: FloatArray) -> FloatArray:
        """Values of a point, shape `(n_genes,)` like the point."""
        v = self._low + self._wide * u
        if self._log.any():
            low, high = self._low[self._log], self._high[self._log]
            v[self._log] = np.clip(low * (high / low) ** u[self._log], low, high)
        if self._whole.any():
            low, high = self._low[self._whole], self._high[self._whole]
            v[self._whole] = np.minimum(np.floor(low + (high - low + 1) * u[self._whole]), high)
        v[self._binary] = u[self._binary] >= 0.5
        return v

    def positions(self, values: Sequence[float]) -> tuple[float, ...]:
        """The point with these values; those outside their ranges move to the nearest end."""
        v = np.clip(np.array(values, dtype=np.float64), self._low, self._high)
        u = (v - self._low) / self._wide
        u[self._log] = np.log(v[self._log] / self._low[self._log]) / np.log(
            self._high[self._log] / self._low[self._log]
        )
        middle = (v - self._low + 0.5) / (self._wide + 1)
        u[self._whole] = np.round(middle[self._whole], 9)
        return tuple(np.clip(u, 0.0, 1.0).tolist())
