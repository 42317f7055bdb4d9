"""MAP and Bayesian MAP beside the contract: what each promises of its own."""

import itertools
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Dimension, Evidence, FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.pareto import hypervolume
from evomerge.samplers.map.bayesian import (
    BayesianMapSampler,
    Bins,
    cartesian,
    drawn_bin,
    softmax,
    spherical,
)
from evomerge.samplers.map.front import (
    Box,
    Settings,
    crowding_distances,
    predicted_front,
    reference_points,
    survivors,
)
from evomerge.samplers.map.one_shot import MapSampler
from experiments.benchmarks.search_quality.problems.t0 import T0


def pair(budget: int, n_objectives: int = 2) -> Problem:
    """Two coefficients in [0, 1], the base at 0 and the experts at the one-hot points."""
    return Problem(
        dimensions=(Dimension("first"), Dimension("second")),
        n_objectives=n_objectives,
        anchors=((0.5, 0.5), (0.3, 0.3)),
        budget=budget,
        names=("low", "high")[:n_objectives],
        origin=(0.0, 0.0),
        experts=((1.0, 0.0), (0.0, 1.0)),
        owners=(0, 1),
    )


def searched(sampler: Any, n: int, surface: T0) -> tuple[FloatArray, FloatArray]:
    """Points and losses of n candidates, each told before the next."""
    rng = np.random.default_rng(0)
    points, losses = [], []
    for _ in range(n):
        candidate = sampler.ask()
        true = surface.truth(np.array([candidate.u]))[0]
        observed, evidence = surface.observe(true, rng)
        sampler.tell(candidate, observed.tolist(), evidence)
        points.append(candidate.u)
        losses.append(true)
    return np.array(points), np.array(losses)


def test_spherical_coordinates_are_those_of_the_paper_and_return() -> None:
    C = np.array([[0.3, 0.4, 0.5], [0.2, 0.1, 0.9]])
    phi, r = spherical(C)
    np.testing.assert_allclose(phi, [[1.132647, 0.896055], [1.353423, 1.460139]], atol=1e-6)
    np.testing.assert_allclose(r, [0.707107, 0.927362], atol=1e-6)
    np.testing.assert_allclose(cartesian(phi, r), C, atol=1e-12)


def test_the_softmax_over_bins_never_draws_what_scores_minus_infinity() -> None:
    found = softmax(np.array([0.01, 0.02, -np.inf]))
    np.testing.assert_allclose(found, [0.464346, 0.535654, 0.0], atol=1e-6)


