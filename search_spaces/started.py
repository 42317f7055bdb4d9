"""A space that starts from a given merge: the nearest of its points is the first anchor."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.datatypes import Dimension, Group, Recipe
from evomerge.errors import ConfigError
from evomerge.projection import group_weights, nearest
from evomerge.protocols import SearchSpace
from search_spaces.merge_space import merge_space


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
    return StartedSpace(inner, nearest(inner, target, group_weights(groups)))
