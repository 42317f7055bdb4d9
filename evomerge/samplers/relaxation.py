"""Bits and choices as real numbers, for samplers that move a distribution over the reals."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.design import Kinds, proposal

FLIP_AT = 1.0364
"""Standard deviations between a bit's mean and the threshold: it flips with probability .15."""

CHANGE_PROBABILITY = 0.5
"""Bound on how often a sample departs from the mean's choice at the start: of eight choices of
which one was known, .5 found the best 1.4 times as often as .15 (experiments/LOG.md)."""


class Relaxation:
    """Real dimensions are themselves; a bit is one real, and on from 0.5.

    A categorical dimension is one real for each choice, of which the largest wins: choices have no
    order, so that none lies between two others, and each can be reached from each at once.
    """

    def __init__(self, problem: Problem, sigma: float) -> None:
        """Relax for a distribution that starts with the standard deviation `sigma`."""
        self._kinds = Kinds.of(problem)
        self._sigma = sigma
        widths = np.maximum(self._kinds.n_choices, 1)
        self._first = np.concatenate([[0], np.cumsum(widths)[:-1]])
        self.n_reals = int(widths.sum())
        """How many reals there are."""

    def relaxed(self, u: Sequence[float]) -> FloatArray:
        """The `(n_reals,)` reals of a point of the cube.

        Bits and choices are so near to where they turn that they do with a given probability.
        """
        kinds = self._kinds
        x = np.full(self.n_reals, 0.5)
        point = np.array(u, dtype=np.float64)
        away = min(FLIP_AT * self._sigma, 0.5)
        bits = np.where(point >= 0.5, 0.5 + away, 0.5 - away)
        single = ~kinds.categorical
        x[self._first[single]] = np.where(kinds.binary, bits, point)[single]
        for i in np.flatnonzero(kinds.categorical):
            n, first = int(kinds.n_choices[i]), self._first[i]
            # the difference of two reals has sqrt(2) sigma; any of n - 1 others may overtake
            overtakes = NormalDist().inv_cdf(1.0 - CHANGE_PROBABILITY / (n - 1))
            away = min(math.sqrt(0.5) * overtakes * self._sigma, 0.5)
            x[first : first + n] -= away
            x[first + min(int(point[i] * n), n - 1)] = 0.5 + away
        return x

    def proposed(self, x: FloatArray) -> list[float]:
        """The point of the cube that `(n_reals,)` reals stand for, as it is proposed."""
        kinds = self._kinds
        point = x[self._first]
        for i in np.flatnonzero(kinds.categorical):
            n, first = int(kinds.n_choices[i]), self._first[i]
            point[i] = (int(np.argmax(x[first : first + n])) + 0.5) / n
        return proposal(point, kinds)