def test_one_hot_points_fall_into_a_bin_and_empty_bins_are_drawn() -> None:
    bins = Bins(2)
    numbers = bins.of(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    assert numbers.tolist() == [[0], [3], [2]]
    rng = np.random.default_rng(0)
    drawn = [int(drawn_bin(numbers, np.full(3, 0.01), bins, rng)[0]) for _ in range(60)]
    assert set(drawn) == {0, 1, 2, 3}
    missed = np.array([0.0, 3.0, 0.0])
    late = [int(drawn_bin(numbers, missed, bins, rng)[0]) for _ in range(60)]
    assert set(late) == {1, 3}  # where predictions miss, and where nothing is known


@pytest.mark.parametrize(("n_objectives", "n_points"), [(2, 5), (3, 9), (4, 14), (8, 44)])
def test_reference_points_are_the_published_ones(n_objectives: int, n_points: int) -> None:
    points = reference_points(n_objectives)
    assert len(points) == n_points
    np.testing.assert_allclose(points.sum(axis=1), 1.0)
    if n_objectives == 2:
        wanted = np.array([[0.0, 1.0], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
        np.testing.assert_allclose(points, wanted)


def test_survivors_keep_the_ends_of_the_front() -> None:
    losses = np.array([[0.0, 1.0], [0.1, 0.8], [0.11, 0.79], [1.0, 0.0], [1.0, 1.0]])
    assert np.isinf(crowding_distances(losses[:4])[[0, 3]]).all()
    for survival in ("crowding", "reference_points"):
        assert {0, 3} <= set(survivors(losses, 3, survival).tolist())


# the published reference points are five with two objectives: a coarse front
@pytest.mark.parametrize(("survival", "share"), [("crowding", 0.97), ("reference_points", 0.85)])
def test_the_search_covers_a_known_front(survival: Any, share: float) -> None:
    from evomerge.samplers.design import Kinds

    def predict(U: FloatArray) -> FloatArray:
        rest = ((U[:, 1:] - 0.5) ** 2).sum(axis=1)
        return np.column_stack([U[:, 0] ** 2 + rest, (U[:, 0] - 1.0) ** 2 + rest])

    box = Box(np.zeros(3), np.ones(3), Kinds(np.zeros(3, bool), np.zeros(3, np.int64)))
    settings = Settings(generations=40, survival=survival)
    _, losses = predicted_front(
        predict, np.full((1, 3), 0.5), box, settings, np.random.default_rng(0)
    )
    # of the whole front 5/6
    assert hypervolume(losses, [1.0, 1.0]) > share * 5.0 / 6.0


def test_the_design_fills_the_box_after_the_anchors_and_leaves_base_and_experts_out() -> None:
    sampler = MapSampler(pair(40), seed=1)
    first = [sampler.ask().u for _ in range(12)]
    assert first[:2] == [(0.5, 0.5), (0.3, 0.3)]
    assert not {(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)} & set(first)
    strata = np.floor(10.0 * np.array(first[2:])).astype(np.int64)
    assert (np.sort(strata, axis=0) == np.arange(10)[:, None]).all()


def test_parity_samples_the_published_grid_after_the_anchors() -> None:
    sampler = MapSampler(pair(40), seed=1, parity=True)
    asked = [sampler.ask().u for _ in range(12)]
    assert asked[2:4] == [(1.0, 0.0), (0.0, 1.0)]
    levels = {0.0, 0.25, 0.5, 0.75, 1.0, 1 / 3, 2 / 3}
    for u in asked[4:]:
        assert all(min(abs(x - level) for level in levels) < 1e-6 for x in u)


# reference: .8037, sd .009, by least squares, .8085, sd .003, by the binomial fit, .8092 at random
@pytest.mark.parametrize(
    ("options", "n_seeds", "least"),
    [({}, 3, 0.811), ({"refit": False}, 10, 0.8085), ({"parity": True}, 3, 0.795)],
)
def test_the_evaluated_front_on_a_real_merge(
    options: dict[str, Any], n_seeds: int, least: float
) -> None:
    """T0 at 20 samples and 40 of the predicted front."""
    found = []
    for seed in range(n_seeds):
        sampler = MapSampler(pair(60), seed=seed, samples=20, **options)
        points, losses = searched(sampler, 60, T0())
        assert len(np.unique(points, axis=0)) == 60
        found.append(hypervolume(losses, [0.0, 0.0]))
    assert np.mean(found) >= least


def test_bayesian_map_on_a_real_merge() -> None:
    found = []
    for seed in range(3):
        sampler = BayesianMapSampler(pair(60), seed=seed, samples=20)
        _, losses = searched(sampler, 60, T0())
        found.append(hypervolume(losses, [0.0, 0.0]))
    assert np.mean(found) >= 0.8085


def test_the_front_is_spread_and_stays_in_the_sampled_box() -> None:
    sampler = MapSampler(pair(60), seed=0, samples=20)
    points, _ = searched(sampler, 60, T0())
    sampled, front = points[:20], points[20:]
    assert (front >= sampled.min(axis=0)).all()
    assert (front <= sampled.max(axis=0)).all()
    assert np.ptp(front, axis=0).min() > 0.3


def test_remarks_tell_of_cliffs_and_of_too_few_merges() -> None:
    sampler = MapSampler(pair(200, 1), seed=0, samples=30)
    rng = np.random.default_rng(1)
    for i in itertools.count():
        candidate = sampler.ask()
        if i == 6:
            assert not sampler.remarks
        falls = sum(candidate.u) > 0.8
        sampler.tell(candidate, [-0.05 if falls else -0.9], Evidence((0.02,), (200,)))
        if i == 31:
            break
    assert any("low falls off a cliff" in remark for remark in sampler.remarks)
    few = MapSampler(pair(200, 1), seed=0, samples=4)
    for _ in range(6):
        candidate = few.ask()
        few.tell(candidate, [float(rng.random())])
    assert any("6 parameters but" in remark for remark in few.remarks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "whole number of at least 1"),
        ({"samples": True}, "whole number of at least 1"),
        ({"parity": 1}, "parity of map must be true or false"),
        ({"refit": "no"}, "refit of map must be true or false"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MapSampler(pair(40), seed=1, **options)


def test_more_coefficients_than_a_quadratic_can_have_are_refused() -> None:
    wide = Problem(tuple(Dimension(str(i)) for i in range(101)), 1, ((0.4,) * 101,), 100)
    with pytest.raises(ConfigError, match=r"at most 100 coefficients.*has 101: use"):
        MapSampler(wide, seed=1)
    with pytest.raises(ConfigError, match="bayesian_map takes at most 100"):
        BayesianMapSampler(wide, seed=1)
