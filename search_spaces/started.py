"""A space that starts from a given merge: the nearest of its points is the first anchor."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.datatypes import Dimension, FloatArray, Group, Recipe
from evomerge.errors import ConfigError
from evomerge.protocols import SearchSpace
from search_spaces.merge_space import merge_space

_STEPS = 8
_HALVINGS = 4
_DIFFERENCE = 0.01
"""Of a coordinate: coefficients are rounded, so that smaller ones would see that."""


class StartedSpace:
    """Another space with one anchor more."""

    def __init__(self, inner: SearchSpace, start: tuple[float, ...]) -> None:
        self._inner = inner
        self._start = start

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Those of the space."""
        return self._inner.dimensions

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """The start, then those of the space."""
        return tuple(dict.fromkeys((self._start, *self._inner.anchors)))

    def decode(self, u: Sequence[float]) -> Recipe:
        """As the space does."""
        return self._inner.decode(u)


def started_space(
    experts: Sequence[str],
    groups: Sequence[Group],
    *,
    start: Mapping[str, Any],
    **options: Any,
) -> StartedSpace:
    """A merge space that starts near a recipe.

    Args:
        experts: Names, in the order of the recipes.
        groups: Of the base.
        start: A recipe as JSON has it, of these experts (in any order) and groups. Its coefficients
            count; operator and knobs are the space's.
        options: Of `merge_space`.

    Raises:
        ConfigError: The recipe is of other experts or groups, or an option is wrong.
    """
    inner = merge_space(experts, groups, **options)
    recipe = Recipe.from_json(start)
    labels = tuple(group.label for group in groups)
    for what, given, own in (
        ("experts", recipe.experts, tuple(experts)),
        ("groups", recipe.groups, labels),
    ):
        if sorted(given) != sorted(own):
            raise ConfigError(
                f"a start is a recipe of the run's own {what}, but it has {len(given)} and "
                f"{sorted(set(given) ^ set(own))[:3]} are in one of both only: give the recipe "
                "of another run on these models, or leave start out"
            )
    rows = [recipe.experts.index(name) for name in experts]
    columns = [recipe.groups.index(label) for label in labels]
    target = recipe.matrix()[np.ix_(rows, columns)]
    sizes = np.array([float(group.n_parameters) for group in groups])
    return StartedSpace(inner, nearest(inner, target, np.sqrt(sizes / sizes.sum())))


def nearest(space: SearchSpace, C: FloatArray, weights: FloatArray) -> tuple[float, ...]:
    """The point whose coefficients are nearest, by least squares, from the first anchor on.

    Gauss-Newton with differences of the space's own decoding, so that it knows of no map: exact in
    one step where coefficients are linear in the coordinates and the target is in the space.

    Args:
        space: Any one.
        C: The target, shape `(n_experts, n_groups)`.
        weights: Of the groups' errors, shape `(n_groups,)`.
    """

    def error(u: FloatArray) -> FloatArray:
        return np.ravel((C - space.decode(tuple(u.tolist())).matrix()) * weights)

    u = np.array(space.anchors[0], dtype=np.float64)
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
