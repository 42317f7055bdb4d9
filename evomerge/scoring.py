"""From the answers of a run to its scores: one estimator to rank by, one to report.

Ranking sees candidates that answered a part of the items, and may learn from those who answered
all; reporting scores who answered the whole pool, and held-out items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evomerge import loading
from evomerge.config import GREEDY_ITEMS
from evomerge.datatypes import Answers, Estimate, FloatArray, Objective, Split
from evomerge.history import History
from evomerge.item_losses import jackknifed
from evomerge.protocols import Estimator

MOST_KNOWN = 256
"""Rows of the response matrix that estimators learn from: baselines and the first to answer all."""

Scores = dict[str, dict[str, Estimate]]
"""Estimates by trial and objective."""


@dataclass(slots=True)
class Scoring:
    """Scores trials of a run by their answers.

    Args:
        objectives: Of the run, with their statistics.
        ranking: For each objective, the estimator of candidates that answered a part of the items.
        reporting: For each objective, the estimator of final scores.
    """

    objectives: Sequence[Objective]
    ranking: Mapping[str, Estimator]
    reporting: Mapping[str, Estimator]
    _rows: dict[str, dict[str, FloatArray]] = field(default_factory=dict)
    """The response matrix: complete answers by objective and trial, in the order of arrival."""

    def score(self, history: History, names: Sequence[str]) -> Scores:
        """The scores of trials on the whole pool of search items, from what they have answered."""
        scores: Scores = {name: {} for name in names}
        for objective in self.objectives:
            n_pool = history.started.n_items[objective.name][0]
            answers = {name: history.answers(name, Split.SEARCH, objective.name) for name in names}
            complete = [name for name in names if len(answers[name].items) >= n_pool]
            partial = [name for name in names if len(answers[name].items) < n_pool]
            if not _is_mean(objective):
                for name in names:
                    scores[name][objective.name] = _statistic(objective, answers[name].values)
                continue
            for kind, group in ((self.reporting, complete), (self.ranking, partial)):
                if group:
                    known = self._known(history, objective.name, n_pool)
                    estimator = kind[objective.name]
                    estimates = estimator.estimate([answers[name] for name in group], known)
                    for name, estimate in zip(group, estimates, strict=True):
                        scores[name][objective.name] = estimate
        return scores

    def report(self, responses: Mapping[str, FloatArray]) -> dict[str, Estimate]:
        """The scores of one model that answered all items of a split, by objective."""
        estimates: dict[str, Estimate] = {}
        for objective in self.objectives:
            values = responses[objective.name]
            if _is_mean(objective):
                answers = Answers(np.arange(len(values)), values)
                known = np.empty((0, len(values)))
                (estimate,) = self.reporting[objective.name].estimate([answers], known)
            else:
                estimate = _statistic(objective, values.reshape(-1, objective.statistic.n_columns))
            estimates[objective.name] = estimate
        return estimates

    def greedy_items(self, history: History, number: int, n: int, seed: int) -> NDArray[np.int64]:
        """The `n` items of a fitness that tell most of those who answered all, for all objectives.

        While nobody has answered all items they are the first in order.
        """
        from_matrix: Callable[..., NDArray[np.int64]] = loading.resolve(GREEDY_ITEMS)
        names = history.started.fitness[number]
        n_pool = history.started.n_items[names[0]][0]
        known = [self._known(history, name, n_pool) for name in names]
        matrix = np.concatenate([rows for rows in known if len(rows)] or [np.empty((0, n_pool))])
        return np.asarray(from_matrix(matrix, n, seed), dtype=np.int64)

    def _known(self, history: History, objective: str, n_pool: int) -> FloatArray:
        rows = self._rows.setdefault(objective, {})
        for trial in history.trials.values():
            if len(rows) >= MOST_KNOWN:
                break
            if trial.name in rows or not history.has_all_items(trial):
                continue
            answers = history.answers(trial.name, Split.SEARCH, objective)
            if len(answers.items) == n_pool and answers.values.ndim == 1:
                rows[trial.name] = answers.values[np.argsort(answers.items)]
        return np.stack(list(rows.values())) if rows else np.empty((0, n_pool))


def plain_score(objective: Objective, values: FloatArray) -> float:
    """The score of one model's `(n_items,)` or `(n_items, n_columns)` answers, nothing else."""
    if objective.statistic.target in ("mean", "exact"):
        return float(values.mean())
    statistic: Callable[[FloatArray], float] = loading.resolve(objective.statistic.target)
    return float(statistic(values.reshape(-1, objective.statistic.n_columns)))


def _is_mean(objective: Objective) -> bool:
    return objective.statistic.target == "mean"


def _statistic(objective: Objective, values: FloatArray) -> Estimate:
    """The score of a statistic that is no mean, its error by the jackknife (Tukey 1958)."""
    n = len(values)
    if objective.statistic.target == "exact":
        return Estimate(float(values.ravel()[0]), 0.0, n)
    score, pseudo_values = jackknifed(objective, values)
    spread = float(np.std(pseudo_values, ddof=1)) if n > 1 else abs(score)
    return Estimate(score, spread / np.sqrt(n), n)
