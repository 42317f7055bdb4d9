"""What is proposed while no model can be trusted: children of good points."""

import numpy as np

from evomerge import pareto
from evomerge.datatypes import FloatArray
from evomerge.samplers.design import FLIP_PROBABILITY, Kinds

CROSSOVER = 0.9
STEP = 0.1


def child(
    points: FloatArray, losses: FloatArray, kinds: Kinds, rng: np.random.Generator
) -> FloatArray:
    """A child of two parents that won tournaments, on the history instead of a population.

    Blend crossover (Eshelman and Schaffer 1993) of reals, uniform crossover of bits and choices,
    then a normal step in a few dimensions.

    Args:
        points: `(n, n_dimensions)`, at least one.
        losses: `(n, n_objectives)`.
        kinds: Of the dimensions.
        rng: What is random.
    """
    rank = _fronts(losses)
    d = points.shape[1]

    def parent() -> FloatArray:
        rows = rng.integers(len(points), size=3)
        return np.asarray(points[rows[np.argmin(rank[rows])]])

    first, second = parent(), parent()
    x = first
    if rng.random() < CROSSOVER:
        blended = first + rng.uniform(-0.25, 1.25, d) * (second - first)
        x = np.where(kinds.real, blended, np.where(rng.random(d) < 0.5, first, second))
    few = rng.random(d) < max(1.0 / d, 0.1)
    x = np.where(kinds.real & few, x + STEP * rng.normal(size=d), x)
    turned = ~kinds.real & (rng.random(d) < min(FLIP_PROBABILITY, 1.0 / d))
    return np.clip(np.where(turned, rng.random(d), x), 0.0, 1.0)


def _fronts(losses: FloatArray) -> FloatArray:
    """The number of each point's front, from 0."""
    rank = np.zeros(len(losses))
    left = np.arange(len(losses))
    front = 0
    while len(left):
        best = pareto.non_dominated(losses[left])
        rank[left[best]] = front
        left, front = left[~best], front + 1
    return rank
