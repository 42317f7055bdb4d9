"""What trials answered item by item, as losses whose means compare trials on shared items."""

from collections.abc import Callable, Sequence

import numpy as np

from evomerge import loading
from evomerge.config import JACKKNIFE
from evomerge.datatypes import Answers, Evidence, FloatArray, Objective, Split
from evomerge.history import History, Trial


def has_answered_all(history: History, trial: Trial, split: Split) -> bool:
    """Whether a trial has scores from all items of a split."""
    if split is Split.SEARCH:
        return history.has_all_items(trial)
    return trial.held_out is not None


def item_losses(history: History, trials: Sequence[Trial], split: Split) -> list[FloatArray]:
    """For each objective the `(n_trials, n_items)` losses of trials that answered the same items.

    In the order of the items, so that columns are shared. Their means are the losses (of
    statistics that are no means: the jackknife's, Tukey 1958).
    """
    losses = []
    for objective in history.objectives:
        rows = [
            _contributions(objective, history.answers(trial.name, split, objective.name))
            for trial in trials
        ]
        losses.append(objective.loss(1.0) * np.stack(rows))
    return losses


def evidence_of(history: History, trial: Trial, *, with_answers: bool) -> Evidence | None:
    """What a trial's losses on search items rest on; None without scores."""
    if trial.search is None:
        return None
    estimates = [trial.search[objective.name] for objective in history.objectives]
    answers: list[Answers] = []
    for objective in history.objectives if with_answers else ():
        given = history.answers(trial.name, Split.SEARCH, objective.name)
        values = objective.loss(1.0) * _contributions(objective, given)
        answers.append(Answers(np.sort(given.items), values))
    return Evidence(
        standard_errors=tuple(estimate.standard_error for estimate in estimates),
        n_items=tuple(estimate.n_items for estimate in estimates),
        answers=tuple(answers),
    )


def pools_of(history: History) -> list[int]:
    """For each objective the number of its fitness: objectives of one fitness share their items."""
    number = {name: i for i, names in enumerate(history.started.fitness) for name in names}
    return [number[objective.name] for objective in history.objectives]


def by_pool(losses: Sequence[FloatArray], pools: Sequence[int]) -> list[FloatArray]:
    """For each pool the sum of its objectives' losses, item by item: errors of one item add up."""
    sums: dict[int, FloatArray] = {}
    for pool, matrix in zip(pools, losses, strict=True):
        sums[pool] = sums[pool] + matrix if pool in sums else matrix
    return list(sums.values())


def _contributions(objective: Objective, answers: Answers) -> FloatArray:
    """`(n_items,)` numbers whose mean is the score, in the order of the items."""
    values = answers.values[np.argsort(answers.items)]
    if objective.statistic.target in ("mean", "exact"):
        return values.ravel()
    return jackknifed(objective, values)[1]


def jackknifed(objective: Objective, values: FloatArray) -> tuple[float, FloatArray]:
    """The score of a statistic that is no mean, and `(n_items,)` pseudo-values of its answers."""
    statistic: Callable[[FloatArray], float] = loading.resolve(objective.statistic.target)
    jackknife = loading.resolve(JACKKNIFE)
    score, pseudo_values = jackknife(statistic, values.reshape(-1, objective.statistic.n_columns))
    return float(score), np.asarray(pseudo_values, dtype=np.float64)
