import numpy as np
import pytest

from evomerge.confidence import (
    front_probability,
    front_probability_normal,
    gain,
    paired_difference,
)
from evomerge.pareto import non_dominated


def answers(accuracy, n_items, seed):
    """Losses of 0 and 1 with given means, `(n_models, n_items)`."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(size=(len(accuracy), n_items)) > np.array(accuracy)[:, None]).astype(float)


def test_front_probability_is_deterministic_and_a_share():
    losses = [answers([0.5, 0.6, 0.7], 40, o) for o in range(3)]
    p = front_probability(losses, seed=4)
    assert np.array_equal(p, front_probability(losses, seed=4))
    assert ((p >= 0) & (p <= 1)).all()


def test_exact_objectives_give_the_front_itself():
    points = np.random.default_rng(0).normal(size=(20, 3))
    p = front_probability([points[:, [o]] for o in range(3)], n_resamples=10)
    assert np.array_equal(p, non_dominated(points).astype(float))
    q = front_probability_normal(points, np.zeros_like(points), n_resamples=10)
    assert np.array_equal(q, p)


def test_equal_models_are_equally_probable():
    losses = [np.random.default_rng(o).normal(size=(5, 37)) for o in range(2)]
    doubled = [np.concatenate([matrix, matrix]) for matrix in losses]
    p = front_probability(doubled)
    assert np.array_equal(p[:5], p[5:])
    assert np.array_equal(p[:5], front_probability(losses))
    assert front_probability([np.ones((3, 4))]).tolist() == [1.0, 1.0, 1.0]


def test_one_model_is_the_front_and_none_is_no_front():
    assert front_probability([np.zeros((1, 1)), np.ones((1, 5))]).tolist() == [1.0]
    assert front_probability([np.zeros((0, 3))]).shape == (0,)


def test_scale_and_order_of_models_do_not_matter():
    losses = [answers([0.5, 0.52, 0.6, 0.4], 64, o) for o in range(2)]
    p = front_probability(losses)
    assert np.array_equal(p, front_probability([losses[0] * 1024, losses[1] - 1]))
    order = [2, 0, 3, 1]
    assert np.array_equal(p[order], front_probability([matrix[order] for matrix in losses]))


def test_objectives_of_one_pool_are_drawn_together():
    loss = answers([0.5, 0.55], 50, 0)
    # the same answers twice: one model or the other wins both, or they tie
    together = front_probability([loss, loss], pools=[0, 0])
    assert np.array_equal(together, front_probability([loss]))
    apart = front_probability([loss, loss], pools=[0, 1])
    assert apart.sum() > together.sum()


def test_equally_good_models_seldom_look_far_apart():
    """The tails are those of a test: each of two equals has p below .05 in 5 % of runs."""
    n_runs, below = 400, np.zeros(2)
    for run in range(n_runs):
        losses = [np.random.default_rng([run, 2]).normal(size=(2, 60))]
        p = front_probability(losses, n_resamples=400, seed=run)
        below += [(p < 0.05).any(), (p < 0.25).any()]
    # expected .10 and .50 of runs; standard errors .015 and .025
    assert below[0] / n_runs == pytest.approx(0.10, abs=0.045)
    assert below[1] / n_runs == pytest.approx(0.50, abs=0.075)


def test_normal_and_bootstrap_agree_without_pairing():
    losses = [answers([0.5, 0.56, 0.62, 0.52], 300, o) for o in range(3)]
    means = np.stack([matrix.mean(axis=1) for matrix in losses], axis=1)
    errors = np.stack([matrix.std(axis=1) for matrix in losses], axis=1) / np.sqrt(300)
    difference = front_probability(losses) - front_probability_normal(means, errors)
    assert np.abs(difference).max() < 0.1


@pytest.mark.parametrize("n_items", [5, 20, 500])
def test_pure_noise_claims_no_gain(n_items):
    rng = np.random.default_rng(n_items)
    n_runs, claims = 2000, 0
    for _ in range(n_runs):
        difficulty = rng.uniform(0.05, 0.95, (4, n_items))
        chosen, baseline = (rng.uniform(size=(2, 4, n_items)) < difficulty).astype(float)
        claims += gain(list(chosen), list(baseline)).is_beyond_noise
    assert claims / n_runs < 0.035


def test_a_clear_gain_is_claimed_and_its_opposite_is_not():
    chosen, baseline = list(answers([0.9, 0.9], 300, 0)), list(answers([0.7, 0.7], 300, 1))
    found = gain(chosen, baseline)
    assert found.is_beyond_noise
    assert 0.1 < found.difference < 0.3
    opposite = gain(baseline, chosen)
    assert opposite.difference == pytest.approx(-found.difference)
    assert not opposite.is_beyond_noise


def test_equal_answers_are_no_gain():
    same = [np.ones(5), np.zeros(1)]
    assert gain(same, same).difference == 0
    assert not gain(same, same).is_beyond_noise


def test_an_exact_objective_has_no_error():
    assert paired_difference([2.0], [1.5]) == (0.5, 0.0)
    assert gain([np.array([1.0])], [np.array([1.1])]).is_beyond_noise


def test_only_ratios_of_weights_matter():
    chosen, baseline = list(answers([0.6, 0.8], 50, 0)), list(answers([0.5, 0.5], 50, 1))
    a, b = gain(chosen, baseline, [1, 3]), gain(chosen, baseline, [10, 30])
    assert a.difference == pytest.approx(b.difference)
    assert a.standard_error == pytest.approx(b.standard_error)


def test_a_few_items_that_agree_are_no_proof():
    assert not gain([np.zeros(3)], [np.ones(3)]).is_beyond_noise


@pytest.mark.parametrize(
    "call",
    [
        lambda: front_probability([]),
        lambda: front_probability([np.zeros((2, 0))]),
        lambda: front_probability([np.zeros((2, 1)), np.zeros((3, 1))]),
        lambda: front_probability([np.full((2, 1), np.nan)]),
        lambda: front_probability([np.zeros((2, 1)), np.zeros((2, 2))], pools=[0, 0]),
        lambda: front_probability_normal(np.zeros((2, 1)), -np.ones((2, 1))),
        lambda: paired_difference([1.0], [1.0, 2.0]),
        lambda: gain([np.ones(2)], [np.ones(2)], [0.0]),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match=r"must|need|one entry"):
        call()
