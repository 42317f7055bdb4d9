"""Merge-like accuracies: sigmoids of quadratics around optima that the tasks nearly share.

The generator and its drawing order are fixed, so that numbers can be compared between versions.
"""

import numpy as np

from evomerge.datatypes import Evidence, FloatArray

from .surface import Binomial

LOWEST, HEIGHT, SHIFT = 0.2, 0.7, 2.5
"""An accuracy lies between LOWEST and LOWEST + HEIGHT."""

RIDGES = 12


class MergeLike:
    """`acc_i(c) = 0.2 + 0.7 sigmoid(2.5 - q_i(c))`, `q_i` a quadratic around an optimum.

    Optima are normal around a point that the objectives share; the spectrum of each quadratic
    falls over two decades, in a random basis; q averages 4 over the cube.

    Kinds: `well_specified` as above; `rugged`: ridges added to a power of q, which no quadratic
    fits; `plateau`: accuracies saturate, so that only a narrow rim has a slope; `cliff`: beyond a
    threshold on the sum of the coefficients a task collapses (as Flan-T5's do).
    """

    def __init__(self, kind: str, n_dimensions: int, n_objectives: int, instance: int) -> None:
        d = self.n_dimensions = n_dimensions
        rng = np.random.default_rng(1000 + instance)
        self._kind = kind
        self._noise = Binomial()
        self.reference = np.full(n_objectives, -LOWEST)
        base = rng.uniform(0.3, 0.7, d)
        self._optima, self._quadratics = [], []
        self._ridges: list[tuple[FloatArray, FloatArray]] = []
        for _ in range(n_objectives):
            c = np.clip(base + rng.normal(0.0, 0.22, d), 0.0, 1.0)
            A = np.linalg.qr(rng.normal(size=(d, d)))[0]
            Q = A @ np.diag(np.logspace(0, -2, d)) @ A.T + 0.05 * np.diag(rng.random(d))
            if kind == "rugged":
                self._ridges.append(
                    (rng.normal(0.0, 1.6, (RIDGES, d)), rng.uniform(0.0, 2.0 * np.pi, RIDGES))
                )
            q = _quadratic(rng.random((4000, d)), c, Q)
            self._optima.append(c)
            self._quadratics.append(Q * (4.0 / q.mean()))

    def truth(self, points: FloatArray) -> FloatArray:
        """Minus the accuracies."""
        losses = []
        for i, (c, Q) in enumerate(zip(self._optima, self._quadratics, strict=True)):
            q = _quadratic(points, c, Q)
            shift, slope = SHIFT, 1.0
            if self._kind == "rugged":
                W, u = self._ridges[i]
                q = q**0.75 + 1.8 * np.abs(np.cos(points @ W.T + u)).mean(axis=1) - 0.6
            elif self._kind == "plateau":
                slope = 3.0
            accuracy = LOWEST + HEIGHT / (1.0 + np.exp(slope * (q - shift)))
            if self._kind == "cliff":
                total = points.mean(axis=1) - c.mean()
                accuracy = np.where(total > 0.06, LOWEST, accuracy)
            losses.append(-accuracy)
        return np.stack(losses, axis=1)

    def observe(self, losses: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, Evidence]:
        """Counts over 500 items."""
        return self._noise.observe(losses, rng)


def _quadratic(points: FloatArray, c: FloatArray, Q: FloatArray) -> FloatArray:
    away = points - c
    return np.einsum("ni,ij,nj->n", away, Q, away, optimize=True)
