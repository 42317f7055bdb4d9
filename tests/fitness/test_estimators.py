import math

import numpy as np
import pytest

from evomerge.datatypes import Estimate
from fitness.estimators import mean


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
