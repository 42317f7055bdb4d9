"""Designs for a quadratic: the published one with its weakness, and ours without it."""

import numpy as np
import pytest

from evomerge.samplers.map.design import latin_hypercube, levels, published_grid
from evomerge.samplers.map.quadratic import n_parameters, rank


@pytest.mark.parametrize(
    ("n_coefficients", "n_levels", "expected"),
    [(2, 5, 6), (3, 4, 10), (4, 3, 15), (5, 3, 21), (6, 3, 28), (7, 3, 36), (8, 2, 37), (9, 2, 46)],
)
def test_the_published_grid_is_short_of_rank_from_eight_coefficients(
    n_coefficients: int, n_levels: int, expected: int
) -> None:
    P = n_parameters(n_coefficients)
    points = published_grid(2 * P, n_coefficients, np.random.default_rng(0))
    assert levels(2 * P - n_coefficients, n_coefficients) == n_levels
    assert points.shape == (2 * P, n_coefficients)
    assert rank(points) == expected


def test_the_published_grid_begins_with_the_experts_and_leaves_out_what_it_says() -> None:
    points = published_grid(20, 3, np.random.default_rng(1))
    assert points[:3].tolist() == np.eye(3).tolist()
    rest = points[3:]
    assert len(np.unique(points, axis=0)) == 20
    assert (np.abs(rest.sum(axis=1) - 1.0) > 1e-9).all()
    assert (np.ptp(rest, axis=1) > 0.0).all()


def test_large_grids_are_drawn_from() -> None:
    points = published_grid(60, 40, np.random.default_rng(1))
    assert len(np.unique(points, axis=0)) == 60


@pytest.mark.parametrize("n_coefficients", [2, 8, 9])
def test_a_latin_hypercube_has_full_rank_in_its_box(n_coefficients: int) -> None:
    P = n_parameters(n_coefficients)
    low, high = np.full(n_coefficients, 0.2), np.full(n_coefficients, 0.7)
    points = latin_hypercube(2 * P, low, high, np.random.default_rng(0))
    assert rank(points) == P
    assert (points >= low).all()
    assert (points <= high).all()
    strata = np.floor((points - low) / (high - low) * 2 * P).astype(int)
    assert all(sorted(column) == list(range(2 * P)) for column in strata.T)
