"""From the answers of all items to one score, where that is more than their mean.

Each statistic takes the `(n_items, n_columns)` answers and is named by its import path in
`Statistic.target`. Nearly all of them need the items only through sums over them; these are
written as a formula of the sums, which gives the score and, at once for all items, what it would
be without each of them.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray

Score = Callable[[FloatArray], float]

_N_GROUPS = 100
_Z = 2.5758  # 99 % of a normal distribution lie between -z and z
_LEFT_OUT: dict[Score, Callable[[FloatArray], FloatArray]] = {}


def jackknife(statistic: Score, values: FloatArray) -> tuple[float, FloatArray]:
    """The statistic of `(n_items, n_columns)` answers, and `(n_items,)` pseudo-values of it.

    A pseudo-value is what an item adds, `n theta - (n - 1) theta_{-i}` with `theta_{-i}` the
    statistic without it: of a mean, the answer itself. Their standard deviation (`n - 1` below
    the line) over `sqrt(n)` is the statistic's standard error (Quenouille 1956; Tukey 1958; on
    average too large rather than too small: Efron and Stein 1981).

    A statistic without a formula of sums is computed without each of at most 100 groups (every
    hundredth item is one group): the items of a group then share a pseudo-value, spread so that
    the rule above gives the standard error of the groups.

    Raises:
        ValueError: when there are no items.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("a statistic needs at least one item, but there are none")
    score = statistic(values)
    if n == 1:
        return score, np.array([score])
    without = _LEFT_OUT.get(statistic)
    if without is not None:
        return score, n * score - (n - 1) * _known(without(values), score)
    n_groups = min(n, _N_GROUPS)
    group = np.arange(n) % n_groups
    left_out = np.array([statistic(values[group != number]) for number in range(n_groups)])
    pseudo = (n_groups * score - (n_groups - 1) * _known(left_out, score))[group]
    # From variance / n of items, each counted as one, to variance / n of the groups.
    spread = np.sqrt((n - 1) / (n_groups - 1))
    return score, pseudo.mean() + spread * (pseudo - pseudo.mean())


def _known(left_out: FloatArray, score: float) -> FloatArray:
    """An item without which there is no score tells nothing about the spread."""
    return np.where(np.isfinite(left_out), left_out, score)


def _itself(values: FloatArray) -> FloatArray:
    return values


def _of_sums(
    parts: Callable[[FloatArray], FloatArray] = _itself,
) -> Callable[[Callable[[FloatArray], FloatArray]], Score]:
    """Make a statistic of a formula of `(..., n_sums)` sums.

    They are taken over what `parts` makes of the answers, shape `(n_items, n_sums)`.
    """

    def make(formula: Callable[[FloatArray], FloatArray]) -> Score:
        @functools.wraps(formula)
        def statistic(values: FloatArray) -> float:
            return float(quiet(parts(values).sum(axis=0)))

        def without_each(values: FloatArray) -> FloatArray:
            made = parts(values)
            return quiet(made.sum(axis=0) - made)

        def quiet(sums: FloatArray) -> FloatArray:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                return np.asarray(formula(sums), dtype=np.float64)

        _LEFT_OUT[statistic] = without_each
        return statistic

    return make


def _with_count(values: FloatArray) -> FloatArray:
    return np.column_stack([values, np.ones(len(values))])


@_of_sums(_with_count)
def perplexity(sums: FloatArray) -> FloatArray:
    """Column: log-likelihood. `exp` of minus the mean."""
    return np.exp(-sums[..., 0] / sums[..., 1])


@_of_sums()
def weighted_mean(sums: FloatArray) -> FloatArray:
    """Columns: value times weight, weight. NaN where all weights are 0."""
    return sums[..., 0] / sums[..., 1]


@_of_sums()
def weighted_perplexity(sums: FloatArray) -> FloatArray:
    """Columns: log-likelihood, number of words or bytes. `exp` of minus their quotient."""
    return np.exp(-sums[..., 0] / sums[..., 1])


@_of_sums()
def bits_per_byte(sums: FloatArray) -> FloatArray:
    """Columns: log-likelihood, number of bytes. Bits that a byte costs."""
    nats: FloatArray = -sums[..., 0] / sums[..., 1]
    return nats / math.log(2)


