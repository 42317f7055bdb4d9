import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from evomerge.datatypes import Answers, Estimate
from fitness.estimators import MeanEstimator, RegressionEstimator, mean

DATA = Path(__file__).parents[1] / "data"


def test_mean_and_standard_error_of_the_mean():
    responses = np.random.default_rng(0).normal(3, 2, size=400)
    estimate = mean(responses)
    assert estimate.score == pytest.approx(responses.mean())
    assert estimate.standard_error == pytest.approx(responses.std(ddof=1) / 20)
    assert estimate.n_items == 400


def test_standard_error_equals_lm_eval_s():
    from lm_eval.api.metrics import mean_stderr

    responses = [1.0] * 30 + [0.0] * 20
    estimate = mean(responses)
    assert estimate.standard_error == pytest.approx(mean_stderr(responses))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_certain(value):
    estimate = mean([value] * 50)
    assert estimate.score == value
    assert estimate.standard_error == pytest.approx(math.sqrt(52 / 54 * 2 / 54 / 54))
    fewer = mean([value] * 5)
    assert fewer.standard_error > estimate.standard_error


def test_the_score_is_within_two_standard_errors_of_the_truth_also_near_one():
    rng = np.random.default_rng(1)
    for p in (0.5, 0.9, 0.97):
        answers = (rng.random((2000, 50)) < p).astype(float)
        estimates = [mean(row) for row in answers]
        covered = [abs(e.score - p) <= 2 * e.standard_error for e in estimates]
        assert np.mean(covered) > 0.88


def test_equal_numbers_that_are_not_right_or_wrong_keep_the_formula():
    assert mean([0.3, 0.3]) == Estimate(0.3, 0.0, 2)


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.5), (1.0, 1.0), (0.3, 0.5), (-7.0, 7.0)])
def test_one_response_is_as_uncertain_as_can_be(value, expected):
    assert mean([value]) == Estimate(value, expected, 1)


def test_no_responses_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def level_world(seed, n_known, n_candidates=40, n_items=300, scale=1.0):
    """Answers = ability + difficulty + noise: any units."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 1.5, n_items)
    level = rng.normal(2, 0.4, n_known + n_candidates)
    y = scale * (level[:, None] + difficulty + rng.normal(size=(len(level), n_items)))
    return y[:n_known], y[n_known:], rng


def binary_world(seed, n_known, n_candidates=40, n_items=300):
    known, candidates, rng = level_world(seed, n_known, n_candidates, n_items)
    return (known > 2).astype(float), (candidates > 2).astype(float), rng


@pytest.mark.parametrize("n_known", [0, 1, 2, 3, 12])
@pytest.mark.parametrize("n", [8, 30])
@pytest.mark.parametrize("make", [level_world, binary_world])
def test_regression_is_no_worse_than_the_mean(make, n, n_known):
    ours, plain, covered = [], [], []
    for seed in range(10):
        known, candidates, rng = make(seed, n_known)
        picks = [rng.choice(300, n, replace=False) for _ in candidates]
        answers = [Answers(i, row[i]) for i, row in zip(picks, candidates, strict=True)]
        truth = candidates.mean(axis=1)
        estimates = RegressionEstimator().estimate(answers, known)
        away = np.array([e.score for e in estimates]) - truth
        ours.append((away**2).mean())
        plain.append(
            np.mean([(a.values.mean() - t) ** 2 for a, t in zip(answers, truth, strict=True)])
        )
        covered += [abs(d) <= 2 * e.standard_error for d, e in zip(away, estimates, strict=True)]
    assert np.mean(ours) <= np.mean(plain)
    if n_known >= 3:
        assert np.mean(ours) < 0.8 * np.mean(plain)
        assert np.mean(covered) > 0.92


def test_common_items_keep_the_order_of_the_means():
    known, candidates, rng = binary_world(0, 12)
    items = rng.choice(300, 20, replace=False)
    answers = [Answers(items, row[items]) for row in candidates]
    means = np.array([a.values.mean() for a in answers])
    shift = np.array([e.score for e in RegressionEstimator().estimate(answers, known)]) - means
    assert np.ptp(shift) < 1e-12


def test_all_items_give_the_mean_with_its_error():
    known, candidates, _ = level_world(0, 12)
    answers = [Answers(np.arange(300), row) for row in candidates]
    assert RegressionEstimator().estimate(answers, known) == MeanEstimator().estimate(
        answers, known
    )


def test_units_scale_and_numbering_changes_nothing():
    known, candidates, rng = level_world(0, 5)
    items = rng.choice(300, 12, replace=False)
    order, shuffled = rng.permutation(300), rng.permutation(12)
    (one,) = RegressionEstimator().estimate([Answers(items, candidates[0, items])], known)
    (scaled,) = RegressionEstimator().estimate(
        [Answers(items, -70 * candidates[0, items])], -70 * known
    )
    assert scaled.score == pytest.approx(-70 * one.score)
    assert scaled.standard_error == pytest.approx(70 * one.standard_error)
    (renumbered,) = RegressionEstimator().estimate(
        [Answers(np.argsort(order)[items[shuffled]], candidates[0, items[shuffled]])],
        known[:, order],
    )
    assert renumbered.score == pytest.approx(one.score)
    assert renumbered.standard_error == pytest.approx(one.standard_error)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
def test_known_models_that_all_answer_the_same_leave_the_mean(value):
    answers = [Answers(np.arange(8), np.linspace(0, 1, 8)), Answers(np.array([3]), np.array([1.0]))]
    estimates = RegressionEstimator().estimate(answers, np.full((5, 40), value))
    assert [e.score for e in estimates] == pytest.approx([0.5, 1.0])
    assert all(np.isfinite(e.standard_error) for e in estimates)


def test_paired_answers_of_real_models_halve_the_error_of_a_difference():
    with np.load(DATA / "pyirt_minitest.npz") as file:
        responses = file["responses"].astype(float)
    accuracies = responses.mean(axis=1)
    expected = [0.771818, 0.674545, 0.597273, 0.403636, 0.403636, 0.680909, 0.643636, 0.683636]
    assert accuracies == pytest.approx(expected, abs=5e-7)
    assert int(responses.all(axis=0).sum()) == 119
    assert int((~responses.any(axis=0)).sum()) == 74
    # Equal scores are not equal models.
    assert np.mean(responses[3] == responses[4]) == pytest.approx(0.5127, abs=5e-5)
    items = np.arange(0, 1100, 11)
    estimates = MeanEstimator().estimate(
        [Answers(items, row[items]) for row in responses], np.empty((0, 1100))
    )
    scores = [e.score for e in estimates]
    assert scores == pytest.approx([0.80, 0.70, 0.62, 0.35, 0.35, 0.69, 0.61, 0.70])
    assert kendalltau(np.round(scores, 9), accuracies)[0] == pytest.approx(0.830336, abs=5e-7)
    difference = responses[7] - responses[5]
    assert (int((difference == -1).sum()), int((difference == 1).sum())) == (64, 67)
    paired = mean(difference)
    assert paired.score == pytest.approx(0.002727, abs=5e-7)
    assert paired.standard_error == pytest.approx(0.010409, abs=1e-5)
    unpaired = math.hypot(*(mean(responses[row]).standard_error for row in (5, 7)))
    assert unpaired == pytest.approx(0.019862, abs=1e-5)
    assert paired.standard_error < 0.53 * unpaired
