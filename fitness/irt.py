"""Item response theory: from answers to a few items to an ability, and on to all items.

The model is the multidimensional two-parameter logistic one (2PL). p-IRT and gp-IRT are those of
tinyBenchmarks (Polo et al. 2024), mp-IRT and gmp-IRT those of MERGE3 (Mencattini et al. 2025),
each with a Gaussian prior on the ability, without which some 20 answers say little about several
dimensions; `prior=None` gives the published maximum likelihood.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from scipy.optimize import minimize

from evomerge.datatypes import Answers, Estimate, FloatArray
from evomerge.errors import TaskError
from fitness.estimators import mean
from fitness.item_bank import ItemBank

_Z_MAX = 30.0
_EPSILON = 1e-10
_N_STEPS = 50


def probabilities(A: FloatArray, B: FloatArray, theta: FloatArray) -> FloatArray:
    """`P_i = sigmoid(sum_d clip(A_id theta_d - B_id, -30, 30))`, shape `(n_items,)`."""
    z = np.clip(A * theta - B, -_Z_MAX, _Z_MAX).sum(axis=1)
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -700, 700))))


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """A distribution of abilities: mean `(n_dimensions,)`, covariance of each two dimensions."""

    mean: FloatArray
    covariance: FloatArray

    @classmethod
    def around(cls, mean: FloatArray, sd: float) -> Self:
        """The same standard deviation in all dimensions."""
        return cls(mean, sd**2 * np.eye(len(mean)))

    @classmethod
    def of(cls, abilities: FloatArray, sd: float) -> Self:
        """What `(n_models, n_dimensions)` abilities say about the next one.

        Each stands for one observation, `N(0, sd^2)` for two more, so that few models do not make
        the prior too sure.
        """
        n_models, n_dimensions = abilities.shape
        center = abilities.sum(axis=0) / (n_models + 2)
        spread = abilities - center
        scatter = spread.T @ spread + 2 * (np.outer(center, center) + sd**2 * np.eye(n_dimensions))
        return cls(center, scatter / (n_models + 2))


def fit_ability(
    A: FloatArray, B: FloatArray, y: FloatArray, prior: Gaussian | None
) -> tuple[FloatArray, FloatArray]:
    """Ability of a model that answered `y` (in [0, 1]) to items, and its covariance.

    With a prior: the mode of the posterior by Newton's method, and Laplace's covariance. Without:
    maximum likelihood by BFGS from 0, as published, and a covariance of BFGS that is not to be
    trusted.

    Args:
        A: Discriminations of these items, shape `(n_items, n_dimensions)`.
        B: Their difficulties, same shape.
        y: Answers, shape `(n_items,)`.
        prior: Of the ability, or None.
    """
    identity = np.eye(A.shape[1])
    return fit_in_span(A, B, y, identity, np.zeros(A.shape[1]), prior)


def fit_in_span(
    A: FloatArray,
    B: FloatArray,
    y: FloatArray,
    endpoints: FloatArray,
    start: FloatArray,
    prior: Gaussian | None,
) -> tuple[FloatArray, FloatArray]:
    """Coordinates `l` of an ability `theta = sum_j l_j endpoints_j`, and their covariance.

    Args:
        A: Discriminations, shape `(n_items, n_dimensions)`.
        B: Difficulties, same shape.
        y: Answers in [0, 1], shape `(n_items,)`.
        endpoints: Abilities of the merged models, shape `(n_endpoints, n_dimensions)`.
        start: Where BFGS starts; with a prior the search starts at the prior's mean.
        prior: Of the coordinates, or None.
    """
    if prior is None:
        return _maximum_likelihood(A, B, y, endpoints, start)
    X = A @ endpoints.T
    b = B.sum(axis=1)
    precision = np.linalg.inv(prior.covariance)

    def loss_at(point: FloatArray) -> float:
        z = X @ point - b
        away = point - prior.mean
        return float((np.logaddexp(0, z) - y * z).sum() + away @ precision @ away / 2)

    at = prior.mean.copy()
    loss = loss_at(at)
    for _ in range(_N_STEPS):
        P = 1 / (1 + np.exp(-np.clip(X @ at - b, -700, 700)))
        gradient = X.T @ (P - y) + precision @ (at - prior.mean)
        step = np.linalg.solve((X.T * (P * (1 - P))) @ X + precision, gradient)
        scale = 1.0
        while (new := loss_at(at - scale * step)) > loss and scale > 1e-10:
            scale /= 2
        at, gain, loss = at - scale * step, loss - new, new
        if gain <= 1e-12 * (1 + abs(loss)):
            break
    P = 1 / (1 + np.exp(-np.clip(X @ at - b, -700, 700)))
    return at, np.linalg.inv((X.T * (P * (1 - P))) @ X + precision)


def _maximum_likelihood(
    A: FloatArray, B: FloatArray, y: FloatArray, endpoints: FloatArray, start: FloatArray
) -> tuple[FloatArray, FloatArray]:
    def loss(point: FloatArray) -> tuple[float, FloatArray]:
        theta = point @ endpoints
        P = probabilities(A, B, theta)
        right, wrong = P + _EPSILON, 1 - P + _EPSILON
        value = -(y * np.log(right) + (1 - y) * np.log(wrong)).sum()
        slope = P * (1 - P) * ((1 - y) / wrong - y / right)
        inside = np.abs(A * theta - B) < _Z_MAX
        return float(value), np.asarray(endpoints @ ((A * inside).T @ slope))

    found = minimize(loss, start, jac=True, method="BFGS")
    return np.asarray(found.x), np.asarray(found.hess_inv)


def irt_mean(y: FloatArray, weights: FloatArray) -> float:
    """IRT: the weighted mean of the answers; weights of anchor items add to 1."""
    return float(weights @ y)


def p_irt(
    P: FloatArray, seen: np.ndarray, y: FloatArray, balance: FloatArray | None = None
) -> float:
    """p-IRT: answers where there are some, the model's probabilities elsewhere.

    `(n/N) mean_S(balance_i y_i) + (1 - n/N) mean_{not S}(balance_i P_i)`.

    Args:
        P: Probabilities of all items of the pool, shape `(n_pool,)`.
        seen: Numbers of the answered items, shape `(n_items,)`.
        y: Their answers, same shape.
        balance: Weight of each item that makes sub-scenarios count the same, shape `(n_pool,)`.
    """
    weight = np.ones(len(P)) if balance is None else balance
    unseen = np.ones(len(P), dtype=bool)
    unseen[seen] = False
    share = len(seen) / len(P)
    score = share * float((weight[seen] * y).mean())
    if unseen.any():
        score += (1 - share) * float((weight * P)[unseen].mean())
    return score


def balance_of(subscenarios: np.ndarray) -> FloatArray:
    """`N / (n_sub n_i)` for an item of a sub-scenario of `n_i` items, from `(n_pool,)` labels."""
    _, place, counts = np.unique(subscenarios, return_inverse=True, return_counts=True)
    balance: FloatArray = (len(subscenarios) / len(counts) / counts)[place]
    return balance


def blend_weight(bias: float, variance: float, n: float) -> float:
    """How much of gp-IRT is the plain mean: `b^2 / (b^2 + v / n)`.

    tinyBenchmarks puts 4 n for n, as its anchors scatter less than random items.

    Args:
        bias: Mean absolute error of the model's own prediction (b).
        variance: Of a model's answers over items (v).
        n: Number of answers.
    """
    return bias**2 / (bias**2 + variance / n) if bias > 0 else 0.0


class PIrt:
    """p-IRT with a prior on ability: answers where given, predicted probabilities elsewhere.

    The standard error is that of the population of which the pool is a sample: the ability's
    covariance through the probabilities (delta method), the chance of each unseen answer, and the
    spread of the pool itself. It knows nothing of a bank that does not fit the models.

    Args:
        bank: An `ItemBank` of the pool's items in their order, or the path of one.
        prior_sd: Of the ability in every dimension; None for the published maximum likelihood.
        learn_prior: Take the ability's prior from the known models, where there are at least 3.
        item_ids: Names of the pool's items in order, by which a bank with names is sorted.

    Raises:
        TaskError: when the bank cannot be read, or an option is no positive number.
    """

    def __init__(
        self,
        bank: ItemBank | str | Path | None = None,
        prior_sd: float | None = 1.0,
        learn_prior: bool = True,
        item_ids: Sequence[str] = (),
    ) -> None:
        if bank is None:
            raise TaskError(
                "an estimator of item response theory needs the parameters of the items, but has "
                "none: give the objective an item_bank (or use the regression estimator)"
            )
        if prior_sd is not None and not 0 < prior_sd < math.inf:
            raise TaskError(f"prior_sd is a positive number or none, but got {prior_sd}")
        bank = bank if isinstance(bank, ItemBank) else ItemBank.load(bank)
        self._bank = bank.select(item_ids) if item_ids else bank
        self._prior_sd = prior_sd
        self._learn_prior = learn_prior

    def estimate(self, answers: Sequence[Answers], known: FloatArray) -> list[Estimate]:
        """The score of each model on the whole pool, from its own answers and the bank.

        Raises:
            TaskError: when the bank has other items, or an answer is not in [0, 1].
        """
        n_pool = known.shape[1]
        if n_pool != len(self._bank.A):
            raise TaskError(
                f"an item bank describes all items of the pool, but it has {len(self._bank.A)} "
                f"items and the pool {n_pool}: fit one on these items"
            )
        for values in [known, *(answer.values for answer in answers)]:
            if values.size and not (values.min() >= 0 and values.max() <= 1):
                raise TaskError(
                    "item response theory is about answers between 0 (wrong) and 1 (right), but "
                    "one is outside: use the regression estimator for this objective"
                )
        if all(len(answer.items) >= n_pool for answer in answers):
            return [mean(answer.values) for answer in answers]
        self._learn(known)
        return [
            mean(answer.values) if len(answer.items) >= n_pool else self._one(answer)
            for answer in answers
        ]

    def _learn(self, known: FloatArray) -> None:
        """Look at the models that answered everything: here the spread of their abilities."""
        n_dimensions = self._bank.A.shape[1]
        self._basis = np.eye(n_dimensions)
        self._start = np.zeros(n_dimensions)
        self._prior: Gaussian | None = None
        if self._prior_sd is not None:
            self._prior = Gaussian.around(self._start, self._prior_sd)
            if self._learn_prior and len(known) >= 3:
                self._prior = Gaussian.of(self._abilities(known), self._prior_sd)

    def _abilities(self, rows: FloatArray) -> FloatArray:
        prior = None
        if self._prior_sd is not None:
            prior = Gaussian.around(np.zeros(self._bank.A.shape[1]), self._prior_sd)
        return np.stack([fit_ability(self._bank.A, self._bank.B, row, prior)[0] for row in rows])

    def _one(self, answer: Answers) -> Estimate:
        score, variance, total_variance = self._predict(answer)
        return _estimate(score, variance, total_variance, len(self._bank.A), len(answer.items))

    def _predict(self, answer: Answers) -> tuple[float, float, float]:
        """Score, its variance as the pool's score, and the variance of an answer in the pool."""
        A, B = self._bank.A, self._bank.B
        seen, y = answer.items, answer.values
        at, covariance = fit_in_span(A[seen], B[seen], y, self._basis, self._start, self._prior)
        P = probabilities(A, B, at @ self._basis)
        score = p_irt(P, seen, y)
        unseen = np.ones(len(P), dtype=bool)
        unseen[seen] = False
        chance = (P * (1 - P))[unseen]
        slope = self._basis @ (A[unseen].T @ chance)  # eq. of the delta method, times n_unseen
        # Fractions scatter less than right-or-wrong does.
        binary = bool(np.isin(y, (0.0, 1.0)).all())
        noise = 1.0 if binary else _dispersion(y, P[seen])
        variance = float(slope @ covariance @ slope + noise * chance.sum()) / len(P) ** 2
        spread = ((y - score) ** 2).sum() + (noise * chance + (P[unseen] - score) ** 2).sum()
        return score, variance, float(spread) / (len(P) - 1)


