"""Expected hypervolume improvement of normal losses, with its gradient."""

import math
from typing import Protocol

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from evomerge.datatypes import FloatArray
from evomerge.samplers.surrogate.boxes import open_boxes

MOST_BOXES = 2500
"""More make the exact improvement slower than a sampled one; about 4 objectives."""

N_DIRECTIONS, N_SAMPLES = 128, 32

_FLOOR = 1e-300


class Improvement(Protocol):
    """What a candidate is expected to add to the hypervolume of a front."""

    def value(self, mean: FloatArray, variance: FloatArray) -> FloatArray:
        """Shape `(n,)`, of `(n, n_objectives)` independent normal losses."""

    def gradient(
        self, mean: FloatArray, variance: FloatArray
    ) -> tuple[float, FloatArray, FloatArray]:
        """Value for `(n_objectives,)` losses, its gradient by the means and by the variances."""


def improvement_over(
    front: FloatArray, reference: FloatArray, rng: np.random.Generator
) -> Improvement:
    """Exact by boxes for few objectives, sampled along directions for more."""
    if front.shape[1] <= 4:
        lower, upper = open_boxes(front, reference)
        if len(upper) <= MOST_BOXES:
            return ExactImprovement(lower, upper)
    return SampledImprovement(front, reference, rng)


class ExactImprovement:
    """The sum over open boxes of products of expected overlaps (Yang et al. 2019)."""

    def __init__(self, lower: FloatArray, upper: FloatArray) -> None:
        self._bounded = np.isfinite(lower)
        self._lower = np.where(self._bounded, lower, 0.0)
        self._upper = upper

    def _overlaps(
        self, mean: FloatArray, deviation: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Expected overlap with each box in each objective, and its derivatives."""
        m, s = mean[:, None, :], deviation[:, None, :]
        up, up_m, up_s = _expected_gain(self._upper[None], m, s)
        low, low_m, low_s = (
            part * self._bounded for part in _expected_gain(self._lower[None], m, s)
        )
        return np.maximum(up - low, _FLOOR), up_m - low_m, up_s - low_s

    def value(self, mean: FloatArray, variance: FloatArray) -> FloatArray:
        """Shape `(n,)`."""
        parts = [
            self._overlaps(mean[i : i + 64], np.sqrt(variance[i : i + 64]))[0]
            .prod(axis=2)
            .sum(axis=1)
            for i in range(0, len(mean), 64)
        ]
        return np.concatenate(parts)

    def gradient(
        self, mean: FloatArray, variance: FloatArray
    ) -> tuple[float, FloatArray, FloatArray]:
        """At one point."""
        deviation = np.sqrt(variance)
        overlap, by_mean, by_deviation = self._overlaps(mean[None], deviation[None])
        products = overlap.prod(axis=2)
        rest = products[:, :, None] / overlap
        return (
            float(products.sum()),
            (rest * by_mean).sum(axis=(0, 1)),
            (rest * by_deviation).sum(axis=(0, 1)) / (2.0 * deviation),
        )


class SampledImprovement:
    """The hypervolume as a mean over directions (Deng and Zhang 2019), over common samples.

    Along a direction w the front reaches g = max over points of min_i (r_i - y_i) / w_i, and the
    hypervolume is proportional to the mean of g^m.
    """

    def __init__(self, front: FloatArray, reference: FloatArray, rng: np.random.Generator) -> None:
        m = len(reference)
        u = qmc.Sobol(2 * m, rng=rng).random(max(N_DIRECTIONS, N_SAMPLES))
        normal = ndtri(np.clip(u, 1e-6, 1.0 - 1e-6))
        self._size = np.maximum(reference - front.min(axis=0), 1e-9)
        w = np.abs(normal[:N_DIRECTIONS, :m])
        self._inverse = 1.0 / np.maximum(w / np.linalg.norm(w, axis=1, keepdims=True), 1e-6)
        self._samples = normal[:N_SAMPLES, m:]
        self._reference = reference
        reached = self._reach((reference - front) / self._size)
        self._front = np.maximum(reached.max(axis=0), 0.0)
        self._m = m

    def _reach(self, gains: FloatArray) -> FloatArray:
        """Shape `(n, n_directions)` of `(n, n_objectives)` gains on the reference."""
        reached = gains[:, 0, None] * self._inverse[:, 0]
        for i in range(1, gains.shape[1]):  # ten times faster than a minimum over the last axis
            np.minimum(reached, gains[:, i, None] * self._inverse[:, i], out=reached)
        return np.asarray(reached)

    def value(self, mean: FloatArray, variance: FloatArray) -> FloatArray:
        """Shape `(n,)`."""
        values = np.empty(len(mean))
        for i, (m, v) in enumerate(zip(mean, variance, strict=True)):
            y = m + np.sqrt(v) * self._samples
            g = np.maximum(self._reach((self._reference - y) / self._size), self._front)
            values[i] = (g**self._m - self._front**self._m).mean()
        return values

    def gradient(
        self, mean: FloatArray, variance: FloatArray
    ) -> tuple[float, FloatArray, FloatArray]:
        """At one point, of the samples' mean."""
        deviation = np.sqrt(variance)
        y = mean + deviation * self._samples
        scaled = ((self._reference - y) / self._size)[:, None, :] * self._inverse[None]
        least = scaled.argmin(axis=2)
        g = np.take_along_axis(scaled, least[:, :, None], axis=2)[:, :, 0]
        beyond = g > self._front
        value = np.where(beyond, np.abs(g) ** self._m - self._front**self._m, 0.0).mean()
        steepness = np.where(beyond, self._m * np.abs(g) ** (self._m - 1), 0.0) / g.size
        by_mean, by_deviation = np.zeros(self._m), np.zeros(self._m)
        for i in range(self._m):
            here = np.where(least == i, steepness * self._inverse[None, :, i], 0.0).sum(axis=1)
            by_mean[i] = -here.sum() / self._size[i]
            by_deviation[i] = -(here @ self._samples[:, i]) / self._size[i]
        return float(value), by_mean, by_deviation / (2.0 * deviation)


def _expected_gain(
    bound: FloatArray, mean: FloatArray, deviation: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """E[(bound - Y)+] of normal Y, and its derivatives by mean and deviation."""
    t = (bound - mean) / deviation
    below = ndtr(t)
    density = np.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
    return deviation * (t * below + density), -below, density
