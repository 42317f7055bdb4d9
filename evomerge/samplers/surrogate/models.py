"""A surrogate of one objective: which link and kernel, and how far to trust it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import rankdata

from evomerge import pareto
from evomerge.datatypes import FloatArray
from evomerge.samplers.surrogate.links import Identity, Link, Logit, Moments
from evomerge.samplers.surrogate.regression import (
    NOISE_SPREAD,
    UNKNOWN_NOISE,
    GaussianProcess,
    Hyperparameters,
    Noise,
    Part,
    fitted,
)

WORST = 2.0
"""Losses farther above the median than this times the way from the best to it count as that far:
how badly a merge has collapsed says nothing about where the good ones are."""

CLIFF = 4.0
"""Standard deviations by which a point left out may miss before it is called a cliff."""

NEWTON_STEPS = 2
"""Towards the mode under the binomial likelihood, from the empirical logits."""


MARGIN = 0.1
"""Nats a point by which a form must beat those before it: the plain one is the most robust, and
with few points the best of several is often so by luck (LOG.md)."""

_PARTS: dict[str, Part | None] = {
    "identity": None,
    "logit": None,
    "logit+quadratic": "quadratic",
    "identity+rough": "rough",
}

FORMS = tuple(_PARTS)
"""What may be chosen for an objective: a link, and what the model has besides a smooth part."""


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """One objective, all `(n,)`; unknown standard errors are NaN, unknown numbers of items 0."""

    losses: FloatArray
    standard_errors: FloatArray
    n_items: FloatArray

    def __getitem__(self, rows: slice) -> "Observed":
        return Observed(self.losses[rows], self.standard_errors[rows], self.n_items[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """How well points left out were predicted, one of an objective.

    `density` is the mean log density of the losses; `r2` and `rank` (Spearman) compare predicted
    and observed losses; `cliffs` counts those that came out far worse than any doubt allowed.
    """

    density: float
    r2: float
    rank: float
    cliffs: int


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The form of a model with its hyperparameters, fitted to a part of the history."""

    form: str
    link: Link
    hyperparameters: Hyperparameters
    shift: float
    scale: float


def without_collapses(losses: FloatArray) -> FloatArray:
    """Losses `(n, n_objectives)` cut where a collapse begins, so that it spoils no model.

    What a trade-off of the front costs is no collapse, however much it is.
    """
    median, best = np.median(losses, axis=0), losses.min(axis=0)
    on_front = losses[pareto.non_dominated(losses)].max(axis=0)
    most = np.maximum(median + WORST * np.maximum(median - best, 1e-12), on_front)
    return np.asarray(np.minimum(losses, most))


def choose(
    X: FloatArray, observed: Observed, log_scales: FloatArray, forms: Sequence[str]
) -> Choice:
    """Fit every form; a later one has to predict left-out losses clearly better.

    Args:
        X: `(n, n_coordinates)` places.
        observed: What was seen there.
        log_scales: Of the coordinates.
        forms: Of FORMS; logits are left out where losses are no shares.
    """
    best: tuple[float, Choice] | None = None
    for form in forms:
        link = _link(form, observed.losses)
        if link is None:
            continue
        z, noise = _latent(link, observed)
        choice = Choice(form, link, *fitted(X, z, noise, log_scales, _PARTS[form]))
        density = Model(X, observed, choice).quality().density
        if best is None or density > best[0] + MARGIN:
            best = density, choice
    if best is None:
        return choose(X, observed, log_scales, [f.replace("logit", "identity") for f in forms])
    return best[1]


