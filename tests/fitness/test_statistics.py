import math
from collections.abc import Callable

import numpy as np
import pytest
from lm_eval.api import metrics as theirs

from evomerge.datatypes import FloatArray
from evomerge.loading import resolve
from fitness import statistics
from fitness.statistics import jackknife

N = 60


def likelihoods(rng: np.random.Generator) -> FloatArray:
    return np.column_stack([-40 * rng.random(N), rng.integers(1, 30, N)])


def labels(rng: np.random.Generator, n_labels: int) -> FloatArray:
    gold = rng.integers(0, n_labels, N)
    predicted = np.where(rng.random(N) < 0.6, gold, rng.integers(0, n_labels, N))
    return np.column_stack([gold, predicted]).astype(float)


def bleu_columns(rng: np.random.Generator) -> FloatArray:
    total = np.sort(rng.integers(0, 12, (N, 4)), axis=1)[:, ::-1]
    return np.column_stack(
        [total[:, 0], total[:, 0] + rng.integers(-2, 4, N), rng.binomial(total, 0.4), total]
    ).astype(float)


def chrf_columns(rng: np.random.Generator) -> FloatArray:
    columns = []
    for order in range(6):
        written, reference = rng.integers(0, 30 - order, (2, N))
        columns += [written, reference, rng.binomial(np.minimum(written, reference), 0.5)]
    return np.column_stack(columns).astype(float)


CASES: dict[str, Callable[[np.random.Generator], FloatArray]] = {
    "perplexity": lambda rng: likelihoods(rng)[:, :1],
    "weighted_mean": likelihoods,
    "weighted_perplexity": likelihoods,
    "bits_per_byte": likelihoods,
    "median": lambda rng: rng.normal(size=(N, 1)),
    "mean_of_subtasks": lambda rng: np.column_stack([rng.integers(0, 4, N), rng.random(N)]),
    "f1": lambda rng: labels(rng, 2),
    "mcc": lambda rng: labels(rng, 3),
    "bleu": bleu_columns,
    "chrf": chrf_columns,
    "ter": lambda rng: np.column_stack([rng.integers(0, 9, N), rng.integers(0, 12, N)]) + 0.0,
}
AGGREGATIONS = {
    "perplexity": lambda values: theirs.perplexity(values[:, 0].tolist()),
    "weighted_mean": lambda values: theirs.weighted_mean(values.tolist()),
    "weighted_perplexity": lambda values: theirs.weighted_perplexity(values.tolist()),
    "bits_per_byte": lambda values: theirs.bits_per_byte(values.tolist()),
    "median": lambda values: theirs.median(values[:, 0].tolist()),
    "f1": lambda values: theirs.f1_score(values.astype(int).tolist()),
    "mcc": lambda values: theirs.matthews_corrcoef(values.astype(int).tolist()),
}


def cases(name: str, seed: int = 0) -> tuple[Callable[[FloatArray], float], FloatArray]:
    return getattr(statistics, name), CASES[name](np.random.default_rng(seed))


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_a_score_equals_that_of_lm_eval_s_aggregation(name, seed):
    statistic, values = cases(name, seed)
    assert statistic(values) == pytest.approx(AGGREGATIONS[name](values), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_corpus_scores_equal_those_of_sacrebleu(seed):
    from sacrebleu.metrics import BLEU, CHRF, TER

    for name, metric in (("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())):
        statistic, values = cases(name, seed)
        for rows in (
            values,
            values[:1],
            values[:3],
            values * 0,
            values * [*([1] * 5), *([0] * 50)][: values.shape[1]],
        ):
            score = metric._aggregate_and_compute([list(row) for row in rows.astype(int)]).score
            assert statistic(rows) == pytest.approx(score, rel=1e-9, abs=1e-9)


def test_subtasks_count_the_same_whatever_their_size():
    values = np.array([[0, 1.0], [0, 0.0], [0, 0.5], [7, 1.0]])
    assert statistics.mean_of_subtasks(values) == 0.75


@pytest.mark.parametrize("name", CASES)
def test_every_statistic_can_be_named_by_import_path(name):
    assert resolve(f"fitness.statistics:{name}") is getattr(statistics, name)


@pytest.mark.parametrize("name", [name for name in CASES if name != "median"])
def test_pseudo_values_are_those_of_the_definition(name):
    statistic, values = cases(name)
    score, pseudo = jackknife(statistic, values)
    left_out = [statistic(np.delete(values, item, axis=0)) for item in range(N)]
    assert score == statistic(values)
    assert pseudo == pytest.approx(N * score - (N - 1) * np.array(left_out), rel=1e-8, abs=1e-8)


def test_a_subtask_of_one_item_is_left_out_whole():
    values = np.array([[0, 1.0], [0, 0.0], [1, 0.25], [2, 0.5]])
    _, pseudo = jackknife(statistics.mean_of_subtasks, values)
    left_out = [
        statistics.mean_of_subtasks(np.delete(values, item, axis=0)) for item in range(len(values))
    ]
    assert pseudo == pytest.approx(4 * statistics.mean_of_subtasks(values) - 3 * np.array(left_out))


@pytest.mark.parametrize("name", ["weighted_perplexity", "f1", "mcc", "bleu", "median"])
def test_the_standard_error_is_the_spread_over_fresh_items(name):
    """Against the truth: the standard deviation of the score over many samples of items."""
    samples = [cases(name, seed) for seed in range(200)]
    scores = [statistic(values) for statistic, values in samples]
    errors = [
        jackknife(statistic, values)[1].std(ddof=1) / math.sqrt(N) for statistic, values in samples
    ]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(scores, ddof=1), rel=0.25)


def test_groups_give_the_standard_error_of_the_items():
    """A statistic without a formula, on more items than groups: here the mean, whose error is
    known."""
    values = np.random.default_rng(5).normal(size=(2000, 1))
    score, pseudo = jackknife(lambda rows: float(rows.mean()), values)
    assert score == values.mean()
    assert pseudo.mean() == pytest.approx(score)
    expected = values.std(ddof=1) / math.sqrt(2000)
    assert pseudo.std(ddof=1) / math.sqrt(2000) == pytest.approx(expected, rel=0.2)


def test_an_item_that_alone_gives_a_score_is_not_infinitely_uncertain():
    score, pseudo = jackknife(statistics.weighted_mean, np.array([[2.0, 4.0], [0.0, 0.0]]))
    assert score == 0.5
    assert np.isfinite(pseudo).all()


def test_one_item_is_its_own_pseudo_value():
    assert jackknife(statistics.perplexity, np.array([[-1.0]])) == (math.e, np.array([math.e]))


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        jackknife(statistics.perplexity, np.empty((0, 1)))


def test_a_score_that_items_do_not_give_is_not_a_number():
    assert math.isnan(statistics.weighted_mean(np.zeros((3, 2))))
