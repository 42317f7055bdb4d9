"""T0: a real merge in two coefficients, rebuilt in a second.

Two fine-tunes of a small network on scikit-learn's digits, one on the digits below 5, one on the
others. Search and score use the same 360 images and two coefficients: a regression test of search
quality, no evidence about language models. Differences below .003 are noise.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import Evidence, FloatArray

N_INPUTS, N_HIDDEN, N_OUTPUTS = 64, 256, 10
N_TRAIN = 1437
BEST_KNOWN = 0.826235
"""Hypervolume of the grid of 101 x 101 points."""


class T0:
    """Minus the accuracies on digits below 5 and on the others, at `base + c1 tau1 + c2 tau2`."""

    n_dimensions = 2
    reference = np.zeros(2)

    def truth(self, points: FloatArray) -> FloatArray:
        """`(n_points, 2)` losses; the coefficients are the coordinates."""
        base, tau, X, y = _merge()
        low = y < 5
        losses = []
        for c in points:
            right = _forward(base + c @ tau, X)[1].argmax(axis=1) == y
            losses.append([-right[low].mean(), -right[~low].mean()])
        return np.array(losses)

    def observe(self, losses: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, Evidence]:
        """Exact, but a sampler is told the standard errors of 180 items, as in a real search."""
        del rng
        share = np.clip(-losses, 0.5 / 180, 1.0 - 0.5 / 180)
        errors = np.sqrt(share * (1.0 - share) / 180)
        return losses, Evidence(tuple(errors.tolist()), (180, 180))


@cache
def _merge() -> tuple[FloatArray, FloatArray, FloatArray, NDArray[np.int64]]:
    """The base `(19210,)`, both task vectors `(2, 19210)`, images and labels to evaluate on."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    X = X / 16.0
    train, labels = X[:N_TRAIN], y[:N_TRAIN]
    base = _adam(_start(), train, labels, 12)
    experts = [_adam(base, train[which], labels[which], 60) for which in (labels < 5, labels >= 5)]
    return base, np.stack(experts) - base, X[N_TRAIN:], y[N_TRAIN:]


def _start() -> FloatArray:
    """PyTorch's default weights of both layers after `manual_seed(1)`, bit for bit."""
    n_first = N_HIDDEN * (N_INPUTS + 1)
    n = n_first + N_OUTPUTS * (N_HIDDEN + 1)
    words = np.frombuffer(np.random.RandomState(1).bytes(4 * n), dtype="<u4")
    u = (words % 2**24).astype(np.float32) * np.float32(2.0**-24)
    b = np.where(np.arange(n) < n_first, 1 / 8, 1 / 16).astype(np.float32)
    return (u * (2 * b) - b).astype(np.float64)


def _layers(w: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    W1, b1, W2, b2 = np.split(
        w, np.cumsum([N_HIDDEN * N_INPUTS, N_HIDDEN, N_OUTPUTS * N_HIDDEN]).tolist()
    )
    return W1.reshape(N_HIDDEN, N_INPUTS), b1, W2.reshape(N_OUTPUTS, N_HIDDEN), b2


def _forward(w: FloatArray, X: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Hidden activations and logits."""
    W1, b1, W2, b2 = _layers(w)
    hidden = np.maximum(X @ W1.T + b1, 0.0)
    return hidden, hidden @ W2.T + b2


def _gradient(w: FloatArray, X: FloatArray, y: NDArray[np.int64]) -> FloatArray:
    """Of the mean cross-entropy."""
    hidden, logits = _forward(w, X)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1.0
    p /= len(y)
    back = (p @ _layers(w)[2]) * (hidden > 0)
    return np.concatenate(
        [(back.T @ X).ravel(), back.sum(axis=0), (p.T @ hidden).ravel(), p.sum(axis=0)]
    )


def _adam(w: FloatArray, X: FloatArray, y: NDArray[np.int64], n_steps: int) -> FloatArray:
    """Full-batch steps (Kingma and Ba 2015, algorithm 1) at a rate of .003."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, n_steps + 1):
        g = _gradient(w, X, y)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        w = w - 3e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w
