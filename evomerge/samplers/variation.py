"""Variation of points that have reals, bits and choices."""

import numpy as np

from evomerge.datatypes import FloatArray
from evomerge.samplers.design import FLIP_PROBABILITY, Kinds


def mutated(
    x: FloatArray, kinds: Kinds, sigma: float | FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Move a point a little.

    Args:
        x: `(n_dimensions,)` point; bits and choices as they are proposed.
        kinds: of the dimensions.
        sigma: standard deviation of the normal steps of reals, in the unit cube.
        rng: draws the same number of values whatever comes of them.

    Returns:
        `(n_dimensions,)` point of the cube. On average one bit turns; of the choices one changes
        with at most FLIP_PROBABILITY, to any other alike.
    """
    d = len(x)
    steps, draws, others = rng.normal(0.0, 1.0, d), rng.random(d), rng.random(d)
    y = np.where(kinds.real, np.clip(x + sigma * steps, 0.0, 1.0), x)
    turns = kinds.binary & (draws < 1.0 / max(int(kinds.binary.sum()), 1))
    y = np.where(turns, np.where(x >= 0.5, 0.0, 1.0), y)
    n = np.maximum(kinds.n_choices, 1)
    chosen = np.minimum(np.floor(x * n), n - 1)
    further = 1 + np.floor(others * (n - 1))  # steps around the circle of choices
    probability = min(FLIP_PROBABILITY, 1.0 / max(int(kinds.categorical.sum()), 1))
    changes = kinds.categorical & (draws < probability)
    return np.asarray(np.where(changes, ((chosen + further) % n + 0.5) / n, y))


def inherited(
    a: FloatArray, b: FloatArray, share_of_b: float | FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Take each coordinate whole from one of two parents.

    Args:
        a: `(n_dimensions,)` point.
        b: `(n_dimensions,)` point.
        share_of_b: probability of the second parent's, one for all or `(n_dimensions,)`.
        rng: draws one number per dimension.

    Returns:
        `(n_dimensions,)` point.
    """
    return np.where(rng.random(len(a)) < share_of_b, b, a)
