"""From lm-eval's metrics to numbers per item, and how they become one score."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from evomerge.datatypes import Statistic
from evomerge.errors import TaskError
from fitness.lm_eval.tasks import Tasks

Values = Mapping[tuple[str, str], Any]
Columns = Callable[[Any], Sequence[float]]

_MEAN = Statistic()


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
        kind = _kind(aggregation, values[key])
        if kind is None:
            raise TaskError(
                f"{name}: a metric must be numbers per item that are combined in a way known here, "
                f"but {metric!r} is combined by {_name_of(aggregation)!r} from answers like "
                f"{values[key]!r}: choose another metric, or write a Python task whose metric has "
                "aggregation: mean"
            )
        kinds.add(kind)
    (statistic, columns), *others = kinds
    if len(trials) > 1 and (others or statistic != _MEAN):
        raise TaskError(
            f"{name}: the scores of several tasks are combined from means, but {metric!r} is "
            "no mean in each of them: give each task an objective of its own"
        )
    if len(trials) > 1 and not tasks.counts_by_size(metric, filter_name):
        by_subtask = Statistic("fitness.statistics:mean_of_subtasks", 2)
        return Measure(metric, filter_name, by_subtask, columns, numbered=True)
    return Measure(metric, filter_name, statistic, columns)


def _kind(aggregation: Any, example: Any) -> tuple[Statistic, Columns] | None:
    """How lm-eval's aggregation is made of sums over items; None if that is not known."""
    from lm_eval.api import metrics

    def named(function: str, n_columns: int) -> Statistic:
        return Statistic(f"fitness.statistics:{function}", n_columns)

    known: dict[Any, tuple[Statistic, Columns]] = {
        metrics.mean: (_MEAN, _number),
        metrics.nanmean: (named("weighted_mean", 2), _number_if_any),
        metrics.median: (named("median", 1), _number),
        metrics.perplexity: (named("perplexity", 1), _number),
        metrics.weighted_mean: (named("weighted_mean", 2), _two_numbers),
        metrics.weighted_perplexity: (named("weighted_perplexity", 2), _two_numbers),
        metrics.bits_per_byte: (named("bits_per_byte", 2), _two_numbers),
        metrics.f1_score: (named("f1", 2), _two_labels),
        metrics.matthews_corrcoef: (named("mcc", 2), _two_numbers),
        metrics.brier_score: (_MEAN, _brier),
        metrics.bleu: (named("bleu", 10), _bleu),
        metrics.chrf: (named("chrf", 18), _chrf),
        metrics.chrfpp: (named("chrf", 24), _chrf_with_words),
        metrics.ter: (named("ter", 2), _ter),
    }
    kind = known.get(aggregation) or _flattened(aggregation, example)
    if kind is None:
        return None
    try:
        numbers = kind[1](example)
    except (TypeError, ValueError, IndexError):
        return None
    return kind if len(numbers) == kind[0].n_columns else None


def _flattened(aggregation: Any, example: Any) -> tuple[Statistic, Columns] | None:
    """A task's own function is known here if it is the mean, of numbers or of lists of numbers.

    Found by trying: IFEval's `inst_level_strict_acc` is one.
    """
    rng = np.random.default_rng(0)
    is_list = isinstance(example, list | tuple)
    for _ in range(3):
        lists = [rng.integers(0, 2, size).tolist() for size in rng.integers(1, 5, 7)]
        values = lists if is_list else [numbers[0] for numbers in lists]
        flat = [one for numbers in lists for one in numbers] if is_list else values
        try:
            score = float(aggregation(values))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return None
        if not np.isclose(score, np.mean(flat), rtol=1e-12, atol=0):
            return None
    if is_list:
        return Statistic("fitness.statistics:weighted_mean", 2), _sum_and_count
    return _MEAN, _number


def _number(value: Any) -> Sequence[float]:
    if isinstance(value, str):
        raise TypeError("a text is no number")
    return (float(value),)


def _number_if_any(value: Any) -> Sequence[float]:
    return (0.0, 0.0) if np.isnan(value) else (float(value), 1.0)


def _two_numbers(value: Any) -> Sequence[float]:
    first, second = value
    return (float(first), float(second))


def _two_labels(value: Any) -> Sequence[float]:
    gold, predicted = _two_numbers(value)
    if not {gold, predicted} <= {0.0, 1.0}:
        raise ValueError(f"F1 is of the labels 0 and 1, but one item has {gold:g}, {predicted:g}")
    return gold, predicted


def _sum_and_count(value: Any) -> Sequence[float]:
    return (float(sum(value)), float(len(value)))


def _brier(value: Any) -> Sequence[float]:
    gold, probabilities = value
    truth = np.zeros(len(probabilities))
    truth[gold] = 1
    return (float(np.square(np.asarray(probabilities) - truth).sum()),)


def _bleu(value: Any) -> Sequence[float]:
    from sacrebleu.metrics.bleu import BLEU

    return _of_segment(BLEU(), value)


def _chrf(value: Any) -> Sequence[float]:
    from sacrebleu.metrics.chrf import CHRF

    return _of_segment(CHRF(), value)


def _chrf_with_words(value: Any) -> Sequence[float]:
    from sacrebleu.metrics.chrf import CHRF

    return _of_segment(CHRF(word_order=2), value)


def _ter(value: Any) -> Sequence[float]:
    from sacrebleu.metrics.ter import TER

    return _of_segment(TER(), value)


def _of_segment(metric: Any, value: Any) -> Sequence[float]:
    """What sacrebleu sums over the segments of a corpus, of one (references, prediction)."""
    references, prediction = value
    references = [references] if isinstance(references, str) else list(references)
    if not isinstance(prediction, str):
        (prediction,) = prediction
    columns = metric._extract_corpus_statistics([prediction], [[text] for text in references])
    return [float(number) for number in columns[0]]


def _names(metrics: Iterable[tuple[str, str]]) -> str:
    """Metrics as a user gives them."""
    known = ", ".join(sorted(f"{metric},{name}" for metric, name in metrics))
    return known or "none, its metric_list is empty"


def _name_of(aggregation: Any) -> str:
    return str(getattr(aggregation, "__name__", aggregation))
