import numpy as np
import pytest

from evomerge.datatypes import Dimension, Problem
from evomerge.samplers.design import FLIP_PROBABILITY, SPREAD, Kinds, centred_design, proposal


def problem_of(n_real: int, n_binary: int, *anchors: tuple[float, ...]) -> Problem:
    dimensions = [Dimension(f"x{i}") for i in range(n_real)]
    dimensions += [Dimension(f"bit {i}", kind="binary") for i in range(n_binary)]
    return Problem(tuple(dimensions), 1, anchors, budget=100)


def test_the_anchors_come_first_each_once_and_exactly() -> None:
    third = 1 / 3  # more digits than a proposal has
    problem = problem_of(2, 0, (third, third), (0.5, 0.5), (third, third))
    design = centred_design(problem, 5, seed=1)
    assert design.shape == (5, 2)
    assert design[:2].tolist() == [[third, third], [0.5, 0.5]]
    assert len(np.unique(design, axis=0)) == 5


def test_a_small_design_has_the_best_anchors_only() -> None:
    problem = problem_of(1, 0, (0.5,), (0.3,), (0.4,))
    assert centred_design(problem, 2, seed=1).tolist() == [[0.5], [0.3]]


def test_the_rest_spreads_around_the_first_anchor_inside_the_cube() -> None:
    problem = problem_of(2, 2, (0.5, 0.05, 1.0, 0.0))
    rest = centred_design(problem, 3000, seed=1)[1:]
    assert ((rest >= 0) & (rest <= 1)).all()
    assert rest[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    assert rest[:, 0].std() == pytest.approx(SPREAD, abs=0.02)
    assert (rest[:, 1] == 0).mean() > 0.3  # clipped, not folded back
    assert set(np.unique(rest[:, 2:])) == {0.0, 1.0}
    assert (rest[:, 2] == 0.0).mean() == pytest.approx(FLIP_PROBABILITY, abs=0.03)
    assert (rest[:, 3] == 1.0).mean() == pytest.approx(FLIP_PROBABILITY, abs=0.03)


def test_it_depends_on_the_seed_only_and_grows_at_its_end() -> None:
    problem = problem_of(3, 3, (0.5,) * 6)
    design = centred_design(problem, 20, seed=4)
    np.testing.assert_array_equal(design, centred_design(problem, 20, seed=4))
    np.testing.assert_array_equal(design[:7], centred_design(problem, 7, seed=4))
    assert (design[1:] != centred_design(problem, 20, seed=5)[1:]).any()


def test_a_space_with_fewer_points_than_the_design_repeats_them() -> None:
    design = centred_design(problem_of(0, 2, (1.0, 1.0)), 12, seed=0)
    assert design.shape == (12, 2)
    assert len(np.unique(design, axis=0)) == 4


def test_a_proposal_has_nine_digits_and_whole_bits() -> None:
    kinds = Kinds.of(problem_of(1, 2, (0.5, 1.0, 1.0)))
    assert proposal(np.array([1 / 3, 0.5, 0.4999]), kinds) == [0.333333333, 1.0, 0.0]


def variants_of(n_choices: int, *anchors: tuple[float, int]) -> Problem:
    """One real dimension and a choice; anchors are a number and a choice."""
    choice = Dimension("variant", "categorical", n_choices)
    points = tuple((x, choice.position(i)) for x, i in anchors)
    return Problem((Dimension("x"), choice), 1, points, budget=100)


def test_every_choice_gets_an_equal_share_around_its_own_anchor() -> None:
    problem = variants_of(3, (0.3, 0), (0.5, 1), (0.7, 2), (0.0, 1))
    design = centred_design(problem, 4 + 300, seed=1)
    assert design[:4].tolist() == [list(anchor) for anchor in problem.anchors]
    choices = [problem.dimensions[1].choice(u) for u in design[4:, 1]]
    assert [choices.count(i) for i in range(3)] == [100, 100, 100]
    for round_of_turns in np.reshape(choices, (-1, 3)):
        assert sorted(round_of_turns) == [0, 1, 2]  # however small the design is
    for i, centre in enumerate((0.3, 0.5, 0.7)):
        of_choice = design[4:, 0][np.array(choices) == i]
        assert np.median(of_choice) == pytest.approx(centre, abs=0.07)


def test_a_choice_without_an_anchor_gets_its_share_around_the_first() -> None:
    problem = variants_of(4, (0.3, 2))
    design = centred_design(problem, 81, seed=1)
    choices = [problem.dimensions[1].choice(u) for u in design[1:, 1]]
    assert [choices.count(i) for i in range(4)] == [20] * 4
    assert design[:, 0].mean() == pytest.approx(0.3, abs=0.1)


def test_a_proposed_choice_is_the_middle_of_its_share() -> None:
    problem = variants_of(3, (0.5, 0))
    kinds = Kinds.of(problem)
    middles = [problem.dimensions[1].position(i) for i in range(3)]
    for u, i in [(0.0, 0), (0.333, 0), (0.334, 1), (0.666, 1), (0.667, 2), (1.0, 2)]:
        assert proposal(np.array([0.25, u]), kinds) == [0.25, middles[i]]
        assert proposal(np.array([0.25, middles[i]]), kinds) == [0.25, middles[i]]
