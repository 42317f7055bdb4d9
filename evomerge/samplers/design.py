"""The centred seeded design: the known-good merges, then points around the best of them."""

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray, Problem

SPREAD = 0.2
"""Standard deviation around the first anchor, in the unit cube."""

FLIP_PROBABILITY = 0.15
"""How often a binary dimension departs from the first anchor's bit: about SPREAD's share."""

DECIMALS = 9
"""Digits of a proposed coordinate, so that last-bit differences between machines (their linear
algebra, their pow) do not reach the journal; the anchors are passed on untouched."""


def centred_design(problem: Problem, n: int, seed: int) -> FloatArray:
    """Place the first points of a search.

    At small budgets the start matters about as much as the algorithm: around a centre, random
    points reach .53 of the hypervolume at 30 evaluations in 24 dimensions that uniform ones reach
    .32 of. Points that repeat an earlier one (possible with binary dimensions only) are drawn
    again, while there is hope of a new one.

    Args:
        problem: where the anchors are.
        n: how many points, at least one.
        seed: of the points after the anchors.

    Returns:
        `(n, n_dimensions)` points of the unit cube: the distinct anchors in order, then
        clip(N(anchor 0, SPREAD)); binary coordinates are 0.0 or 1.0. The first rows do not depend
        on `n`.
    """
    rng = np.random.default_rng([seed, 0xDE516])
    centre = np.array(problem.anchors[0], dtype=np.float64)
    binary = binary_mask(problem)
    points = list(dict.fromkeys(tuple(map(float, anchor)) for anchor in problem.anchors))
    seen, repeats = set(points), 0
    while len(points) < n:
        around = np.clip(rng.normal(centre, SPREAD), 0.0, 1.0)
        flip = rng.random(len(centre)) < FLIP_PROBABILITY
        bits = (centre >= 0.5) ^ flip
        point = tuple(proposal(np.where(binary, bits, around), binary))
        if point in seen and repeats < 20:
            repeats += 1
            continue
        points.append(point)
        seen.add(point)
        repeats = 0
    return np.array(points[:n], dtype=np.float64)


def proposal(x: FloatArray, binary: NDArray[np.bool_]) -> list[float]:
    """Write a point the way it is proposed: rounded to DECIMALS, bits as 0.0 or 1.0.

    Args:
        x: `(n_dimensions,)` point of the unit cube, bits relaxed.
        binary: `(n_dimensions,)` mask of the bits.
    """
    written: list[float] = np.where(binary, x >= 0.5, np.round(x, DECIMALS)).tolist()
    return written


def binary_mask(problem: Problem) -> NDArray[np.bool_]:
    """Mark the binary dimensions, shape `(n_dimensions,)`."""
    return np.array([dimension.kind == "binary" for dimension in problem.dimensions])
