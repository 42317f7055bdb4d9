import numpy as np
import pytest

from evomerge.samplers.reference_directions import reference_directions


@pytest.mark.parametrize(
    ("n_objectives", "at_most", "n_directions"),
    [(2, 12, 12), (3, 12, 10), (3, 91, 91), (3, 100, 91), (6, 12, 12), (6, 40, 27), (6, 4, 6)],
)
def test_as_many_directions_as_make_a_lattice(
    n_objectives: int, at_most: int, n_directions: int
) -> None:
    assert reference_directions(n_objectives, at_most).shape == (n_directions, n_objectives)


@pytest.mark.parametrize("n_objectives", [2, 3, 4, 6])
@pytest.mark.parametrize("at_most", [12, 30, 100])
def test_directions_are_different_points_of_the_simplex(n_objectives: int, at_most: int) -> None:
    directions = reference_directions(n_objectives, at_most)
    assert (directions >= 0.0).all()
    assert directions.sum(axis=1) == pytest.approx(1.0)
    assert len(np.unique(np.round(directions, 9), axis=0)) == len(directions)
    corners = np.eye(n_objectives).tolist()
    assert all(corner in directions.tolist() for corner in corners)


def test_a_second_layer_covers_the_middle_of_many_objectives() -> None:
    directions = reference_directions(6, 27)
    assert (directions > 0.0).all(axis=1).sum() == 6


def test_the_twelve_partitions_of_three_objectives_are_those_of_the_paper() -> None:
    directions = reference_directions(3, 91)  # Deb and Jain 2014, table I
    assert np.unique(np.round(directions * 12, 9)).tolist() == list(range(13))
