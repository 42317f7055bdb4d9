"""lm-eval's aggregations as statistics of numbers per item."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evomerge.datatypes import Statistic

Columns = Callable[[Any], Sequence[float]]
"""From lm-eval's value of an item to the numbers that a statistic takes."""

MEAN = Statistic()


def known_here(aggregation: Any, example: Any) -> tuple[Statistic, Columns] | None:
    """How lm-eval's aggregation is made of sums over items; None if that is not known."""
    from lm_eval.api import metrics

    def named(function: str, n_columns: int) -> Statistic:
        return Statistic(f"fitness.statistics:{function}", n_columns)

    known: dict[Any, tuple[Statistic, Columns]] = {
        metrics.mean: (MEAN, _number),
        metrics.nanmean: (named("weighted_mean", 2), _number_if_any),
        metrics.median: (named("median", 1), _number),
        metrics.perplexity: (named("perplexity", 1), _number),
        metrics.weighted_mean: (named("weighted_mean", 2), _two_numbers),
        metrics.weighted_perplexity: (named("weighted_perplexity", 2), _two_numbers),
        metrics.bits_per_byte: (named("bits_per_byte", 2), _two_numbers),
        metrics.f1_score: (named("f1", 2), _two_labels),
        metrics.matthews_corrcoef: (named("mcc", 2), _two_numbers),
        metrics.brier_score: (MEAN, _brier),
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
    return MEAN, _number


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
