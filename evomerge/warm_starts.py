"""Where a search starts: merges that another run, a file or a rule of thumb calls good.

Each becomes a point of this run's space, the nearest one, and an anchor of its sampler. That costs
no evaluation, and the objectives of the other run may be others: a cheap run on unlabeled text can
say where a run on labelled tasks begins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evomerge.config import Config, StartConfig
from evomerge.datatypes import FloatArray, Group, Recipe
from evomerge.errors import ConfigError
from evomerge.history import read_history
from evomerge.pareto import knee, spread
from evomerge.projection import group_weights, nearest
from evomerge.protocols import SearchSpace
from evomerge.run_folder import RunFolder

PLAIN = "task_arithmetic"

PRIORS = (0.2, 0.4, 0.6)
"""Mean coefficients of ramps of all experts."""

LEADING, FOLLOWING = 0.8, 0.2
"""Mean coefficients of a ramp in which one expert leads, and of those that follow."""

RISE = (0.5, 1.5)
"""Of a ramp at the first and the last layer, over its mean: early layers are shared and late ones
specific, so coefficients that are learned by layer rise (AdaMerging, Yang et al. 2024), and scaling
them linearly with depth helps (LiNeS, Wang et al. 2025)."""

Bind = Callable[[Config, Sequence[Group]], SearchSpace]


def warm_starts(
    start: StartConfig,
    space: SearchSpace,
    experts: Sequence[str],
    groups: Sequence[Group],
    baselines: Mapping[str, Recipe],
    bind: Bind,
) -> tuple[tuple[float, ...], ...]:
    """The points that a configuration starts from, in the order of its keys, then the space's own.

    Args:
        start: What the configuration says.
        space: Of this run.
        experts: Names, in the order of the recipes.
        groups: Of the base.
        baselines: Of this run.
        bind: Makes the space of another run's configuration.

    Returns:
        Anchors for the sampler; of those that decode to the same recipe the first.

    Raises:
        ConfigError: nothing is asked for, or what is asked for does not fit this run.
        RunError: a run that it names is none.
        JournalError: that run's journal is damaged.
    """
    projector = _Projector(space, experts, groups)
    points: list[tuple[float, ...]] = []
    if start.run is not None:
        points += _of_run(Path(start.run), start.n, projector, bind)
    for plain in start.recipes:
        if isinstance(plain, str):
            raise ConfigError(f"a recipe stands in a configuration as it was read, but got {plain}")
        points.append(projector.point(Recipe.from_json(plain), "start.recipes"))
    if start.baselines:
        points += [
            projector.point(recipe, "start.baselines")
            for recipe in baselines.values()
            if recipe.operator == PLAIN and recipe.matrix().any()
        ]
    if start.layer_priors is not False and start.layer_priors != []:
        points += [projector.nearest(C) for C in _ramps(start.layer_priors, len(experts), groups)]
    if not points:
        raise ConfigError(
            "a start names a run, recipes, baselines: true or layer_priors: true, but it has none "
            "of them: add one, or leave start out"
        )
    distinct: dict[str, tuple[float, ...]] = {}
    for point in (*points, *space.anchors):
        distinct.setdefault(space.decode(point).digest, point)
    return tuple(distinct.values())


class _Projector:
    """Finds points of a space for recipes of the same experts and groups."""

    def __init__(self, space: SearchSpace, experts: Sequence[str], groups: Sequence[Group]) -> None:
        self._space = space
        self._experts = tuple(experts)
        self._groups = tuple(group.label for group in groups)
        self._weights = group_weights(groups)
        self._anchors = [(anchor, space.decode(anchor)) for anchor in space.anchors]

    @property
    def operators(self) -> set[str]:
        """Those that the space has: at its anchors there is each."""
        return {recipe.operator for _, recipe in self._anchors}

    def point(self, recipe: Recipe, source: str) -> tuple[float, ...]:
        """The point nearest to a recipe, in its coefficients; of its operator, where there is one.

        Raises:
            ConfigError: it has other experts or groups than this run.
        """
        unknown = sorted(set(recipe.experts) - set(self._experts))
        if unknown:
            raise ConfigError(
                f"{source} holds merges of the run's own experts ({', '.join(self._experts)}), but "
                f"one is of {', '.join(unknown)}: add them to this run, or give other merges"
            )
        if sorted(recipe.groups) != sorted(self._groups):
            other = sorted(set(recipe.groups) ^ set(self._groups))
            raise ConfigError(
                f"{source} holds merges of the run's own base, but one has {len(recipe.groups)} "
                f"groups where this base has {len(self._groups)} ({', '.join(other[:3])} in one of "
                "both only): give merges of the same model"
            )
        C = np.zeros((len(self._experts), len(self._groups)))
        columns = [recipe.groups.index(label) for label in self._groups]
        for name, row in zip(recipe.experts, recipe.matrix(), strict=True):
            C[self._experts.index(name)] = row[columns]  # an expert that was not there has none
        return nearest(self._space, C, self._weights, self._anchor_for(recipe))

    def nearest(self, C: FloatArray) -> tuple[float, ...]:
        """The point nearest to `(n_experts, n_groups)` of coefficients."""
        return nearest(self._space, C, self._weights)

    def same(self, u: tuple[float, ...], recipe: Recipe) -> bool:
        """Whether a point of another space is a point of this one, and is the same merge here."""
        if len(u) != len(self._space.dimensions):
            return False
        own = self._space.decode(u)
        return own == replace(recipe, seed=own.seed)

    def _anchor_for(self, recipe: Recipe) -> tuple[float, ...]:
        """The first anchor that agrees in the operator and most of its knobs."""

        def agreement(own: Recipe) -> tuple[bool, int]:
            return own.operator == recipe.operator, sum(
                recipe.prepare.get(name) == value for name, value in own.prepare.items()
            )

        return max(self._anchors, key=lambda pair: agreement(pair[1]))[0]


def _of_run(run: Path, n: int, projector: _Projector, bind: Bind) -> list[tuple[float, ...]]:
    """Points for the candidates on the front of a run: its knee, then a spread over all of it.

    Its baselines are those of this run too, and `start.baselines` has them.
    """
    history = read_history(run)
    space = bind(RunFolder(run).read_config(), history.started.groups)
    front = [] if history.front is None else [history.trials[t] for t in history.front.trials]
    pairs = [(t, history.recipe(t, space.decode)) for t in front if not t.is_baseline]
    pairs = [pair for pair in pairs if pair[1].operator in projector.operators]
    if not pairs:
        used = ", ".join(sorted(projector.operators))
        raise ConfigError(
            f"a start takes candidates by this space's operators ({used}) from the front of a run, "
            f"but {run} has none: give another run, or a space with the operators of that one"
        )
    losses = history.losses([trial for trial, _ in pairs])
    # the first one is the centre of a sampler's design: the knee depends on no objective's scale
    rows = list(dict.fromkeys((knee(losses), *spread(losses, n))))[:n]
    points = []
    for trial, recipe in [pairs[i] for i in rows]:
        if trial.u is not None and projector.same(trial.u, recipe):
            points.append(trial.u)
        else:
            points.append(projector.point(recipe, f"start.run {run}"))
    return points


def _ramps(
    priors: bool | Sequence[float], n_experts: int, groups: Sequence[Group]
) -> list[FloatArray]:
    """Coefficients that rise with depth: of all experts alike, then with each of them leading."""
    means = PRIORS if isinstance(priors, bool) else tuple(priors)
    low, high = RISE
    ramp = np.array([low + (high - low) * group.depth for group in groups])
    found = [np.tile(mean * ramp, (n_experts, 1)) for mean in means]
    if n_experts > 1:
        for k in range(n_experts):
            scales = np.full(n_experts, FOLLOWING)
            scales[k] = LEADING
            found.append(np.outer(scales, ramp))
    return found
