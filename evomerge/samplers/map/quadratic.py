"""MAP's surrogate: a quadratic of the coefficients behind a link (arXiv 2406.07529, section 3).

Of N coefficients it has P = (N + 1)(N + 2) / 2 parameters in the paper's order: squares, cross
products (i < j, lexicographic), linear terms, constant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import curve_fit, minimize
from scipy.special import expit

from evomerge.datatypes import FloatArray

Link = Literal["identity", "sigmoid", "softplus"]

RIDGE = 0.009
"""Penalty of the binomial fit on the square of each parameter but the constant."""

RIDGES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6)
"""What `fit_validated` chooses from, the strongest first: of equals it stays the choice."""

CLIFF = 0.25
"""Share of an objective's range by which a point left out has to be missed to be a cliff."""

NOISE = 4.0
"""Standard errors by which it has to be missed, too."""


def _softplus(q: FloatArray) -> FloatArray:
    return np.asarray(np.logaddexp(0.0, q))


LINKS: dict[Link, Callable[[FloatArray], FloatArray]] = {
    "identity": lambda q: q,
    "sigmoid": lambda q: np.asarray(expit(np.clip(q, -500.0, 500.0))),
    "softplus": _softplus,
}
"""From q(c) to a metric: sigmoid for accuracies, softplus for losses above 0."""


def n_parameters(n_coefficients: int) -> int:
    """P of N coefficients."""
    return (n_coefficients + 1) * (n_coefficients + 2) // 2


def features(C: FloatArray) -> FloatArray:
    """The terms of the quadratic, shape `(n_points, P)`, of `(n_points, N)` coefficients."""
    first, second = np.triu_indices(C.shape[1], k=1)
    return np.hstack([C**2, C[:, first] * C[:, second], C, np.ones((len(C), 1))])


def rank(C: FloatArray) -> int:
    """How many of the P parameters `(n_points, N)` coefficients can tell apart.

    The published grid has two levels per axis from eight coefficients on, where c^2 = c: ranks 37
    of 45 and 46 of 55.
    """
    return int(np.linalg.matrix_rank(features(C)))


@dataclass(frozen=True, slots=True, eq=False)
class Quadratic:
    """A fitted surrogate of one metric: `parameters` `(P,)` in the paper's order, and its link."""

    parameters: FloatArray
    link: Link = "identity"

    def predict(self, C: FloatArray) -> FloatArray:
        """The metric, shape `(n_points,)`, at `(n_points, N)` coefficients."""
        return LINKS[self.link](features(C) @ self.parameters)


def fit_least_squares(C: FloatArray, y: FloatArray, link: Link) -> Quadratic:
    """Fit as published: Levenberg-Marquardt on the metric as it is, from all ones.

    Args:
        C: `(n_points, N)` coefficients.
        y: `(n_points,)` metric.
        link: Of the surrogate.

    Raises:
        ValueError: there are fewer points than parameters, which the method needs.
        RuntimeError: it does not converge.
    """
    import warnings

    from scipy.optimize import OptimizeWarning

    F, P = features(C), n_parameters(C.shape[1])
    if len(C) < P:
        raise ValueError(
            f"a quadratic of {C.shape[1]} coefficients has {P} parameters, but there are "
            f"{len(C)} points: sample more or fit with a ridge"
        )

    def metric(_: object, *p: float) -> FloatArray:
        return LINKS[link](F @ np.array(p))

    with warnings.catch_warnings():
        # of an exact fit no covariance of the parameters can be had; nobody asks for it
        warnings.simplefilter("ignore", OptimizeWarning)
        parameters, _ = curve_fit(metric, np.arange(len(y)), y, p0=np.ones(P), method="lm")
    return Quadratic(np.asarray(parameters), link)


def fit_ridge(C: FloatArray, y: FloatArray, ridge: float = 1e-6) -> Quadratic:
    """Fit a quadratic without a link by least squares with a penalty; any number of points will do.

    Minimises |y - F p|^2 + ridge |p without its constant|^2, terms and metric centred.

    Args:
        C: `(n_points, N)` coefficients.
        y: `(n_points,)` metric.
        ridge: The penalty.
    """
    F = features(C)[:, :-1]
    centre, mean = F.mean(axis=0), y.mean()
    A, b = F - centre, y - mean
    if len(A) < A.shape[1]:  # the same solution from the smaller system
        p = A.T @ np.linalg.solve(A @ A.T + ridge * np.eye(len(A)), b)
    else:
        p = np.linalg.solve(A.T @ A + ridge * np.eye(A.shape[1]), A.T @ b)
    return Quadratic(np.append(p, mean - centre @ p))


