"""Gaussian process regression with known noise (Rasmussen and Williams 2006).

A Matern kernel with a length scale for each coordinate, and, if wanted, that of a Bayesian
quadratic: MAP's surrogate with a prior, so that it can be had from fewer points than parameters.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

from evomerge.datatypes import FloatArray

LENGTH = 0.35
"""Expected length scale in the unit cube, times the root of its dimensions (the mean distance of
two points grows so): Hvarfner, Hellsten, Nardi 2024."""

LENGTH_SPREAD = 0.3
"""Standard deviation of the log length scales: in 24 dimensions .3 beat .6 and 1 (LOG.md)."""

NOISE_SPREAD = 0.7
"""Of the log factor on known noise: common items make differences surer than scores."""

UNKNOWN_NOISE = 0.01, 2.0
"""Share of the variance that is noise where none is known, and the spread of its logarithm."""

ROUGH = 0.3
"""Share of the length scales that a rough part has: what a smooth model takes for noise, a rugged
surface repeats nearby."""

Part = Literal["quadratic", "rough"]

PARTS: dict[Part, float] = {"quadratic": -2.0, "rough": -2.0}
"""Expected log variance of each part, in units of the data's."""

PART_SPREAD = 2.0

JITTER = 1e-6
_SQRT5 = math.sqrt(5.0)
_MOST_STEPS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Hyperparameters:
    """Of the standardised data: log length scales `(n_coordinates,)` and logs of variances."""

    log_lengths: FloatArray
    log_amplitude: float
    log_noise: float
    log_rough: float | None
    log_quadratic: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Variances `(n,)` of observations and how well their common factor is known."""

    variances: FloatArray
    spread: float


class GaussianProcess:
    """A posterior over functions, given observations and hyperparameters.

    The mean function is a constant with the prior variance of the data. All latents outside are in
    the units of `z`; inside they are standardised.

    Args:
        X: `(n, n_coordinates)` places.
        z: `(n,)` observations.
        noise: Their variances.
        hyperparameters: Of `fitted`.
        shift, scale: What standardises the observations: those of the data that were fitted.
    """

    def __init__(
        self,
        X: FloatArray,
        z: FloatArray,
        noise: FloatArray,
        hyperparameters: Hyperparameters,
        shift: float,
        scale: float,
    ) -> None:
        self._X, self._shift, self._scale = X, shift, scale
        self._h = hyperparameters
        self._inverse = np.exp(-hyperparameters.log_lengths)
        self._amplitude = math.exp(hyperparameters.log_amplitude)
        self._rough: float = (
            0.0 if hyperparameters.log_rough is None else math.exp(hyperparameters.log_rough)
        )
        self._quadratic: float = (
            0.0
            if hyperparameters.log_quadratic is None
            else math.exp(hyperparameters.log_quadratic)
        )
        self._unit = _unit(X.shape[1])
        K = self._prior(X)
        self._noise = noise / scale**2 * math.exp(hyperparameters.log_noise) + JITTER
        K[np.diag_indices(len(X))] += self._noise
        self._L = np.linalg.cholesky(K)
        self._alpha = cho_solve((self._L, True), (z - shift) / scale)

    def _prior(self, Y: FloatArray) -> FloatArray:
        """Covariances `(len(Y), n)` of the function at other places and at the data's."""
        r2 = _squared_distances(Y * self._inverse, self._X * self._inverse)
        K = 1.0 + self._amplitude * _matern(r2)[0] + self._rough * _matern(r2 / ROUGH**2)[0]
        if self._quadratic:
            K += self._quadratic * (1.0 + Y @ self._X.T * self._unit) ** 2
        return np.asarray(K)

    def _prior_variances(self, Y: FloatArray) -> FloatArray:
        variances = np.full(len(Y), 1.0 + self._amplitude + self._rough)
        if self._quadratic:
            variances += self._quadratic * (1.0 + (Y**2).sum(axis=1) * self._unit) ** 2
        return variances

    def predict(self, Y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means and variances `(len(Y),)` of the function, without noise."""
        K = self._prior(Y)
        T = solve_triangular(self._L, K.T, lower=True)
        variances = self._prior_variances(Y) - (T**2).sum(axis=0)
        return (
            K @ self._alpha * self._scale + self._shift,
            np.maximum(variances, 1e-10) * self._scale**2,
        )

    def predict_with_gradient(self, y: FloatArray) -> tuple[float, float, FloatArray, FloatArray]:
        """Mean and variance at one place `(n_coordinates,)`, and their gradients there."""
        D = (self._X - y) * self._inverse
        r2 = (D**2).sum(axis=1)
        (smooth, slope), (rough, rough_slope) = _matern(r2), _matern(r2 / ROUGH**2)
        k = 1.0 + self._amplitude * smooth + self._rough * rough
        by_r2 = self._amplitude * slope + self._rough * rough_slope / ROUGH**2
        J = (-2.0 * by_r2)[:, None] * D * self._inverse
        prior = 1.0 + self._amplitude + self._rough
        prior_gradient: FloatArray = np.zeros_like(y)
        if self._quadratic:
            g = 1.0 + self._X @ y * self._unit
            k = k + self._quadratic * g**2
            J = J + (2.0 * self._quadratic * self._unit * g)[:, None] * self._X
            own = 1.0 + y @ y * self._unit
            prior += self._quadratic * float(own) ** 2
            prior_gradient = 4.0 * self._quadratic * self._unit * own * y
        w = cho_solve((self._L, True), k)
        variance = max(float(prior - k @ w), 1e-10)
        return (
            float(k @ self._alpha) * self._scale + self._shift,
            variance * self._scale**2,
            J.T @ self._alpha * self._scale,
            (prior_gradient - 2.0 * J.T @ w) * self._scale**2,
        )

    def leave_one_out(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Means and variances of the function at each place from all others, and noise variances.

        Each `(n,)`; eqs. 5.10 to 5.12, with the noise taken off the variance.
        """
        inverse = np.diag(cho_solve((self._L, True), np.eye(len(self._X))))
        z = self._L @ (self._L.T @ self._alpha)
        mean = z - self._alpha / inverse
        variance = np.maximum(1.0 / inverse - self._noise, 1e-10)
        return (
            mean * self._scale + self._shift,
            variance * self._scale**2,
            self._noise * self._scale**2,
        )


def fitted(
    X: FloatArray, z: FloatArray, noise: Noise, log_scales: FloatArray, part: Part | None = None
) -> tuple[Hyperparameters, float, float]:
    """Hyperparameters of highest posterior density, with the shift and scale of the data.

    Args:
        X: `(n, n_coordinates)` places.
        z: `(n,)` observations.
        noise: Their variances, in the same units squared.
        log_scales: Logs of the relative length scales to expect, `(n_coordinates,)`.
        part: What the model has besides its smooth Matern part.
    """
    n, d = X.shape
    shift, scale = float(z.mean()), max(float(z.std()), 1e-9)
    y, variances = (z - shift) / scale, noise.variances / scale**2
    D2 = ((X[:, None, :] - X[None, :, :]) ** 2).reshape(n * n, d)
    expected = math.log(LENGTH * math.sqrt(d)) + log_scales
    Q = (1.0 + X @ X.T * _unit(d)) ** 2 if part == "quadratic" else np.zeros((0, 0))
    diagonal = np.diag_indices(n)

    def objective(p: FloatArray) -> tuple[float, FloatArray]:
        lengths, amplitude, factor = p[:d], math.exp(p[d]), math.exp(p[d + 1])
        inverse_squares = np.exp(-2.0 * lengths)
        r2 = (D2 @ inverse_squares).reshape(n, n)
        matern, slope = _matern(r2)
        K = 1.0 + amplitude * matern
        by_r2 = amplitude * slope
        if part == "quadratic":
            extra = math.exp(p[d + 2]) * Q
            K += extra
        elif part == "rough":
            rough, rough_slope = _matern(r2 / ROUGH**2)
            extra = math.exp(p[d + 2]) * rough
            K += extra
            by_r2 += math.exp(p[d + 2]) / ROUGH**2 * rough_slope
        K[diagonal] += variances * factor + JITTER
        try:
            L = np.linalg.cholesky(K)
        except np.linalg.LinAlgError:
            return 1e12, np.zeros_like(p)
        alpha = cho_solve((L, True), y)
        W = 0.5 * (cho_solve((L, True), np.eye(n)) - np.outer(alpha, alpha))
        value = 0.5 * float(y @ alpha) + float(np.log(np.diag(L)).sum())
        gradient = np.empty_like(p)
        gradient[:d] = -2.0 * inverse_squares * ((W * by_r2).reshape(n * n) @ D2)
        gradient[d] = amplitude * float((W * matern).sum())
        gradient[d + 1] = factor * float(np.diag(W) @ variances)
        if part is not None:
            gradient[d + 2] = float((W * extra).sum())
        away = (p - centre) / spread
        return value + 0.5 * float(away @ away), gradient + away / spread

    expected_part = [] if part is None else [PARTS[part]]
    centre = np.concatenate([expected, [0.0, 0.0], expected_part])
    spread = np.concatenate(
        [np.full(d, LENGTH_SPREAD), [1.5, noise.spread], [PART_SPREAD] * len(expected_part)]
    )
    bounds = [(c - 6.0 * s, c + 6.0 * s) for c, s in zip(centre, spread, strict=True)]
    found = minimize(
        objective,
        centre,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _MOST_STEPS},
    )
    p = found.x
    return (
        Hyperparameters(
            log_lengths=p[:d].copy(),
            log_amplitude=float(p[d]),
            log_noise=float(p[d + 1]),
            log_rough=float(p[d + 2]) if part == "rough" else None,
            log_quadratic=float(p[d + 2]) if part == "quadratic" else None,
        ),
        shift,
        scale,
    )


def _matern(r2: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The Matern 5/2 correlation of squared distances, and its derivative by them."""
    r = np.sqrt(np.maximum(r2, 0.0))
    e = np.exp(-_SQRT5 * r)
    return (1.0 + _SQRT5 * r + 5.0 / 3.0 * r**2) * e, -5.0 / 6.0 * (1.0 + _SQRT5 * r) * e


def _squared_distances(A: FloatArray, B: FloatArray) -> FloatArray:
    return np.asarray((A**2).sum(axis=1)[:, None] + (B**2).sum(axis=1)[None, :] - 2.0 * A @ B.T)


def _unit(n_coordinates: int) -> float:
    """What makes the quadratic's coordinates of order one."""
    return 1.0 / (LENGTH**2 * n_coordinates)
