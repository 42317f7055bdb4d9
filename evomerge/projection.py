"""Where a merge lies in a search space: the nearest point, and what the coordinates move.

Found by decoding alone, so that it knows of no space in particular.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import Dimension, FloatArray, Group
from evomerge.protocols import SearchSpace

_STEPS = 8
_HALVINGS = 4
_DIFFERENCE = 0.01
"""Of a coordinate: coefficients are rounded, so that smaller ones would see that."""

NEAR = 0.05
"""Largest error of a coefficient of a point that stands for the base or for an expert alone."""

ALIKE = 0.9
"""Of the largest movement: what moves by so much moves as much."""

MOST_ENTRIES = 4_000_000
"""Of all differences of coefficients (dimensions x experts x groups): under a second as a rule."""

MOST_SOLVED = 512
"""Dimensions up to which least squares are solved for the base and the experts."""

MOST_DECODINGS = 4096
"""For the base and the experts in spaces that are not linear: half a second as a rule."""


@dataclass(frozen=True, slots=True)
class Landmarks:
    """What `Problem` says of a space, in its words; empty or None where it is not known."""

    origin: tuple[float, ...] | None = None
    experts: tuple[tuple[float, ...], ...] = ()
    owners: tuple[int | None, ...] = ()
    depths: tuple[float | None, ...] = ()


def group_weights(groups: Sequence[Group]) -> FloatArray:
    """Weights of errors in coefficients, shape `(n_groups,)`: roots of the shares of parameters."""
    sizes = np.array([float(group.n_parameters) for group in groups])
    return np.asarray(np.sqrt(sizes / sizes.sum()))


def nearest(
    space: SearchSpace,
    C: FloatArray,
    weights: FloatArray,
    start: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """The point whose coefficients are nearest, by least squares, from an anchor on.

    Gauss-Newton with differences of the space's own decoding: exact in one step where coefficients
    are linear in the coordinates and the target is in the space. Bits and choices stay.

    Args:
        space: Any one.
        C: The target, shape `(n_experts, n_groups)`.
        weights: Of the groups' errors, shape `(n_groups,)`.
        start: Where to begin; the first anchor if left out.
    """

    def error(u: FloatArray) -> FloatArray:
        return np.ravel((C - space.decode(tuple(u.tolist())).matrix()) * weights)

    u = np.array(space.anchors[0] if start is None else start, dtype=np.float64)
    left = error(u)
    for _ in range(_STEPS):
        steps = np.where(u < 0.5, _DIFFERENCE, -_DIFFERENCE)
        J = np.empty((len(left), len(u)))
        for i, step in enumerate(steps):
            moved = u.copy()
            moved[i] += step
            J[:, i] = (left - error(moved)) / step
        direction = np.linalg.lstsq(J, left, rcond=1e-9)[0]
        for halving in range(_HALVINGS):
            tried = np.round(np.clip(u + direction / 2**halving, 0.0, 1.0), 9)
            of_tried = error(tried)
            if of_tried @ of_tried < left @ left:
                break
        else:
            break
        u, left = tried, of_tried
    return tuple(u.tolist())


def landmarks(space: SearchSpace, groups: Sequence[Group]) -> Landmarks:
    """Find base and experts in a space, and whom and where each coordinate moves.

    Whom and where: from a small step at the first anchor (bits and choices: to the next value).
    What would take long is left out; counts decide that, and not time, because samplers that use
    it must propose the same in every process.

    Args:
        space: Any one.
        groups: Of the base, in the order of the space's recipes.
    """
    first = space.decode(space.anchors[0])
    n_experts = len(first.experts)
    d = len(space.dimensions)
    if d * n_experts * len(groups) > MOST_ENTRIES:
        return Landmarks()
    moves = _Moves(space, groups)
    owners, depths = zip(*(moves.owner_and_depth(i) for i in range(d)), strict=True)
    if d > MOST_SOLVED:
        return Landmarks(owners=owners, depths=depths)
    targets = [np.zeros((n_experts, len(groups)))]
    for k in range(n_experts):
        targets.append(np.zeros((n_experts, len(groups))))
        targets[-1][k] = 1.0
    origin, *experts = moves.points_near(targets)
    found = tuple(point for point in experts if point is not None)
    return Landmarks(origin, found if len(found) == n_experts else (), owners, depths)


class _Moves:
    """How coefficients change with each coordinate at the first anchor."""

    def __init__(self, space: SearchSpace, groups: Sequence[Group]) -> None:
        self._space = space
        self._u = space.anchors[0]
        self._recipe = space.decode(self._u)
        self._C = self._recipe.matrix()
        self._weights = group_weights(groups)
        self._sizes = np.array([float(group.n_parameters) for group in groups])
        self._depths = np.array([group.depth for group in groups])
        layers = sorted({group.layer for group in groups if group.layer is not None})
        self._layers = [
            np.array([group.layer == layer for group in groups], dtype=np.bool_) for layer in layers
        ]
        self._steps = np.zeros(len(self._u))
        """Of the real coordinates; 0 of others."""
        self._differences = np.zeros((len(self._u), *self._C.shape))
        """What a step, or the next value, changes in the coefficients."""
        for i, dimension in enumerate(space.dimensions):
            if dimension.kind == "real":
                self._steps[i] = _DIFFERENCE if self._u[i] < 0.5 else -_DIFFERENCE
                value = self._u[i] + float(self._steps[i])
            else:
                value = next(_other_values(dimension, self._u[i]))
            recipe = space.decode(_with(self._u, i, value))
            # another operator is no movement: its coefficients mean something else
            if recipe.operator == self._recipe.operator:
                self._differences[i] = recipe.matrix() - self._C

    def owner_and_depth(self, i: int) -> tuple[int | None, float | None]:
        """The expert that a coordinate moves most, and the mean depth of what it moves."""
        sizes = np.abs(self._differences[i]) * self._sizes
        by_expert, by_group = sizes.sum(axis=1), sizes.sum(axis=0)
        if not by_group.any():
            return None, None
        most = int(np.argmax(by_expert))
        rivals = np.delete(by_expert, most)
        is_shared = len(rivals) > 0 and rivals.max() >= ALIKE * by_expert[most]
        owner = None if is_shared else most
        by_layer = np.array(
            [by_group[layer].sum() / self._sizes[layer].sum() for layer in self._layers]
        )
        if len(by_layer) and by_layer.max() > 0 and by_layer.min() >= ALIKE * by_layer.max():
            return owner, None
        depth = float((by_group * self._depths).sum() / by_group.sum())
        return owner, round(min(max(depth, 0.0), 1.0), 9)

    def points_near(self, targets: Sequence[FloatArray]) -> list[tuple[float, ...] | None]:
        """For each `(n_experts, n_groups)` of coefficients a point that decodes to about these."""
        real = np.flatnonzero(self._steps)
        J = np.array(
            [np.ravel(self._differences[i] * self._weights) / self._steps[i] for i in real]
        )
        errors = np.array([np.ravel((C - self._C) * self._weights) for C in targets])
        directions = np.zeros((len(targets), len(self._u)))
        if len(real):
            directions[:, real] = np.linalg.lstsq(J.T, errors.T, rcond=1e-9)[0].T
        n_others = sum(len(list(_other_values(*pair))) for pair in self._pairs())
        # a pass over bits and choices, and mostly two steps of least squares
        may_go_on = len(targets) * (n_others + 2 * len(self._u)) <= MOST_DECODINGS
        found: list[tuple[float, ...] | None] = []
        for C, direction in zip(targets, directions, strict=True):
            point: tuple[float, ...] = tuple(
                np.round(np.clip(np.array(self._u) + direction, 0.0, 1.0), 9).tolist()
            )
            if not self._is_near(point, C) and may_go_on:
                point = nearest(self._space, C, self._weights)
                if not self._is_near(point, C) and n_others:
                    point = nearest(self._space, C, self._weights, self._turned(point, C))
            found.append(point if self._is_near(point, C) else None)
        return found

    def _pairs(self) -> Iterator[tuple[Dimension, float]]:
        return zip(self._space.dimensions, self._u, strict=True)

    def _is_near(self, point: tuple[float, ...], C: FloatArray) -> bool:
        return bool(np.abs(self._space.decode(point).matrix() - C).max() <= NEAR)

    def _turned(self, point: tuple[float, ...], C: FloatArray) -> tuple[float, ...]:
        """The point after those bits and choices were turned in turn that bring it nearer."""

        def error(u: tuple[float, ...]) -> float:
            recipe = self._space.decode(u)
            if recipe.operator != self._recipe.operator:
                return np.inf
            return float((((recipe.matrix() - C) * self._weights) ** 2).sum())

        left = error(point)
        for i, dimension in enumerate(self._space.dimensions):
            for value in _other_values(dimension, point[i]):
                tried = _with(point, i, value)
                of_tried = error(tried)
                if of_tried < left:
                    point, left = tried, of_tried
        return point


def _with(u: Sequence[float], i: int, value: float) -> tuple[float, ...]:
    return (*u[:i], value, *u[i + 1 :])


def _other_values(dimension: Dimension, u: float) -> Iterator[float]:
    """The values of a bit or a choice besides the present one; none of a real coordinate."""
    if dimension.kind == "binary":
        yield 0.0 if u >= 0.5 else 1.0
    elif dimension.kind == "categorical":
        n, present = dimension.n_choices, dimension.choice(u)
        for step in range(1, n):
            yield dimension.position((present + step) % n)
