import numpy as np
import pytest
from scipy.stats import kendalltau

from evomerge.datatypes import Answers
from evomerge.errors import TaskError
from fitness.estimators import MeanEstimator, RegressionEstimator
from fitness.readout import RidgeReadout, greedy_items

N_ITEMS = 400


def world(seed, n_known, n_candidates=30):
    """Known models and candidates as right-or-wrong answers, abilities in three dimensions."""
    rng = np.random.default_rng(seed)
    A = np.exp(rng.normal(-0.3, 0.4, (N_ITEMS, 3)))
    b = rng.normal(0, 1.2, N_ITEMS)
    ends = rng.normal(0, 0.6, (4, 3))
    known = np.vstack([np.eye(4), rng.dirichlet(np.ones(4), n_known - 4)])
    mixed = np.vstack([known, rng.dirichlet(1.5 * np.ones(4), n_candidates)])
    theta = mixed @ ends + 0.15 * rng.normal(size=(len(mixed), 3))
    y = (rng.random((len(mixed), N_ITEMS)) < 1 / (1 + np.exp(b - theta @ A.T))).astype(float)
    return y[:n_known], y[n_known:], rng


def tau(scores, truth):
    return float(np.nan_to_num(kendalltau(np.round(scores, 9), truth)[0]))


@pytest.mark.parametrize("n", [8, 16, 30, 60])
@pytest.mark.parametrize("n_known", [12, 40])
def test_chosen_items_rank_new_candidates_no_worse_than_random_ones(n_known, n):
    chosen, by_chance = [], []
    for seed in range(20):
        known, candidates, rng = world(seed, n_known)
        truth = candidates.mean(axis=1)
        items = greedy_items(known, n, seed)
        chosen.append(tau(candidates[:, items].mean(axis=1), truth))
        draws = [rng.choice(N_ITEMS, n, replace=False) for _ in range(5)]
        by_chance.append(np.mean([tau(candidates[:, d].mean(axis=1), truth) for d in draws]))
    assert np.mean(chosen) >= np.mean(by_chance)


@pytest.mark.parametrize(("n", "most"), [(8, 0.7), (30, 0.8)])
def test_the_read_out_is_closer_than_the_mean_of_random_items(n, most):
    errors = {"mean": [], "random": [], "greedy": []}
    covered = {"random": [], "greedy": []}
    for seed in range(15):
        known, candidates, rng = world(seed, 12)
        truth = candidates.mean(axis=1)
        random = rng.choice(N_ITEMS, n, replace=False)
        sets = {"random": random, "greedy": greedy_items(known, n, seed)}
        errors["mean"].append(np.abs(candidates[:, random].mean(axis=1) - truth).mean())
        for name, items in sets.items():
            answers = [Answers(items, row[items]) for row in candidates]
            for estimate, right in zip(RidgeReadout().estimate(answers, known), truth, strict=True):
                errors[name].append(abs(estimate.score - right))
                covered[name].append(abs(estimate.score - right) <= 2 * estimate.standard_error)
    assert np.mean(errors["random"]) < 0.9 * np.mean(errors["mean"])
    assert np.mean(errors["greedy"]) < most * np.mean(errors["mean"])
    assert np.mean(covered["random"]) > 0.93
    assert np.mean(covered["greedy"]) > 0.93


def test_the_order_of_items_changes_nothing():
    known, candidates, rng = world(0, 12)
    items = rng.choice(N_ITEMS, 20, replace=False)
    shuffled = rng.permutation(20)
    one, other = (
        RidgeReadout().estimate([Answers(items[o], candidates[0, items[o]])], known)[0]
        for o in (np.arange(20), shuffled)
    )
    assert one.score == pytest.approx(other.score, abs=1e-12)
    # Renumbering the pool does not either.
    order = rng.permutation(N_ITEMS)
    place = np.argsort(order)
    renumbered = RidgeReadout().estimate(
        [Answers(place[items], candidates[0, items])], known[:, order]
    )[0]
    assert renumbered.score == pytest.approx(one.score, abs=1e-9)
    assert renumbered.standard_error == pytest.approx(one.standard_error, abs=1e-9)


def test_all_items_give_the_mean():
    known, candidates, _ = world(0, 12)
    answers = [Answers(np.arange(N_ITEMS), row) for row in candidates]
    assert RidgeReadout().estimate(answers, known) == MeanEstimator().estimate(answers, known)


def test_two_known_models_are_too_few_to_learn_from():
    known, candidates, _ = world(0, 12)
    answers = [Answers(np.arange(10), candidates[0, :10])]
    expected = RegressionEstimator().estimate(answers, known[:2])
    assert RidgeReadout().estimate(answers, known[:2]) == expected
    assert len(set(greedy_items(known[:2], 10, 0))) == 10
    assert not np.array_equal(greedy_items(known[:2], 10, 0), greedy_items(known[:2], 10, 1))


def test_chosen_items_are_distinct_sorted_and_the_seed_s():
    known, _, _ = world(0, 12)
    for n in (1, 7, N_ITEMS - 1, N_ITEMS):
        items = greedy_items(known, n, 3)
        assert items.dtype == np.int64
        assert len(items) == n
        assert np.all(np.diff(items) > 0)
        np.testing.assert_array_equal(items, greedy_items(known, n, 3))
    assert not np.array_equal(greedy_items(known, 20, 3), greedy_items(known, 20, 4))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_models_that_all_answer_the_same_are_no_trouble(value):
    known = np.full((5, 50), value)
    assert len(greedy_items(known, 10, 0)) == 10
    (estimate,) = RidgeReadout().estimate([Answers(np.arange(10), np.full(10, value))], known)
    assert estimate.score == pytest.approx(value)
    assert np.isfinite(estimate.standard_error)


@pytest.mark.parametrize("n", [0, 51])
def test_a_number_of_items_that_cannot_be_is_refused(n):
    with pytest.raises(TaskError, match="at least 1 item of 50"):
        greedy_items(np.zeros((5, 50)), n, 0)
