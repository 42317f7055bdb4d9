"""The metrics that objectives name, found among those of the tasks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from evomerge.datatypes import Statistic
from evomerge.errors import TaskError
from fitness.lm_eval.aggregations import MEAN, Columns, known_here
from fitness.lm_eval.tasks import Tasks

Values = Mapping[tuple[str, str], Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """One objective's metric behind one of the task's filters.

    `columns` makes of lm-eval's value for an item the numbers that `statistic` takes; where
    `numbered`, the first column is the number of the item's subtask and not of `columns`.
    """

    metric: str
    filter: str
    statistic: Statistic
    columns: Columns
    numbered: bool = False

    @property
    def name(self) -> str:
        """As a user gives it."""
        return f"{self.metric},{self.filter}"

    def row(self, subtask: int, value: Any) -> Sequence[float]:
        """The numbers of one item."""
        return (subtask, *self.columns(value)) if self.numbered else self.columns(value)


def resolve(
    asked: Sequence[str | None], tasks: Tasks, trials: Sequence[Values], name: str
) -> tuple[Measure, ...]:
    """Find the metrics that objectives name as `metric,filter`, `metric` or None.

    `trials` holds, for each task, what its first item would be worth with a made-up answer.

    Raises:
        TaskError: when a task does not compute a metric, or its scores cannot be combined.
    """
    common = [key for key in trials[0] if all(key in values for values in trials)]
    return tuple(_measure(_find(one, common, trials, name), tasks, trials, name) for one in asked)


def _find(
    asked: str | None, common: Sequence[tuple[str, str]], trials: Sequence[Values], name: str
) -> tuple[str, str]:
    if asked is None:
        if len(common) == 1:
            return common[0]
        raise TaskError(
            f"{name}: an objective must name its metric where the task has several, "
            f"but it does not: choose from {_names(common)}"
        )
    metric, comma, filter_name = asked.partition(",")
    filters = {filter_name for _, filter_name in common}
    if not comma and len(filters) == 1:
        (filter_name,) = filters
    if (metric, filter_name) in common:
        return metric, filter_name
    some = any((metric, filter_name) in values for values in trials)
    close = get_close_matches(asked, [",".join(key) for key in common], n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise TaskError(
        f"{name}: a metric must be one that {'each of its tasks' if some else 'the task'} "
        f"computes, but {asked!r} is not{hint}: choose from {_names(common)}"
    )


def _measure(key: tuple[str, str], tasks: Tasks, trials: Sequence[Values], name: str) -> Measure:
    from lm_eval.api.metrics import mean

    metric, filter_name = key
    kinds = set()
    for task, values in zip(tasks.by_name.values(), trials, strict=True):
        aggregation = task.aggregation().get(metric, mean)
        kind = known_here(aggregation, values[key])
        if kind is None:
            raise TaskError(
                f"{name}: a metric must be numbers per item that are combined in a way known here, "
                f"but {metric!r} is combined by {_name_of(aggregation)!r} from answers like "
                f"{values[key]!r}: choose another metric, or write a Python task whose metric has "
                "aggregation: mean"
            )
        kinds.add(kind)
    (statistic, columns), *others = kinds
    if len(trials) > 1 and (others or statistic != MEAN):
        raise TaskError(
            f"{name}: the scores of several tasks are combined from means, but {metric!r} is "
            "no mean in each of them: give each task an objective of its own"
        )
    if len(trials) > 1 and not tasks.counts_by_size(metric, filter_name):
        by_subtask = Statistic("fitness.statistics:mean_of_subtasks", 2)
        return Measure(metric, filter_name, by_subtask, columns, numbered=True)
    return Measure(metric, filter_name, statistic, columns)


def _names(metrics: Iterable[tuple[str, str]]) -> str:
    """Metrics as a user gives them."""
    known = ", ".join(sorted(f"{metric},{name}" for metric, name in metrics))
    return known or "none, its metric_list is empty"


def _name_of(aggregation: Any) -> str:
    return str(getattr(aggregation, "__name__", aggregation))
