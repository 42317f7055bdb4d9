"""Bayesian MAP: sample where the quadratics are most wrong, then as MAP (arXiv 2406.07529)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.history_based import View
from evomerge.samplers.map.one_shot import MapSampler, checked_samples, rows_of
from evomerge.samplers.map.surrogates import Surrogates
from evomerge.samplers.variation import mutated

TEMPERATURE = 0.07
"""Of the softmax over bins."""

N_DRAWS = 30
SHARE = 0.8
"""Subsamples that the spread of a bin's loss is estimated from, and how much of it each takes."""

N_ROUNDS = 8
"""Rounds that the samples after the design are drawn in; the quadratics are fitted before each."""

RADII = (0.2, 0.8)
"""Share of the way from the base to the end of the box, along a direction."""


class BayesianMapSampler(MapSampler):
    """After a third of the samples, draws directions where predictions miss most.

    Directions (spherical angles of the coefficients, all positive) fall into bins; the bin of the
    next sample is drawn by a softmax of upper bounds on the mean squared miss. The quadratics are
    fitted again before each of eight rounds and after the last; then the front is searched as MAP
    does.

    Where this departs from the released code, which cannot explore: a bin without samples is as
    promising as the worst predicted one, instead of never drawn, and all of these together count
    as one (with many coefficients nearly all are empty); subsamples are independent; nothing that
    was told is overwritten or left out of the fit; the last bin has its end; radii are shares of
    the way to the end of the box, since .8 is far from it with many coefficients; the front
    is searched in the sampled box. The paper samples for each metric apart; here a merge is
    evaluated on every objective, so that misses, in units of each objective's range, are averaged.
    """

    def __init__(
        self, problem: Problem, *, seed: int, samples: int | None = None, start: int | None = None
    ) -> None:
        """Lay out the first samples.

        Args:
            problem: Dimensions, anchors, number of objectives and budget.
            seed: Of everything random.
            samples: Merges that the quadratics are fitted to in the end; default as of MAP.
            start: How many of them are a design; by default a third, but at least the anchors.

        Raises:
            ConfigError: An option is no whole number, or there are too many dimensions.
        """
        samples = checked_samples("bayesian_map", problem, samples)
        super().__init__(problem, seed=seed, samples=samples)
        n_start = (
            max(self._n_samples // 3, 1)
            if start is None
            else checked_samples("bayesian_map", problem, start)
        )
        self._start = self._design(min(n_start, self._n_samples))
        self._round: tuple[tuple[int, ...], tuple[FloatArray, NDArray[np.int64]]] = (
            (),
            (np.zeros(0), np.zeros((0, 0), dtype=np.int64)),
        )

    def _propose(self, view: View, rng: np.random.Generator) -> FloatArray:
        if view.n_asked >= self._n_samples or len(view.ids) == 0:
            return super()._propose(view, rng)
        errors, numbers = self._learnt(view)
        x = mutated(np.array(self._problem.anchors[0], dtype=np.float64), self._kinds, 0.2, rng)
        real = self._kinds.real
        if not real.any():
            return x
        origin, scale = self._coordinates.origin[real], self._coordinates.scale[real]
        bins = Bins(int(real.sum()))
        direction = bins.direction(drawn_bin(numbers, errors, bins, rng), rng)
        # the ray ends where a coefficient passes 1 or leaves the cube
        steps = direction * scale
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(steps > 0.0, (1.0 - origin) / steps, -origin / steps)
        longest = min(float(np.min(room[np.abs(steps) > 1e-9])), 1.0 / float(direction.max()))
        radius = rng.uniform(*RADII) * max(longest, 0.0)
        x[real] = np.clip(origin + radius * steps, 0.0, 1.0)
        return x

    def _learnt(self, view: View) -> tuple[FloatArray, NDArray[np.int64]]:
        """How far predictions missed and the bins, of what was told before this round began."""
        first = len(self._start)
        length = max((self._n_samples - first) // N_ROUNDS, 1)
        known = rows_of(view, view.ids < first + (view.n_asked - first) // length * length)
        if len(known.ids) == 0:
            known = view
        key = tuple(known.ids.tolist())
        if key != self._round[0]:
            surrogates = Surrogates(self._problem, self._coordinates, known, published=False)
            missed = surrogates.losses(known.points) - surrogates.targets
            C = known.points[:, self._kinds.real] - self._coordinates.origin[self._kinds.real]
            C = C / self._coordinates.scale[self._kinds.real]
            numbers = Bins(C.shape[1]).of(C) if C.shape[1] else np.zeros((len(C), 0), np.int64)
            self._round = key, ((missed**2).mean(axis=1), numbers)
        return self._round[1]


@dataclass(frozen=True, slots=True)
class Bins:
    """Boxes of angles: 4 per angle with up to three coefficients, else 2."""

    n_coefficients: int

    @property
    def per_angle(self) -> int:
        """How many bins [0, pi/2] is cut into."""
        return 4 if self.n_coefficients < 4 else 2

    def of(self, C: FloatArray) -> NDArray[np.int64]:
        """The bin of each of `(n, N)` coefficients, shape `(n, N - 1)`; negatives are 0."""
        phi, _ = spherical(np.maximum(C, 0.0))
        width = np.pi / 2.0 / self.per_angle
        return np.minimum((phi / width + 1e-12).astype(np.int64), self.per_angle - 1)

    def direction(self, number: NDArray[np.int64], rng: np.random.Generator) -> FloatArray:
        """A unit vector `(N,)` of a bin, its angles uniform."""
        width = np.pi / 2.0 / self.per_angle
        phi = (number + rng.random(len(number))) * width
        return cartesian(phi[None, :], np.ones(1)).ravel()


def spherical(C: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Angles `(n, N - 1)`, phi_k = atan2(|c_k+1 .. c_N|, c_k), and radii `(n,)`."""
    tails = np.sqrt(np.cumsum((C**2)[:, ::-1], axis=1)[:, ::-1])
    return np.arctan2(tails[:, 1:], C[:, :-1]), tails[:, 0]


def cartesian(phi: FloatArray, r: FloatArray) -> FloatArray:
    """The inverse of `spherical` for coefficients of which the last is positive."""
    sines = np.cumprod(np.sin(phi), axis=1)
    leading = np.hstack([np.ones((len(phi), 1)), sines])
    return np.asarray(r[:, None] * leading * np.hstack([np.cos(phi), np.ones((len(phi), 1))]))


def softmax(scores: FloatArray) -> FloatArray:
    """Probabilities of `(n_bins,)` scores at TEMPERATURE; -inf is never drawn."""
    weights = np.exp((scores - scores.max()) / TEMPERATURE)
    return np.asarray(weights / weights.sum())


def drawn_bin(
    numbers: NDArray[np.int64], errors: FloatArray, bins: Bins, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a bin by upper bounds on its mean error: mean + 0.5 sd of subsampled means.

    Args:
        numbers: `(n, N - 1)` bins of the samples.
        errors: `(n,)` how far predictions missed.
        bins: How the angles are cut.
        rng: What is random.

    Returns:
        `(N - 1,)` number of the bin; an empty one with the probability of the best score.
    """
    occupied, members = np.unique(numbers, axis=0, return_inverse=True)
    members = members.reshape(-1)
    scores = []
    for b in range(len(occupied)):
        inside = errors[members == b]
        size = max(1, round(SHARE * len(inside)))
        if size == len(inside):  # one or two samples: their subsamples are all the same
            scores.append(float(inside.mean()))
            continue
        means = [rng.choice(inside, size, replace=False).mean() for _ in range(N_DRAWS)]
        scores.append(float(inside.mean() + 0.5 * np.std(means)))
    n_angles = numbers.shape[1]
    is_full = len(occupied) >= bins.per_angle**n_angles
    chances = softmax(np.array(scores if is_full else [*scores, max(scores)]))
    chosen = int(rng.choice(len(chances), p=chances))
    if chosen < len(occupied):
        return np.asarray(occupied[chosen])
    number = np.array(occupied[0])
    while (occupied == number).all(axis=1).any():  # ends: there is an empty one, with its chance
        number = np.floor(rng.random(n_angles) * bins.per_angle).astype(np.int64)
    return number
