"""What the samplers of Optuna share: each proposal comes from a study rebuilt from what was told.

Optuna's samplers keep state that its storages do not (random generators, fitted kernels), so that
a study cannot be resumed exactly. A fresh sampler on a fresh study, with a seed of its own for each
proposal, has no such state.
"""

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
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
near enough to leave the scale to the successes."""


class OptunaBased(HistoryBased):
    """Asks a new sampler of Optuna for each proposal; what is pending is RUNNING to it.

    Losses are rescaled to [0, 1] over what was told, so that neither unit nor zero of a score has a
    say. While nothing has succeeded the centred design goes on.
    """

    def __init__(self, problem: Problem, *, seed: int, n_start: int) -> None:
        """Prepare the start: `n_start` points of the centred design, the anchors at least."""
        super().__init__(problem, seed=seed, n_start=n_start)
        self._design = np.array(self._start)
        self._names = [f"{i:06d}" for i in range(len(problem.dimensions))]  # Optuna sorts by name
        self._distributions: dict[str, BaseDistribution] = {}

    @abstractmethod
    def _new_sampler(self, seed: int) -> "BaseSampler":
        """A sampler of Optuna that models from the first trial on, without a start of its own."""

    def _propose(self, view: View, rng: np.random.Generator) -> FloatArray:
        """What a new sampler of Optuna proposes, knowing the view."""
        if len(view.ids) == 0:
            return self._designed(view.n_asked)
        with quiet():
            return self._asked(view, int(rng.integers(2**32)))

    def _designed(self, index: int) -> FloatArray:
        """A point of the start, had it been longer."""
        if index >= len(self._design):
            # its first rows do not depend on its length
            self._design = centred_design(self._problem, 2 * index + 2, self._seed)
        row: FloatArray = self._design[index]
        return row

    def _asked(self, view: View, seed: int) -> FloatArray:
        """Build a study of the view and ask it."""
        from optuna.storages import InMemoryStorage
        from optuna.study import Study, StudyDirection
        from optuna.trial import TrialState

        if not self._distributions:
            self._distributions = _distributions(self._names, self._problem)
        storage = InMemoryStorage()
        # the name keeps Optuna from drawing one from the operating system
        directions = [StudyDirection.MINIMIZE] * self._problem.n_objectives
        storage.create_new_study(directions, study_name="evomerge")
        study = Study("evomerge", storage, sampler=self._new_sampler(seed))
        failed = np.full((len(view.failed), self._problem.n_objectives), FAILED)
        # failures first: TPE gives more weight to the latest, which should be successes
        for point, losses in zip(view.failed, failed, strict=True):
            study.add_trial(self._trial(TrialState.COMPLETE, point, losses.tolist()))
        for point, losses in zip(view.points, rescaled(view.losses), strict=True):
            study.add_trial(self._trial(TrialState.COMPLETE, point, losses.tolist()))
        for point in view.pending:
            study.add_trial(self._trial(TrialState.RUNNING, point, None))
        params = study.ask(self._distributions).params
        x = np.array([params[name] for name in self._names], dtype=np.float64)
        n = self._kinds.n_choices
        return np.where(n > 0, (x + 0.5) / np.maximum(n, 1), x)

    def _trial(self, state: Any, point: FloatArray, losses: list[float] | None) -> "FrozenTrial":
        from optuna.trial import create_trial

        params = {
            name: u
            if dimension.kind == "real"
            else (int(u >= 0.5) if dimension.kind == "binary" else dimension.choice(u))
            for name, u, dimension in zip(
                self._names, point.tolist(), self._problem.dimensions, strict=True
            )
        }
        return create_trial(
            state=state, values=losses, params=params, distributions=self._distributions
        )


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
    import optuna.logging  # noqa: F401  # it sets its logger's level when imported, so before us

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
    """How many points of the design come first: as the user says, or by default.

    Raises:
        ConfigError: it is not a whole number of at least 1.
    """
    if start is None:
        return max(1, min(default, budget // 3))
    if isinstance(start, bool) or not isinstance(start, int) or start < 1:
        raise ConfigError(
            f"the start of {sampler} must be a whole number of points of at least 1, but got "
            f"{start!r}: leave it out for a default"
        )
    return start