def _dispersion(y: FloatArray, P: FloatArray) -> float:
    """Variance of answers beside the one of right-or-wrong answers, two of which are added."""
    expected = float((P * (1 - P)).sum())
    return min(1.0, (float(((y - P) ** 2).sum()) + 0.5) / (expected + 0.5))


def _estimate(
    score: float, variance: float, total_variance: float, n_pool: int, n: int
) -> Estimate:
    return Estimate(score, math.sqrt(variance + total_variance / n_pool), n)


class GpIrt(PIrt):
    """gp-IRT: p-IRT blended with the plain mean, by how wrong the bank is about known models.

    The weight of the mean is `b^2 / (b^2 + v / n)`; `b` is the error of the model's prediction
    alone for the known models, or `bias` where there are fewer than 3; items are random, so `n` is
    not multiplied by 4. The standard error adds those of both parts (as if fully correlated: on
    the safe side) and what `b` leaves.

    Args:
        bank: As `PIrt`.
        prior_sd: As `PIrt`.
        learn_prior: As `PIrt`.
        bias: b, where there are too few models to see it (.02: the size in tinyBenchmarks).
    """

    def __init__(
        self,
        bank: ItemBank | str | Path | None = None,
        prior_sd: float | None = 1.0,
        learn_prior: bool = True,
        bias: float = 0.02,
        item_ids: Sequence[str] = (),
    ) -> None:
        super().__init__(bank, prior_sd, learn_prior, item_ids)
        if not 0 <= bias < math.inf:
            raise TaskError(f"bias is a number of at least 0, but got {bias}")
        self._default_bias = bias

    def _learn(self, known: FloatArray) -> None:
        super()._learn(known)
        self._bias = self._default_bias
        if len(known) >= 3:
            predicted = np.array([self._crossed(row) for row in known])
            self._bias = float(np.abs(predicted - known.mean(axis=1)).mean())

    def _crossed(self, row: FloatArray) -> float:
        """Each half of the items predicted from the other: what a fit on all would hide."""
        A, B = self._bank.A, self._bank.B
        P = np.empty(len(row))
        for half in (0, 1):
            seen = np.arange(half, len(row), 2)
            at, _ = fit_in_span(A[seen], B[seen], row[seen], self._basis, self._start, self._prior)
            rest = np.arange(1 - half, len(row), 2)
            P[rest] = probabilities(A[rest], B[rest], at @ self._basis)
        return float(P.mean())

    def _one(self, answer: Answers) -> Estimate:
        predicted, variance, total_variance = self._predict(answer)
        n, n_pool = len(answer.items), len(self._bank.A)
        weight = self._weight(total_variance, n)
        score = weight * float(answer.values.mean()) + (1 - weight) * predicted
        mean_sd = math.sqrt(total_variance * (1 / n - 1 / n_pool))
        sd = weight * mean_sd + (1 - weight) * math.sqrt(variance)
        left = ((1 - weight) * self._bias * (1 - n / n_pool)) ** 2
        return _estimate(score, sd**2 + left, total_variance, n_pool, n)

    def _weight(self, total_variance: float, n: int) -> float:
        return blend_weight(self._bias, total_variance, n)


