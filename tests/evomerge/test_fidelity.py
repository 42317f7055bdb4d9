import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.fidelity import (
    LARGEST_SHARE,
    TINY,
    Schedule,
    choose_schedule,
    hopeless,
    item_order,
    most_promising,
    promote,
)

WEIGHTS = [None, np.array([1.0, 1.0, 1.0])]


def members(n=12, n_items=16, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, n_items)) for _ in range(3)]


@given(
    st.integers(1, 3000), st.integers(1, 64), st.floats(1.01, 10), st.floats(0.01, 1),
    st.integers(1, 400),
)  # fmt: skip
def test_rungs_rise_to_the_whole_pool(n_pool, first, growth, keep, n):
    schedule = Schedule(first=first, growth=growth, keep=keep)
    counts = schedule.counts(n_pool)
    assert counts[0] == min(first, n_pool)
    assert counts[-1] == n_pool
    assert all(a < b for a, b in itertools.pairwise(counts))
    assert 1 <= schedule.n_promoted(n) <= n


def test_share_promoted_is_not_moved_by_rounding():
    assert Schedule(keep=0.7).n_promoted(10) == 7
    assert Schedule(keep=0.1).n_promoted(30) == 3
    assert Schedule(keep=1.0).n_promoted(9) == 9


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("first", 0), ("first", 2.5), ("first", True), ("growth", 1.0), ("growth", float("nan")),
        ("keep", 0.0), ("keep", 1.1), ("race", -1), ("sharpen", -1), ("contest", 0), ("cohort", 1),
        ("finalists", 0), ("doubt", 1.0), ("items", "best"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"fidelity.{option} must"):
        Schedule(**{option: value})


def test_an_unknown_option_is_named():
    with pytest.raises(ConfigError, match="frist"):
        choose_schedule([500], 300, 12, {"frist": 3})


def test_tiny_tasks_are_evaluated_in_full():
    schedule, reason = choose_schedule([TINY, 20], 300, 12, {})
    assert schedule is None
    assert "tiny" in reason
    assert choose_schedule([TINY + 1], 300, 12, {})[0] is not None


@pytest.mark.parametrize("n_baselines", [11, 12, 17])
def test_the_default_stays_within_a_tenth(n_baselines):
    schedule, reason = choose_schedule([500] * 4, 300, n_baselines, {})
    assert schedule is not None
    planned = 4 * schedule.n_items(500, 300, n_baselines)
    assert planned <= LARGEST_SHARE * (300 + n_baselines) * 2000
    assert "%" in reason


def test_what_the_user_gives_is_kept():
    schedule, _ = choose_schedule([500], 300, 12, {"first": 5, "race": 2})
    assert schedule is not None
    assert (schedule.first, schedule.race) == (5, 2)


def test_item_orders_are_permutations_fresh_for_each_cohort_and_task():
    orders = [item_order(50, 1, cohort, task) for cohort in range(3) for task in range(3)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 9
    assert np.array_equal(item_order(50, 1, 2, 1), item_order(50, 1, 2, 1))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_promotion_does_not_depend_on_the_order_of_members(weights):
    losses = members()
    order = np.random.default_rng(1).permutation(12)
    chosen = promote([matrix[order] for matrix in losses], weights, 5)
    assert sorted(order[chosen].tolist()) == promote(losses, weights, 5)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_best_everywhere_goes_on(weights):
    losses = members()
    for matrix in losses:
        matrix[7] = matrix.min() - 1
    assert promote(losses, weights, 1) == [7]
    assert not hopeless(losses, weights)[7]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_equal_members_go_on_in_their_order(weights):
    losses = [np.ones((5, 4)), np.zeros((5, 1)), np.full((5, 3), 0.1)]
    assert promote(losses, weights, 2) == [0, 1]
    assert not hopeless(losses, weights).any()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_one_member_or_one_item_is_enough(weights):
    assert promote(members(1), weights, 3, doubt=0.1) == [0]
    assert len(promote(members(6, 1), weights, 3)) == 3
    assert promote([np.zeros((0, 2))] * 3, weights, 3) == []
    assert promote(members(), weights, 0) == []


def test_scale_of_objectives_does_not_matter_to_the_front():
    losses = members()
    scaled = [losses[0] * 2**20, losses[1], losses[2] / 2**20]
    assert promote(scaled, None, 4) == promote(losses, None, 4)
    assert np.array_equal(hopeless(scaled, None), hopeless(losses, None))


def test_hopeless_members_stay_though_places_are_free():
    losses = members()
    for matrix in losses:
        matrix[3] += 10
    assert hopeless(losses, None)[3]
    assert hopeless(losses, WEIGHTS[1])[3]
    assert 3 not in promote(losses, None, 12, doubt=0.01)
    assert promote(losses, None, 12) == list(range(12))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_noise_alone_makes_few_hopeless(weights):
    marked = [hopeless(members(2, 30, seed), weights).mean() for seed in range(200)]
    assert np.mean(marked) < 0.03


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_most_promising_are_the_best_where_there_is_no_error(weights):
    losses = np.add.outer(np.array([3.0, 1.0, 2.0, 0.0]), np.zeros(3))
    assert most_promising(losses, np.zeros_like(losses), weights, 1) == [3]
    assert most_promising(losses, np.zeros_like(losses), weights, 9) == [0, 1, 2, 3]
    assert most_promising(losses[:0], losses[:0], weights, 2) == []


def test_errors_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="not negative"):
        most_promising(np.zeros((2, 1)), -np.ones((2, 1)), None, 1)