def median(values: FloatArray) -> float:
    """Column: value. Of an even number of items the upper of the middle two, as lm-eval has it."""
    return float(np.sort(values[:, 0])[len(values) // 2])


def _without_each_of_median(values: FloatArray) -> FloatArray:
    """What it would be were it smooth; the jackknife of a true median does not converge.

    An item moves it by `1 / (2 f)` over the number of items, `f` being the density there (Hampel
    1974). That follows from order statistics about a 99 % confidence interval apart, whose
    distance over twice 2.5758 is the standard error (McKean and Schrader 1984).
    """
    n = len(values)
    ordered = np.sort(values[:, 0])
    below = max(round((n + 1) / 2 - _Z * math.sqrt(n / 4)), 1)
    standard_error = (ordered[n - below] - ordered[below - 1]) / (2 * _Z)
    side = np.sign(values[:, 0] - ordered[n // 2])
    left_out: FloatArray = ordered[n // 2] - side * standard_error * math.sqrt(n) / (n - 1)
    return left_out


_LEFT_OUT[median] = _without_each_of_median


def mean_of_subtasks(values: FloatArray) -> float:
    """Columns: number of the subtask, value. Each subtask counts the same, whatever its size."""
    means, _, _ = _subtasks(values)
    return float(means.mean())


def _without_each_of_subtasks(values: FloatArray) -> FloatArray:
    means, counts, subtask = _subtasks(values)
    n_subtasks, total = len(means), means.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        others = (means * counts)[subtask] - values[:, 1]
        smaller = (total - means[subtask] + others / (counts[subtask] - 1)) / n_subtasks
        gone = (total - means[subtask]) / (n_subtasks - 1)
    left_out: FloatArray = np.where(counts[subtask] > 1, smaller, gone)
    return left_out


_LEFT_OUT[mean_of_subtasks] = _without_each_of_subtasks


def _subtasks(values: FloatArray) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """Means and item counts of the subtasks that occur, and each item's place among them."""
    _, subtask = np.unique(values[:, 0], return_inverse=True)
    counts = np.bincount(subtask).astype(np.float64)
    return np.bincount(subtask, weights=values[:, 1]) / counts, counts, subtask


def _hits(values: FloatArray) -> FloatArray:
    gold, predicted = values[:, 0] == 1, values[:, 1] == 1
    return np.column_stack([gold & predicted, gold, predicted]).astype(np.float64)


@_of_sums(_hits)
def f1(sums: FloatArray) -> FloatArray:
    """Columns: gold label, predicted label. F1 of the label 1; 0 where nobody says 1."""
    hits, gold, predicted = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.where(gold + predicted > 0, 2 * hits / (gold + predicted), 0.0)


def _confusion(values: FloatArray) -> FloatArray:
    labels = np.unique(values)
    gold, predicted = (values[:, [column]] == labels for column in (0, 1))
    right = (values[:, 0] == values[:, 1])[:, None]
    return np.column_stack([np.ones(len(values)), right, gold, predicted]).astype(np.float64)


@_of_sums(_confusion)
def mcc(sums: FloatArray) -> FloatArray:
    """Columns: gold label, predicted label. Matthews correlation of any number of labels.

    Gorodkin 2004, eq. 8; 0 where gold labels or predictions are all the same.
    """
    n_labels = (sums.shape[-1] - 2) // 2
    s, c = sums[..., 0], sums[..., 1]
    t, p = sums[..., 2 : 2 + n_labels], sums[..., 2 + n_labels :]
    numerator = c * s - (t * p).sum(axis=-1)
    denominator = np.sqrt((s**2 - (p**2).sum(axis=-1)) * (s**2 - (t**2).sum(axis=-1)))
    return np.where(denominator > 0, numerator / denominator, 0.0)


@_of_sums()
def bleu(sums: FloatArray) -> FloatArray:
    """BLEU of a corpus, 0 to 100 (Papineni et al. 2002), smoothed as sacrebleu does.

    Columns: words written, words of the closest reference, then for n of 1 to 4 the n-grams that
    match, then those written. An n-gram order without a match counts half a match, the next one a
    quarter, and so on (method 3 of Chen and Cherry 2014).
    """
    written, reference = sums[..., 0], sums[..., 1]
    matches, total = sums[..., 2:6], sums[..., 6:10]
    missed = (matches == 0) & (total > 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), matches)
    precision = np.where(total > 0, smoothed / total, 0.0)
    brevity = np.where(written < reference, np.exp(1 - reference / written), 1.0)
    score = 100 * brevity * np.exp(np.log(precision).mean(axis=-1))
    return np.where((matches > 0).any(axis=-1), score, 0.0)


@_of_sums()
def chrf(sums: FloatArray) -> FloatArray:
    """Corpus score chrF, 0 to 100 (Popovic 2015); with word orders too it is chrF++.

    Columns: for each n-gram order how many were written, are in the reference, match.
    """
    written, reference, matches = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    used = (written > 0) & (reference > 0)
    n_used = np.maximum(used.sum(axis=-1), 1)
    precision = np.where(used, matches / written, 0.0).sum(axis=-1) / n_used
    recall = np.where(used, matches / reference, 0.0).sum(axis=-1) / n_used
    score = 100 * 5 * precision * recall / (4 * precision + recall)  # beta is 2
    return np.where(precision + recall > 0, score, 0.0)


@_of_sums()
def ter(sums: FloatArray) -> FloatArray:
    """Translation edit rate of a corpus in percent (Snover et al. 2006).

    Columns: edits, words of the reference. Without any reference words: 100 if there are edits.
    """
    edits, reference = sums[..., 0], sums[..., 1]
    return np.where(reference > 0, 100 * edits / reference, np.where(edits > 0, 100.0, 0.0))
