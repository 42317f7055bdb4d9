"""From points of the cube to the coordinates in which a surrogate measures distance."""

from itertools import groupby

import numpy as np
from scipy.fft import dct

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.design import Kinds

BIT = 0.6
"""How far apart off and on are, and two choices: as far as a real dimension's halves and more."""

ROUGHNESS = 0.35
"""Growth of the expected length scale, in powers of e, with each wave along the depth."""


class Encoding:
    """A linear map of the centred cube; bits and choices become coordinates of their own.

    Coefficients of one expert at several depths are turned into waves along the depth (discrete
    cosine transform, orthonormal: distances stay), the slow ones first. A surrogate may then
    expect that fast waves matter less, a structured prior: neighbouring layers want similar
    coefficients.
    """

    def __init__(self, problem: Problem) -> None:
        self._kinds = Kinds.of(problem)
        n = len(problem.dimensions)
        self.rotation: FloatArray = np.eye(n)
        """`(n_dimensions, n_dimensions)`, orthonormal; the encoding of reals is x @ rotation."""
        self._waves = np.zeros(n)
        for dimensions in _profiles(problem):
            self.rotation[np.ix_(dimensions, dimensions)] = dct(
                np.eye(len(dimensions)), norm="ortho", axis=1
            )
            self._waves[dimensions] = np.arange(len(dimensions))
        self._categorical = np.flatnonzero(self._kinds.categorical)
        self._scale = np.where(self._kinds.binary, BIT, np.where(self._kinds.categorical, 0.0, 1.0))

    @property
    def log_scales(self) -> FloatArray:
        """Logarithms of the relative length scales to expect, one per coordinate."""
        extra = np.zeros(int(self._kinds.n_choices[self._categorical].sum()))
        return np.concatenate([ROUGHNESS * self._waves, extra])

    def encode(self, points: FloatArray) -> FloatArray:
        """Shape `(n_points, n_coordinates)` of `(n_points, n_dimensions)` points."""
        reals = ((points - 0.5) * self._scale) @ self.rotation
        columns = [reals]
        for i in self._categorical:
            n = int(self._kinds.n_choices[i])
            choices = np.minimum((points[:, i] * n).astype(np.int64), n - 1)
            columns.append(np.eye(n)[choices] * BIT / np.sqrt(2.0))
        return np.hstack(columns)

    def gradient(self, in_coordinates: FloatArray) -> FloatArray:
        """The gradient `(n_dimensions,)` in the cube; choices have none."""
        n = len(self._scale)
        return np.asarray(self.rotation @ in_coordinates[:n] * self._scale)


def _profiles(problem: Problem) -> list[list[int]]:
    """Real dimensions that are one expert's coefficients in order of depth, three at least.

    Where an expert has several at one depth (kinds of tensors), they are separate profiles.
    """
    if not problem.owners or not problem.depths:
        return []
    known = [
        (owner, depth, i)
        for i, (owner, depth) in enumerate(zip(problem.owners, problem.depths, strict=True))
        if owner is not None and depth is not None and problem.dimensions[i].kind == "real"
    ]
    profiles: dict[tuple[int, int], list[int]] = {}
    for (owner, _), same in groupby(sorted(known), key=lambda entry: entry[:2]):
        for rank, (_, _, i) in enumerate(same):
            profiles.setdefault((owner, rank), []).append(i)
    return [dimensions for dimensions in profiles.values() if len(dimensions) >= 3]
