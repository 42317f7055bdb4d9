"""Formulas of M2N2: models compete for items, mate for what they lack, and merge at a split.

Abrantes, Lange and Tang 2025, "Competition and Attraction Improve Model Fusion" (M2N2).
"""

import numpy as np

from evomerge.datatypes import FloatArray

_LINEAR_BELOW = 1e-6
"""Sine of the angle between parents below which slerp is the weighted mean."""


def competed_fitness(
    S: FloatArray, alpha: float = 1.0, capacities: FloatArray | None = None
) -> FloatArray:
    """Share out each item among those who are right: what few know is worth more.

    f_k = sum_j c_j s_kj / z_j with z_j = (sum_k s_kj)^alpha, and 1 where nobody is right.

    Args:
        S: `(n_members, n_items)` scores within 0 and 1: whether, or how much, an item is right.
        alpha: strength of the competition; 0 counts right answers.
        capacities: `(n_items,)` worth c_j of each item; 1 if left out.

    Returns:
        `(n_members,)` fitness, not negative.
    """
    return np.asarray(_won(S, alpha, capacities).sum(axis=1))


def attraction(
    S: FloatArray, first: int, alpha: float = 1.0, capacities: FloatArray | None = None
) -> FloatArray:
    """How much each member wins where the first parent does not: sum_j max(0, c_j (s_b - s_a)/z_j).

    Args:
        S: `(n_members, n_items)` scores within 0 and 1.
        first: row of the first parent.
        alpha: strength of the competition.
        capacities: `(n_items,)` worth of each item; 1 if left out.

    Returns:
        `(n_members,)`, 0 for the first parent; all 0 if nobody knows anything that it does not.
    """
    won = _won(S, alpha, capacities)
    won -= won[first].copy()  # in place: fresh memory for each step took three times as long
    return np.asarray(np.maximum(won, 0.0, out=won).sum(axis=1))


def slerp(a: FloatArray, b: FloatArray, t: float | FloatArray) -> FloatArray:
    """Interpolate on the arc between two vectors, each coordinate at its own place.

    The angle is that of the whole vectors (Shoemake 1985): a sin((1-t) W)/sin W + b sin(t W)/sin W;
    the weighted mean where they are parallel, opposite or zero.

    Args:
        a: `(n_dimensions,)` vector, reached at t = 0.
        b: `(n_dimensions,)` vector, reached at t = 1.
        t: place on the arc within 0 and 1, one for all or `(n_dimensions,)`.

    Returns:
        `(n_dimensions,)` vector.
    """
    lengths = float(np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))
    cosine = float((a * b).sum()) / lengths if lengths > 0.0 else 1.0
    omega = np.arccos(np.clip(cosine, -1.0, 1.0))
    if np.sin(omega) <= _LINEAR_BELOW:
        return np.asarray((1.0 - t) * a + t * b)
    return np.asarray((np.sin((1.0 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega))


def split_places(n_dimensions: int, split: int, w: float) -> FloatArray:
    """Places t of a merge that changes sides at a split: w before it, 1 - w from it on."""
    return np.where(np.arange(n_dimensions) < split, w, 1.0 - w)


def _won(S: FloatArray, alpha: float, capacities: FloatArray | None) -> FloatArray:
    """`(n_members, n_items)`: what each member gets of each item."""
    totals = S.sum(axis=0)
    z = np.where(totals > 0.0, totals, 1.0) ** alpha
    return np.asarray(S / z if capacities is None else S * (capacities / z))