class Model:
    """A choice, conditioned on all that was seen."""

    def __init__(self, X: FloatArray, observed: Observed, choice: Choice) -> None:
        self._X, self._observed, self._choice = X, observed, choice
        self._z, noise = _latent(choice.link, observed)
        self._noise = noise.variances
        self._process = self._conditioned(X, self._z, self._noise)
        if isinstance(choice.link, Logit) and (observed.n_items > 0).all():
            for _ in range(NEWTON_STEPS):
                self._newton(choice.link)

    def _conditioned(self, X: FloatArray, z: FloatArray, noise: FloatArray) -> GaussianProcess:
        c = self._choice
        return GaussianProcess(X, z, noise, c.hyperparameters, c.shift, c.scale)

    def _newton(self, link: Logit) -> None:
        """A step towards the mode under the binomial likelihood (algorithm 3.1 of the book).

        Regression on the working responses f + (y - p) / (p (1 - p)), whose variances are
        1 / (n p (1 - p)).
        """
        f, _ = self._process.predict(self._X)
        p = np.clip(expit(f), 1e-4, 1.0 - 1e-4)
        y = link.share(self._observed.losses)
        weight = p * (1.0 - p)
        n = _effective_items(y, self._observed)
        self._z, self._noise = f + (y - p) / weight, 1.0 / (n * weight)
        self._process = self._conditioned(self._X, self._z, self._noise)

    def believing(self, pending: FloatArray) -> "Model":
        """The same after the pending points `(n, n_coordinates)` came out as expected."""
        if not len(pending):
            return self
        mean, _ = self._process.predict(pending)
        believer = object.__new__(Model)
        believer.__dict__.update(self.__dict__)
        believer._process = self._conditioned(
            np.vstack([self._X, pending]),
            np.concatenate([self._z, mean]),
            np.concatenate([self._noise, np.full(len(pending), np.median(self._noise))]),
        )
        return believer

    def moments(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means and variances `(n,)` of losses at places `(n, n_coordinates)`."""
        moments = self._choice.link.moments(*self._process.predict(X))
        return moments.mean, moments.variance

    def moments_with_gradient(self, x: FloatArray) -> tuple[float, float, FloatArray, FloatArray]:
        """Mean and variance of the loss at one place, and their gradients."""
        m, v, dm, dv = self._process.predict_with_gradient(x)
        at: Moments = self._choice.link.moments(np.array(m), np.array(v))
        return (
            float(at.mean),
            float(at.variance),
            at.mean_by_mean * dm + at.mean_by_variance * dv,
            at.variance_by_mean * dm + at.variance_by_variance * dv,
        )

    def quality(self) -> Quality:
        """From leaving each point out; hyperparameters stay."""
        link, losses = self._choice.link, self._observed.losses
        mean, variance, noise = self._process.leave_one_out()
        total = variance + noise
        z = link.latent(losses)
        density = -0.5 * ((z - mean) ** 2 / total + np.log(2.0 * math.pi * total))
        density += np.log(link.slope(losses))  # in the units of the losses, whatever the link
        predicted = link.moments(mean, variance).mean
        spread = float(((losses - losses.mean()) ** 2).sum())
        missed = float(((losses - predicted) ** 2).sum())
        return Quality(
            density=float(density.mean()),
            r2=1.0 - missed / spread if spread > 0.0 else 0.0,
            rank=_rank_correlation(predicted, losses),
            cliffs=int(((z - mean) / np.sqrt(total) > CLIFF).sum()),
        )

    @property
    def form(self) -> str:
        """What was chosen."""
        return self._choice.form


def _rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Spearman's; 0 where one is constant."""
    ra, rb = rankdata(a), rankdata(b)
    if np.ptp(ra) == 0.0 or np.ptp(rb) == 0.0:
        return 0.0
    return float(np.corrcoef(ra, rb)[0, 1])


def _link(form: str, losses: FloatArray) -> Link | None:
    return Logit.fitting(losses) if form.startswith("logit") else Identity()


def _latent(link: Link, observed: Observed) -> tuple[FloatArray, Noise]:
    losses = observed.losses
    z = link.latent(losses)
    errors = observed.standard_errors
    if np.isnan(errors).any():
        share, spread = UNKNOWN_NOISE
        return z, Noise(np.full(len(z), share * max(float(z.var()), 1e-18)), spread)
    if isinstance(link, Logit):
        p = link.share(losses)
        n = np.maximum(_effective_items(p, observed), 1.0)
        p = (p * n + 0.5) / (n + 1.0)
        return z, Noise(1.0 / (n * p * (1.0 - p)), NOISE_SPREAD)
    # all right or all wrong is no certainty: half an item's worth at least
    n = np.maximum(observed.n_items, 1.0)
    least = np.where(observed.n_items > 0, 0.5 / n * max(float(np.median(errors)), 1e-12), 0.0)
    return z, Noise(np.maximum(errors, least) ** 2 + 1e-18, NOISE_SPREAD)


def _effective_items(p: FloatArray, observed: Observed) -> FloatArray:
    """How many coin flips are as sure as the scores: fewer than items if these are no coins."""
    errors = observed.standard_errors
    n = np.maximum(observed.n_items, 1.0)
    with np.errstate(divide="ignore"):
        equivalent = np.where(errors > 0.0, p * (1.0 - p) / np.maximum(errors, 1e-12) ** 2, n)
    return np.asarray(np.where(observed.n_items > 0, np.minimum(equivalent, 4.0 * n), equivalent))
