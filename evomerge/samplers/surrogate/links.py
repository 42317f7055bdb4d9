"""Links between losses and what a surrogate models: a loss of an accuracy is no line."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import expit, logit

from evomerge.datatypes import FloatArray

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()

EDGE = 0.01
"""Accuracies are kept so far from 0 and 1 before their logit is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean and variance of losses, with derivatives by the mean and variance of the latent.

    All of one shape. `mean_by_variance` is d mean / d latent variance, and so on.
    """

    mean: FloatArray
    variance: FloatArray
    mean_by_mean: FloatArray
    mean_by_variance: FloatArray
    variance_by_mean: FloatArray
    variance_by_variance: FloatArray


class Link(Protocol):
    """A monotone function of losses; less stays better."""

    name: str

    def latent(self, losses: FloatArray) -> FloatArray:
        """What is modelled in the place of losses."""

    def losses(self, latent: FloatArray) -> FloatArray:
        """The inverse."""

    def slope(self, losses: FloatArray) -> FloatArray:
        """The derivative of `latent`, which scales standard errors."""

    def moments(self, mean: FloatArray, variance: FloatArray) -> Moments:
        """Of losses whose latent is normal."""


class Identity:
    """Losses as they are."""

    name = "identity"

    def latent(self, losses: FloatArray) -> FloatArray:
        """The losses."""
        return losses

    def losses(self, latent: FloatArray) -> FloatArray:
        """The latent."""
        return latent

    def slope(self, losses: FloatArray) -> FloatArray:
        """One."""
        return np.ones_like(losses)

    def moments(self, mean: FloatArray, variance: FloatArray) -> Moments:
        """The latent's."""
        one, zero = np.ones_like(mean), np.zeros_like(mean)
        return Moments(mean, variance, one, zero, zero, one)


class Logit:
    """Of losses in [offset, offset + 1]: accuracies have the offset -1, error rates 0."""

    name = "logit"

    def __init__(self, offset: float) -> None:
        self._offset = offset

    @classmethod
    def fitting(cls, losses: FloatArray) -> "Logit | None":
        """The link of losses that all lie in [-1, 0] or in [0, 1]; None for others."""
        if len(losses) and losses.min() >= -1.0 and losses.max() <= 0.0:
            return cls(-1.0)
        if len(losses) and losses.min() >= 0.0 and losses.max() <= 1.0:
            return cls(0.0)
        return None

    @property
    def worst(self) -> float:
        """The loss of a share of nothing."""
        return self._offset + 1.0

    def share(self, losses: FloatArray) -> FloatArray:
        """How large a part of the way from best to worst a loss is, strictly inside (0, 1)."""
        return np.clip(losses - self._offset, EDGE, 1.0 - EDGE)

    def latent(self, losses: FloatArray) -> FloatArray:
        """Log odds of a loss."""
        return np.asarray(logit(self.share(losses)))

    def losses(self, latent: FloatArray) -> FloatArray:
        """The inverse."""
        return np.asarray(self._offset + expit(latent))

    def slope(self, losses: FloatArray) -> FloatArray:
        """1 / (p (1 - p))."""
        p = self.share(losses)
        return np.asarray(1.0 / (p * (1.0 - p)))

    def moments(self, mean: FloatArray, variance: FloatArray) -> Moments:
        """By Gauss-Hermite quadrature with nine nodes; derivatives are those of the quadrature."""
        deviation = np.sqrt(variance)
        p = expit(mean[..., None] + deviation[..., None] * _NODES)
        h, dh = self._offset + p, p * (1.0 - p)
        m = h @ _WEIGHTS
        v = np.maximum((h - m[..., None]) ** 2 @ _WEIGHTS, 1e-14)
        by_mean = dh @ _WEIGHTS
        by_variance = dh @ (_WEIGHTS * _NODES) / (2.0 * deviation)
        return Moments(
            m,
            v,
            by_mean,
            by_variance,
            2.0 * ((h * dh) @ _WEIGHTS - m * by_mean),
            (h * dh) @ (_WEIGHTS * _NODES) / deviation - 2.0 * m * by_variance,
        )
