"""What the samplers of Optuna share: each proposal comes from a study rebuilt from what was told.

Optuna's samplers keep state that its storages do not (random generators, fitted kernels), so that
a study cannot be resumed exactly. A new sampler on a new study, with a seed of its own for each
proposal, has no such state.
"""

import copy
import functools
import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import centred_design
from evomerge.samplers.history_based import HistoryBased, View

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

FAILED = 1.1
"""Loss of a failed candidate where those of the successes go from 0 to 1: worse than the worst, but
so near to it that the successes keep the scale."""

_WHEN = datetime(2000, 1, 1, tzinfo=UTC)
"""Optuna wants to know when a trial was made, and does nothing with it."""


class OptunaBased(HistoryBased):
    """Asks a new sampler of Optuna for each proposal; what is pending is RUNNING to it.

    Each objective's losses are rescaled to [0, 1] over what was told: neither the unit nor the zero
    of a score has a say. Failed candidates are worse than all others. While nothing has succeeded
    the centred design goes on. Standard errors are not used.
    """

    def __init__(self, problem: Problem, *, seed: int, n_start: int) -> None:
        """Prepare the start: `n_start` points of the centred design, the anchors at least."""
        super().__init__(problem, seed=seed, n_start=n_start)
        self._design = np.array(self._start)
        self._names = [f"{i:06d}" for i in range(len(problem.dimensions))]  # as Optuna sorts them
        self._distributions: dict[str, BaseDistribution] = {}

    @abstractmethod
    def _new_sampler(self, seed: int) -> "BaseSampler":
        """A sampler of Optuna that has no start of its own: it models from the first trial on."""

    def _propose(self, view: View, rng: np.random.Generator) -> FloatArray:
        if len(view.ids) == 0:
            return self._designed(view.n_asked)
        losses = rescaled(view.losses)
        return self._asked(view.points, losses, view.failed, view.pending, rng)

    def _designed(self, index: int) -> FloatArray:
        """What the start would hold at an index, had it been longer."""
        if index >= len(self._design):
            # in doubling steps; its first rows do not depend on its length
            self._design = centred_design(self._problem, 2 * index + 2, self._seed)
        row: FloatArray = self._design[index]
        return row

    def _asked(
        self,
        points: FloatArray,
        losses: FloatArray,
        failed: FloatArray,
        pending: FloatArray,
        rng: np.random.Generator,
    ) -> FloatArray:
        """Ask a new sampler that knows the given points and losses, as `View` shapes them."""
        from optuna.storages import InMemoryStorage
        from optuna.study import Study, StudyDirection
        from optuna.trial import TrialState

        if not self._distributions:
            self._distributions = _distributions(self._names, self._problem)
        n_objectives = losses.shape[1]
        with quiet():
            storage = InMemoryStorage()
            # with a name, else Optuna draws one from the operating system
            storage.create_new_study([StudyDirection.MINIMIZE] * n_objectives, "evomerge")
            sampler = self._new_sampler(int(rng.integers(2**32)))
            study = Study("evomerge", storage, sampler=sampler)
            # failures first, as the oldest: TPE gives more weight to what is late
            for point in failed:
                study.add_trial(self._trial(TrialState.COMPLETE, point, [FAILED] * n_objectives))
            for point, values in zip(points, losses, strict=True):
                study.add_trial(self._trial(TrialState.COMPLETE, point, values.tolist()))
            for point in pending:
                study.add_trial(self._trial(TrialState.RUNNING, point, None))
            proposed = study.ask(self._distributions).params
        x = np.array([proposed[name] for name in self._names], dtype=np.float64)
        n = self._kinds.n_choices
        return np.where(n > 0, (x + 0.5) / np.maximum(n, 1), x)

    def _trial(self, state: Any, point: FloatArray, losses: list[float] | None) -> "FrozenTrial":
        params: dict[str, Any] = {}
        for name, u, dimension in zip(
            self._names, point.tolist(), self._problem.dimensions, strict=True
        ):
            if dimension.kind == "categorical":
                params[name] = dimension.choice(u)
            else:
                params[name] = int(u >= 0.5) if dimension.kind == "binary" else u
        return _shared_trial()(
            number=-1,
            trial_id=-1,  # the storage numbers it
            state=state,
            value=None,
            values=losses,
            datetime_start=_WHEN,
            datetime_complete=_WHEN if losses else None,
            params=params,
            distributions=self._distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )


@functools.cache
def _shared_trial() -> "type[FrozenTrial]":
    """A trial that the storage copies shallowly: three quarters of an ask of TPE were deep copies.

    Safe, as a storage replaces what a finished trial holds and never edits it.
    """
    from optuna.trial import FrozenTrial

    class SharedTrial(FrozenTrial):
        def __deepcopy__(self, _: dict[int, Any]) -> "SharedTrial":
            return copy.copy(self)

    return SharedTrial


def _distributions(names: list[str], problem: Problem) -> "dict[str, BaseDistribution]":
    """The dimensions of a problem in Optuna's words; bits are choices of two."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        name: FloatDistribution(0.0, 1.0)
        if dimension.kind == "real"
        else CategoricalDistribution(range(max(dimension.n_choices, 2)))
        for name, dimension in zip(names, problem.dimensions, strict=True)
    }


def rescaled(losses: FloatArray) -> FloatArray:
    """Losses `(n, n_objectives)`, each column from 0 (best) to 1 (worst), or 0 if all agree."""
    largest = np.abs(losses).max(axis=0)
    # by the largest first: a difference of two losses may overflow
    fractions = losses / np.where(largest > 0.0, largest, 1.0)
    best = fractions.min(axis=0)
    span = fractions.max(axis=0) - best
    return np.asarray((fractions - best) / np.where(span > 0.0, span, 1.0))


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what Optuna logs and warns of, and leave the settings of both as they were."""
    import optuna.logging  # noqa: F401  # sets its logger's level when imported, so before we do

    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def checked_start(sampler: str, start: object, default: int, budget: int) -> int:
    """How many points of the design come first: what the user says, or the default.

    The default is never more than a third of the budget.

    Raises:
        ConfigError: `start` is not a whole number of at least 1.
    """
    if start is None:
        return max(1, min(default, budget // 3))
    if isinstance(start, bool) or not isinstance(start, int) or start < 1:
        raise ConfigError(
            f"the start of {sampler} must be a whole number of points of at least 1, but got "
            f"{start!r}: leave it out for a default"
        )
    return start