class MpIrt(PIrt):
    """mp-IRT: p-IRT whose ability is a combination of the abilities of the models that are merged.

    Those are the first known models: base and experts come first. The prior of the coordinates is
    `N(1/J, prior_sd^2)`. Without known models it is p-IRT. The restriction says little where
    there are as many endpoints as dimensions; the prior still does.

    Args:
        bank: As `PIrt`.
        prior_sd: As `PIrt`, for endpoints' abilities and for coordinates.
        n_endpoints: How many known models, base and experts, span the abilities; None: up to 8.

    Raises:
        TaskError: as `PIrt`.
    """

    def __init__(
        self,
        bank: ItemBank | str | Path | None = None,
        prior_sd: float | None = 1.0,
        n_endpoints: int | None = None,
        item_ids: Sequence[str] = (),
    ) -> None:
        super().__init__(bank, prior_sd, item_ids=item_ids)
        if n_endpoints is not None and n_endpoints < 1:
            raise TaskError(f"n_endpoints is at least 1, but got {n_endpoints}")
        self._n_endpoints = n_endpoints

    def _learn(self, known: FloatArray) -> None:
        if not len(known):
            super()._learn(known)
            return
        self._basis = self._abilities(known[: self._n_endpoints or 8])
        n_endpoints = len(self._basis)
        self._start = np.full(n_endpoints, 1 / n_endpoints)
        self._prior = None
        if self._prior_sd is not None:
            self._prior = Gaussian.around(self._start, self._prior_sd)


class GmpIrt(MpIrt):
    """gmp-IRT: half the plain mean, half mp-IRT (MERGE3's fixed blend).

    The standard error adds those of both halves, as if they were fully correlated.
    """

    def _one(self, answer: Answers) -> Estimate:
        predicted, variance, total_variance = self._predict(answer)
        n, n_pool = len(answer.items), len(self._bank.A)
        score = (float(answer.values.mean()) + predicted) / 2
        sd = (math.sqrt(total_variance * (1 / n - 1 / n_pool)) + math.sqrt(variance)) / 2
        return _estimate(score, sd**2, total_variance, n_pool, n)
