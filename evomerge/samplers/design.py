"""The centred seeded design: the known-good merges, then points around the best of them."""

from dataclasses import dataclass
from typing import Self

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


@dataclass(frozen=True, slots=True, eq=False)
class Kinds:
    """Which dimensions are what: `(n_dimensions,)` arrays; `n_choices` is 0 unless categorical."""

    binary: NDArray[np.bool_]
    n_choices: NDArray[np.int64]

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Of a problem's dimensions."""
        return cls(
            binary=np.array([d.kind == "binary" for d in problem.dimensions], dtype=np.bool_),
            n_choices=np.array([d.n_choices for d in problem.dimensions], dtype=np.int64),
        )

    @property
    def categorical(self) -> NDArray[np.bool_]:
        """Those with choices."""
        return self.n_choices > 0

    @property
    def real(self) -> NDArray[np.bool_]:
        """Those that are neither."""
        return ~(self.binary | self.categorical)


def centred_design(problem: Problem, n: int, seed: int) -> FloatArray:
    """Place the first points of a search.

    At small budgets the start matters about as much as the algorithm: around a centre, random
    points reach .53 of the hypervolume at 30 evaluations in 24 dimensions that uniform ones reach
    .32 of. Points that repeat an earlier one (possible with binary dimensions only) are drawn
    again, while there is hope of a new one.

    Of a categorical dimension every choice gets its share: the choices take turns, in an order
    drawn anew for each round, and a point is centred on the first of those anchors that agree with
    most of its choices.

    Args:
        problem: where the anchors are.
        n: how many points, at least one.
        seed: of the points after the anchors.

    Returns:
        `(n, n_dimensions)` points of the unit cube: the distinct anchors in order, then
        clip(N(centre, SPREAD)), the centre being anchor 0 where nothing is categorical; binary
        coordinates are 0.0 or 1.0, categorical ones the middles of their choices' shares. The first
        rows do not depend on `n`.
    """
    rng = np.random.default_rng([seed, 0xDE516])
    anchors = np.array(problem.anchors, dtype=np.float64)
    kinds = Kinds.of(problem)
    n_choices = kinds.n_choices[kinds.categorical]
    choices_of_anchors = _choices(anchors[:, kinds.categorical], n_choices)
    turns: list[list[int]] = [[] for _ in n_choices]
    centre = anchors[0].copy()
    points = list(dict.fromkeys(tuple(map(float, anchor)) for anchor in problem.anchors))
    seen, repeats = set(points), 0
    while len(points) < n:
        choices = np.zeros(0, dtype=np.int64)
        if len(n_choices):
            for turn, count in zip(turns, n_choices, strict=True):
                if not turn:
                    turn.extend(rng.permutation(count).tolist())
            choices = np.array([turn.pop() for turn in turns])
            nearest = int((choices_of_anchors == choices).sum(axis=1).argmax())
            centre = anchors[nearest].copy()
            centre[kinds.categorical] = (choices + 0.5) / n_choices
        around = np.clip(rng.normal(centre, SPREAD), 0.0, 1.0)
        flip = rng.random(len(centre)) < FLIP_PROBABILITY
        bits = (centre >= 0.5) ^ flip
        x = np.where(kinds.binary, bits, np.where(kinds.categorical, centre, around))
        point = tuple(proposal(x, kinds))
        if point in seen and repeats < 20:
            repeats += 1
            for turn, choice in zip(turns, choices, strict=True):
                turn.insert(0, int(choice))  # last of its round: its share is still owed
            continue
        points.append(point)
        seen.add(point)
        repeats = 0
    return np.array(points[:n], dtype=np.float64)


def proposal(x: FloatArray, kinds: Kinds) -> list[float]:
    """Write a point the way it is proposed.

    Args:
        x: `(n_dimensions,)` point of the unit cube, bits and choices relaxed.
        kinds: of the dimensions.

    Returns:
        The point rounded to DECIMALS, bits as 0.0 or 1.0, choices as the middles of their shares.
    """
    written = np.where(kinds.binary, x >= 0.5, np.round(x, DECIMALS))
    with_choices = kinds.categorical
    if with_choices.any():
        n = kinds.n_choices[with_choices]
        written[with_choices] = np.round((_choices(x[with_choices], n) + 0.5) / n, DECIMALS)
    listed: list[float] = written.tolist()
    return listed


def _choices(u: FloatArray, n_choices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The choices that coordinates name; `n_choices` is along the last axis."""
    return np.minimum((u * n_choices).astype(np.int64), n_choices - 1)
