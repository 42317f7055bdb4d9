"""The problems of the bench that compares samplers stay what they were: numbers are paired."""

import numpy as np
import pytest

from evomerge import pareto
from experiments.benchmarks.search_quality.problems import surface_of
from experiments.benchmarks.search_quality.problems.known import best_known
from experiments.benchmarks.search_quality.problems.surface import hypervolume, problem_of
from experiments.benchmarks.search_quality.problems.tables import DATA, PAIR

AT_THE_CENTRE = {
    "well_specified-8-3": [-0.684527, -0.528473, -0.777351],
    "rugged-24-3": [-0.664349, -0.692707, -0.666603],
    "plateau-8-3": [-0.843413, -0.486064, -0.893353],
    "cliff-24-3": [-0.676418, -0.658779, -0.772889],
    "taskwise-8-2": [-0.577608, -0.775379],
    "flan_t5-1-8": [-0.66, -0.022, -0.787],
    "zdt1-8-2": [0.5, 3.841688],
}
"""Losses of instance 0, first objectives."""


@pytest.mark.parametrize("name", AT_THE_CENTRE)
def test_a_problem_is_the_same_in_every_version(name: str) -> None:
    surface = surface_of(name, 0)
    losses = surface.truth(np.full((1, surface.n_dimensions), 0.5))[0]
    assert losses[:3] == pytest.approx(AT_THE_CENTRE[name], abs=1e-6)


@pytest.mark.parametrize(
    "name",
    [*AT_THE_CENTRE, "well_specified-64-6", "t0-2-2", "plusplus-8-8", "gpt2_ties-1-7", "dtlz2-8-3"],
)
def test_noise_is_around_the_truth_and_as_large_as_its_standard_error(name: str) -> None:
    surface = surface_of(name, 1)
    problem = problem_of(surface, 100)
    assert len(problem.dimensions) == surface.n_dimensions == len(problem.anchors[0])
    point = np.full((1, surface.n_dimensions), 0.4)
    truth, rng = surface.truth(point)[0], np.random.default_rng(0)
    assert truth.shape == (problem.n_objectives,)
    told = [surface.observe(truth, rng) for _ in range(300)]
    away = np.array([losses - truth for losses, _ in told])
    errors = np.array([evidence.standard_errors for _, evidence in told])
    assert np.abs(away.mean(axis=0)).max() < 4 * errors.mean() / np.sqrt(300)
    if name != "t0-2-2":  # which is exact
        assert away.std(axis=0) == pytest.approx(errors.mean(axis=0), rel=0.25)


def test_instances_of_a_family_differ_and_repeat() -> None:
    point = np.full((1, 8), 0.3)
    first, again, second = (surface_of("rugged-8-3", k).truth(point) for k in (0, 0, 1))
    assert (first == again).all()
    assert (first != second).all()


def test_logs_of_merges_have_the_published_fronts() -> None:
    table = np.load(DATA / "adamerging_vit_b32_taskwise.npz")
    for log, n_front, volume in (("taskwise", 21, 0.5021066), ("plusplus", 41, 0.5303382)):
        losses = -table[f"{log}_acc"]
        assert pareto.non_dominated(losses[:, PAIR]).sum() == n_front
        assert pareto.hypervolume(losses[:, PAIR], (0.0, 0.0)) == pytest.approx(volume, abs=1e-7)
        assert pareto.non_dominated(losses).all()


def test_no_random_point_beats_the_best_known_hypervolume() -> None:
    for key, best in best_known().items():
        name, _, instance = key.partition("/")
        surface = surface_of(name, int(instance or 0))
        if len(surface.reference) <= 3 and instance in ("", "0"):
            points = np.random.default_rng(0).random((200, surface.n_dimensions))
            assert hypervolume(surface, points) <= best