def fit_binomial(
    C: FloatArray, y: FloatArray, n_items: FloatArray, ridge: float = RIDGE
) -> Quadratic:
    """Fit the logit of a share of items, each point weighing as much as its items tell.

    Minimises sum n [log(1 + e^q) - y q] + ridge |p without its constant|^2, a convex function:
    the negative log likelihood of binomial counts with a normal prior.

    Args:
        C: `(n_points, N)` coefficients.
        y: `(n_points,)` shares in [0, 1].
        n_items: `(n_points,)` numbers of items.
        ridge: The penalty.
    """
    F = features(C)
    penalty = np.full(F.shape[1], ridge)
    penalty[-1] = 0.0
    mean = float(np.average(y, weights=n_items))
    start = np.zeros(F.shape[1])
    start[-1] = np.log((mean + 1e-3) / (1.0 - mean + 1e-3))

    def loss(p: FloatArray) -> tuple[float, FloatArray]:
        q = F @ p
        value = float((n_items * (np.logaddexp(0.0, q) - y * q)).sum() + (penalty * p**2).sum())
        return value, F.T @ (n_items * (expit(q) - y)) + 2.0 * penalty * p

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return Quadratic(np.asarray(found.x), "sigmoid")


def left_out(C: FloatArray, y: FloatArray, ridge: float = 1e-6) -> FloatArray:
    """Residuals of points that were left out of a ridge fit, shape `(n_points,)`, y - prediction.

    In closed form, r / (1 - h) with the leverages h (Allen 1974).
    """
    F = features(C)
    penalty = np.full(F.shape[1], ridge)
    penalty[-1] = 0.0
    A = np.vstack([F, np.diag(np.sqrt(penalty))])
    H = F @ np.linalg.pinv(A)[:, : len(F)]
    h = np.minimum(np.diag(H), 1.0 - 1e-9)
    return np.asarray((y - H @ y) / (1.0 - h))


def cliff(C: FloatArray, y: FloatArray, standard_errors: FloatArray | None = None) -> bool:
    """Whether a metric falls off somewhere, so that no quadratic of the whole box can be trusted.

    A quadratic that misses its own points, left out, by more than `CLIFF` of their range (root
    mean square) describes another surface; by more than `NOISE` standard errors, this is no noise.
    On published sweeps it is true of the tasks on which merges of Flan-T5 collapse from .6 to 0
    within a step or two, and of no gentle one (experiments/LOG.md).

    Args:
        C: `(n_points, N)` coefficients.
        y: `(n_points,)` metric.
        standard_errors: `(n_points,)`, of the metric; without noise if left out.

    Returns:
        False, too, where there are too few points to tell: fewer than two beyond the parameters.
    """
    if len(y) < n_parameters(C.shape[1]) + 2 or np.ptp(y) == 0.0:
        return False
    missed = float(np.sqrt(np.mean(left_out(C, y) ** 2)))
    noise = 0.0 if standard_errors is None else float(np.sqrt(np.mean(standard_errors**2)))
    return missed > max(CLIFF * float(np.ptp(y)), NOISE * noise)


def fit_validated(C: FloatArray, y: FloatArray) -> Quadratic:
    """Fit with the ridge under which points left out are predicted best, for any n.

    Coefficients are counted from their mean: the penalty then favours a flat surface there.

    Args:
        C: `(n_points, N)` coefficients, two points at least.
        y: `(n_points,)` metric, standardised.
    """
    centre = C.mean(axis=0)
    F = features(C - centre)[:, :-1]
    A, b = F - F.mean(axis=0), y - y.mean()
    values, vectors = np.linalg.eigh(A @ A.T)
    values = np.maximum(values, 0.0)
    missed = []
    for ridge in RIDGES:
        # of the hat matrix; the mean takes its share of every point
        share = values / (values + ridge)
        h = (vectors**2) @ share + 1.0 / len(y)
        r = b - vectors @ (share * (vectors.T @ b))
        missed.append(float(np.mean((r / np.maximum(1.0 - h, 1e-6)) ** 2)))
    return _moved(fit_ridge(C - centre, y, RIDGES[int(np.argmin(missed))]), centre)


def _moved(surrogate: Quadratic, centre: FloatArray) -> Quadratic:
    """The same function of coefficients that were counted from a centre."""
    N = len(centre)
    squares, cross, linear, constant = np.split(
        surrogate.parameters, [N, N * (N + 1) // 2, N * (N + 3) // 2]
    )
    A = np.zeros((N, N))
    A[np.triu_indices(N, k=1)] = cross
    A = (A + A.T) / 2.0 + np.diag(squares)
    b = linear - 2.0 * A @ centre
    e = constant + centre @ A @ centre - linear @ centre
    return Quadratic(np.concatenate([squares, cross, b, e]), surrogate.link)
