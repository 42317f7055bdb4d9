import numpy as np
import pytest

from evomerge.errors import TaskError
from fitness.irt_fit import choose_n_dimensions, fit_item_bank


def simulated(n_subjects, n_items, n_dimensions, seed=0):
    rng = np.random.default_rng(seed)
    A = np.exp(rng.normal(0, 0.4, (n_items, n_dimensions)))
    b = rng.normal(0, 1, n_items)
    if n_dimensions > 1:  # dimensions that are told apart: some items each
        A *= rng.random(A.shape) < 0.5
        A *= 2
    P = 1 / (1 + np.exp(b - rng.normal(size=(n_subjects, n_dimensions)) @ A.T))
    return A, b, (rng.random(P.shape) < P).astype(float)


def test_parameters_are_recovered_from_500_subjects_and_200_items():
    A, b, responses = simulated(500, 200, 1)
    bank = fit_item_bank(responses)
    assert np.corrcoef(bank.B.sum(axis=1), b)[0, 1] > 0.95
    assert np.corrcoef(bank.A[:, 0], A[:, 0])[0, 1] > 0.85


def test_missing_answers_are_no_wrong_answers():
    _, b, responses = simulated(500, 100, 1)
    rng = np.random.default_rng(1)
    responses[rng.random(responses.shape) < 0.4] = np.nan
    bank = fit_item_bank(responses)
    assert np.corrcoef(bank.B.sum(axis=1), b)[0, 1] > 0.95
    assert abs(bank.B.sum(axis=1).mean() - b.mean()) < 0.2


@pytest.mark.parametrize("n_dimensions", [1, 3])
def test_eight_subjects_do_not_blow_up(n_dimensions):
    _, _, responses = simulated(8, 300, 1)
    responses[:, 0], responses[:, 1] = 0.0, 1.0
    bank = fit_item_bank(responses, n_dimensions)
    assert np.abs(bank.A).max() < 10
    assert np.abs(bank.B).max() < 10


def test_the_number_of_dimensions_shows_on_subjects_held_out():
    _, _, one = simulated(160, 120, 1)
    _, _, two = simulated(160, 120, 2)
    assert choose_n_dimensions(one, (1, 2, 4))[0] == 1
    assert choose_n_dimensions(two, (1, 2))[0] == 2


def test_the_same_seed_gives_the_same_bank():
    _, _, responses = simulated(30, 40, 1)
    one, other = (fit_item_bank(responses, 2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.A, other.A)
    np.testing.assert_array_equal(one.B, other.B)


def test_responses_that_cannot_be_fitted_are_refused():
    good = np.tile([[0.0, 1.0], [1.0, 0.0]], (3, 1))
    with pytest.raises(TaskError, match="at least 2"):
        fit_item_bank(good[:1])
    with pytest.raises(TaskError, match="n_dimensions=7"):
        fit_item_bank(good, 7)
    with pytest.raises(TaskError, match="between 0"):
        fit_item_bank(2 * good)
    with pytest.raises(TaskError, match="between 0"):
        fit_item_bank(np.where(good == 1, np.inf, good))
    with pytest.raises(TaskError, match="item 1 has none"):
        fit_item_bank(np.column_stack([good[:, 0], np.full(6, np.nan)]))
    with pytest.raises(TaskError, match="leave none"):
        choose_n_dimensions(good, (9,))
