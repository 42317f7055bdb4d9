"""Items that tell most about the rest, and a read-out of the pool's mean from them.

Both learn from the models of a run that answered the whole pool, nothing else.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import Answers, Estimate, FloatArray
from evomerge.errors import TaskError
from fitness.estimators import RegressionEstimator, mean

_INTERCEPT = 1e4
"""Prior variance of the intercept beside 1 / ridge of the weights: as good as free."""
_RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Penalties that are tried, in units of a known model's mean square deviation on the items."""
_SELECTION_RIDGE = 100.0
"""Penalty while items are chosen, in mean square deviations of an answer from its item's mean."""
_FEWEST_MODELS = 3


def greedy_items(known: FloatArray, n: int, seed: int = 0) -> NDArray[np.int64]:
    """Items from which a ridge regression best predicts the known models' means over the pool.

    Forward selection: each step adds the item with the smallest leave-one-out squared error, under
    a strong penalty, without which few models choose items by luck and rank others worse than
    random items do (measured: docs/benchmarks.md, Estimators). Each step looks at a random half of
    the items (stochastic greedy selection: Mirzasoleiman et al. 2015), so that another seed gives
    other items. They are not representative: read them out with an estimator that knows how hard
    they are (`RegressionEstimator`, `RidgeReadout`).

    Args:
        known: Answers of models to all items, shape `(n_known, n_pool)`.
        n: How many items, at most `n_pool`.
        seed: Of the halves; the same seed gives the same items.

    Returns:
        Their numbers, ascending, shape `(n,)`. With fewer than 3 models: random items.

    Raises:
        TaskError: when there are not so many items.
    """
    n_known, n_pool = known.shape
    if not 1 <= n <= n_pool:
        raise TaskError(f"at least 1 item of {n_pool} can be chosen, but got {n=}")
    rng = np.random.default_rng(seed)
    if n_known < _FEWEST_MODELS or n == n_pool:
        return np.sort(rng.choice(n_pool, n, replace=False)).astype(np.int64)
    X = known - known.mean(axis=0)
    means = X.mean(axis=1)
    ridge = max(_SELECTION_RIDGE * float((X**2).mean()), 1e-9)
    # P is the inverse of X_S X_S^T + ridge I, with the intercept as one more, free column.
    Q = np.eye(n_known) + _INTERCEPT * np.ones((n_known, n_known))
    P = np.linalg.inv(Q) / ridge
    taken = np.zeros(n_pool, dtype=bool)
    for step in range(1, n + 1):
        free = np.flatnonzero(~taken)
        n_looked = max(len(free) // 2, min(len(free), n - step + 1))
        looked = np.sort(rng.choice(free, n_looked, replace=False))
        x = X[:, looked]
        V = P @ x
        scale = 1 + np.einsum("ki,ki->i", x, V)
        alpha = (P @ means)[:, None] - V * ((means @ V) / scale)
        diagonal = np.diagonal(P)[:, None] - V**2 / scale
        left_out = alpha / diagonal  # leave-one-out residuals of a ridge regression
        best = int((left_out**2).mean(axis=0).argmin())
        P = P - np.outer(V[:, best], V[:, best]) / scale[best]
        taken[looked[best]] = True
    return np.flatnonzero(taken).astype(np.int64)


class RidgeReadout:
    """The pool's mean read out of the answered items by a ridge regression over known models.

    What is regressed is the difference between the pool's mean and the mean of the answered items,
    with a penalty chosen by leave-one-out error; an infinite penalty leaves the difference
    estimator. With fewer than 3 known models it is the regression estimator.

    The standard error has two parts. As the pool's score: the leave-one-out error over known
    models, or what chance in each answer and the spread of the known scores lead to expect, if that
    is more (it is for items that `greedy_items` chose by the same models). As a sample's: the
    spread of a model's answers `/ N`.
    """

    def estimate(self, answers: Sequence[Answers], known: FloatArray) -> list[Estimate]:
        """The score of each model; those with the same items share a regression."""
        if len(known) < _FEWEST_MODELS:
            return RegressionEstimator().estimate(answers, known)
        readouts: dict[bytes, tuple[float, FloatArray, float]] = {}
        estimates = []
        for answer in answers:
            n, n_pool = len(answer.items), known.shape[1]
            if n >= n_pool:
                estimates.append(mean(answer.values))
                continue
            order = np.argsort(answer.items)
            items, values = answer.items[order], answer.values[order]
            key = items.tobytes()
            if key not in readouts:
                readouts[key] = _fit(known, items)
            intercept, weights, variance = readouts[key]
            score = float(values.mean()) + intercept + float(weights @ values)
            total = _spread(values, known)
            estimates.append(Estimate(score, math.sqrt(variance + total / n_pool), n))
        return estimates


def _fit(known: FloatArray, items: NDArray[np.int64]) -> tuple[float, FloatArray, float]:
    """Intercept and `(n_items,)` weights of the correction, and its leave-one-out variance."""
    n_known = len(known)
    X = known[:, items]
    target = known.mean(axis=1) - X.mean(axis=1)
    center = X.mean(axis=0)
    X = X - center
    K = X @ X.T
    unit = float(np.trace(K)) / n_known
    best: tuple[float, FloatArray] = (math.inf, np.zeros(n_known))
    for ridge in (*_RIDGES, math.inf):
        if math.isinf(ridge) or unit <= 0:
            left_out = (target - target.mean()) * n_known / (n_known - 1)
            alpha = np.zeros(n_known)
        else:
            Q = K / (ridge * unit) + np.eye(n_known) + _INTERCEPT
            P = np.linalg.inv(Q)
            dual = P @ target
            left_out = dual / np.diagonal(P)
            alpha = dual / (ridge * unit)
        error = float((left_out**2).mean())
        # At equal errors the later, stronger penalty.
        if error <= best[0]:
            best = (error, alpha)
    variance, alpha = best
    weights = X.T @ alpha
    intercept = float(target.mean()) - float(weights @ center)
    return intercept, weights, max(variance, _expected_variance(known, len(items), weights))


def _expected_variance(known: FloatArray, n: int, weights: FloatArray) -> float:
    """Of the read-out, if answers were a model's level plus the item's difficulty plus chance."""
    n_known, n_pool = known.shape
    level = known.mean(axis=1, keepdims=True)
    chance = (known - level - known.mean(axis=0) + known.mean()).var() * n_known / (n_known - 1)
    # The weight of each answer in the read-out, against its weight in the pool's mean.
    used = 1 / n + weights
    noise = chance * (((used - 1 / n_pool) ** 2).sum() + (n_pool - n) / n_pool**2)
    return float(noise + (1 - used.sum()) ** 2 * level.var(ddof=1))


def _spread(values: FloatArray, known: FloatArray) -> float:
    """Variance of a model's answers, from its own and, as four more, from the known models'."""
    expected = float(known.var(axis=1).mean())
    squares = float(((values - values.mean()) ** 2).sum())
    return (squares + 4 * expected) / (len(values) + 3)
