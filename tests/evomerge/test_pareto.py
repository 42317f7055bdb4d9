import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.datatypes import FloatArray
from evomerge.errors import ConfigError
from evomerge.pareto import hypervolume, knee, non_dominated, prefer, reference_point, spread

ADAMERGING = Path(__file__).parents[1] / "data" / "adamerging_vit_b32_taskwise.npz"

# few distinct values, so that ties and duplicates are common
coarse = st.integers(-3, 3).map(float)
fine = st.floats(-1e6, 1e6, width=32)


def fronts(at_least: int = 1) -> st.SearchStrategy[FloatArray]:
    return st.tuples(st.integers(at_least, 24), st.integers(1, 5)).flatmap(
        lambda shape: st.one_of(
            arrays(np.float64, shape, elements=coarse), arrays(np.float64, shape, elements=fine)
        )
    )


def non_dominated_by_definition(losses: FloatArray) -> list[bool]:
    marked = []
    for i, a in enumerate(losses):
        dominated = any((b <= a).all() and (b < a).any() for b in losses)
        repeated = any((b == a).all() for b in losses[:i])
        marked.append(not dominated and not repeated)
    return marked


def hypervolume_by_inclusion_and_exclusion(losses: FloatArray, reference: FloatArray) -> float:
    inside = losses[(losses < reference).all(axis=1)]
    volume = 0.0
    for chosen in range(1, 2 ** len(inside)):
        rows = [i for i in range(len(inside)) if chosen >> i & 1]
        corner = inside[rows].max(axis=0)
        volume += (-1) ** (len(rows) + 1) * float(np.prod(reference - corner))
    return volume


@given(fronts())
def test_the_front_is_that_of_the_definition(losses: FloatArray) -> None:
    assert non_dominated(losses).tolist() == non_dominated_by_definition(losses)


def test_of_equal_points_the_first_is_marked() -> None:
    losses = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])
    assert non_dominated(losses).tolist() == [True, True, False, False, False]


def test_no_points_have_an_empty_front() -> None:
    assert non_dominated(np.zeros((0, 3))).shape == (0,)
    assert hypervolume(np.zeros((0, 3)), [1.0, 1.0, 1.0]) == 0.0


@given(
    st.integers(1, 4).flatmap(
        lambda m: arrays(np.float64, (8, m), elements=st.floats(0, 1.25, width=16))
    )
)
def test_hypervolume_is_that_of_inclusion_and_exclusion(losses: FloatArray) -> None:
    reference = np.ones(losses.shape[1])
    expected = hypervolume_by_inclusion_and_exclusion(losses, reference)
    assert hypervolume(losses, reference) == pytest.approx(expected, abs=1e-9)


@given(fronts())
def test_hypervolume_ignores_order_and_dominated_points(losses: FloatArray) -> None:
    reference = reference_point(losses)
    volume = hypervolume(losses, reference)
    assert volume > 0
    assert hypervolume(losses[::-1], reference) == pytest.approx(volume)
    assert hypervolume(losses[non_dominated(losses)], reference) == pytest.approx(volume)


def test_points_beyond_the_reference_contribute_nothing() -> None:
    losses = np.array([[0.2, 0.4], [0.0, 1.0], [-5.0, 1.5], [2.0, 2.0]])
    assert hypervolume(losses, [1.0, 1.0]) == pytest.approx(0.8 * 0.6)
    assert hypervolume(losses[1:], [1.0, 1.0]) == 0.0


@pytest.mark.parametrize("n_objectives", [6, 8])
def test_hypervolume_of_many_objectives_is_close_and_the_same_every_time(
    n_objectives: int,
) -> None:
    rng = np.random.default_rng(1)
    corner = rng.uniform(0.0, 0.3, n_objectives)
    box = float(np.prod(1 - corner))
    points = np.vstack([corner, rng.uniform(0.5, 1.0, (30, n_objectives))])
    volume = hypervolume(points, np.ones(n_objectives))
    assert volume == pytest.approx(box, rel=1e-2)
    assert hypervolume(points, np.ones(n_objectives)) == volume
    scales = 10.0 ** np.arange(n_objectives)
    assert hypervolume(points * scales, scales) == pytest.approx(volume * np.prod(scales), rel=1e-9)


def test_hypervolume_of_six_objectives_agrees_with_the_exact_one() -> None:
    import moocore

    z = np.abs(np.random.default_rng(0).normal(size=(60, 6)))
    points = 1 - 0.9 * z / np.linalg.norm(z, axis=1, keepdims=True)
    exact = moocore.hypervolume(points, ref=np.ones(6))
    assert hypervolume(points, np.ones(6)) == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize(
    ("log", "n_front", "volume"), [("taskwise", 21, 0.5021066), ("plusplus", 41, 0.5303382)]
)
def test_published_merges_of_two_tasks_have_the_known_front(
    log: str, n_front: int, volume: float
) -> None:
    with np.load(ADAMERGING) as table:
        losses = -table[f"{log}_acc"]
    two = losses[:, [0, 5]]  # SUN397 and GTSRB
    assert non_dominated(two).sum() == n_front
    assert hypervolume(two, [0.0, 0.0]) == pytest.approx(volume, abs=5e-8)
    assert non_dominated(losses).all()  # with all eight tasks


def test_the_knee_is_where_the_front_bends() -> None:
    x = np.linspace(0.0, 1.0, 101)
    bent = np.column_stack([x, (1 - np.sqrt(x)) ** 2 * 1000])  # scales do not matter
    assert knee(bent) == 25  # x = 1/4 is where x + (1 - sqrt(x))^2 is smallest


def test_the_knee_in_three_objectives_is_below_the_plane_of_the_extremes() -> None:
    extremes = [[0.0, 1.0, 0.7], [1.0, 0.0, 0.7], [0.6, 0.6, 0.0]]
    on_plane = np.mean(extremes, axis=0)
    losses = np.array([*extremes, on_plane + 0.02, on_plane - 0.05, on_plane + 0.01])
    assert knee(losses) == 4


@given(fronts())
def test_the_knee_and_every_preferred_point_are_not_dominated(losses: FloatArray) -> None:
    front = non_dominated(losses)
    assert front[knee(losses)]
    for weights in (np.ones(losses.shape[1]), np.eye(losses.shape[1])[0]):
        assert front[prefer(losses, weights.tolist())]


@given(fronts(), st.integers(-8, 8))
@settings(max_examples=50)
def test_scale_and_offset_of_an_objective_change_no_choice(losses: FloatArray, power: int) -> None:
    coarse_losses = np.round(losses)  # exact under powers of two
    moved = coarse_losses * 2.0**power
    assert knee(moved) == knee(coarse_losses)
    weights = [1.0] * losses.shape[1]
    assert prefer(moved, weights) == prefer(coarse_losses, weights)


def test_a_single_point_and_constant_objectives_are_handled() -> None:
    assert knee([[3.0, 4.0]]) == prefer([[3.0, 4.0]], [1.0, 2.0]) == 0
    constant = np.array([[0.0, 5.0], [0.0, 5.0], [0.0, 6.0]])
    assert knee(constant) == prefer(constant, [1.0, 1.0]) == 0
    redundant = np.array([[0.0, 0.0, 1.0], [0.3, 0.3, 0.3], [1.0, 1.0, 0.0]])
    assert knee(redundant) == 1
    assert knee([[2.0], [1.0], [3.0]]) == prefer([[2.0], [1.0], [3.0]], [1.0]) == 1


def test_preferences_reach_points_in_a_hollow_of_the_front() -> None:
    hollow = np.array(
        [[0.0, 1.0], [0.6, 0.6], [1.0, 0.0]]
    )  # no weighted sum is least in the middle
    assert prefer(hollow, [1.0, 1.0]) == 1
    assert prefer(hollow, [10.0, 1.0]) == 0
    assert prefer(hollow, [0.0, 1.0]) == 2


def test_preferences_break_ties_towards_the_better_sum() -> None:
    assert (
        prefer([[0.0, 1.0, 1.0], [0.5, 0.5, 0.5], [0.5, 0.0, 0.5], [1.0, 0.9, 0.0]], [1, 1, 1]) == 2
    )


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], []]
)
def test_senseless_preferences_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"one weight >= 0 per objective \(2\)"):
        prefer([[1.0, 2.0]], weights)


@given(fronts())
def test_the_reference_is_strictly_worse_than_every_baseline(losses: FloatArray) -> None:
    assert (reference_point(losses) > losses).all()


def test_the_reference_is_a_tenth_beyond_the_worst() -> None:
    reference = reference_point([[-0.8, 2.0, 0.0], [-0.6, 2.0, 0.0]])
    assert reference == pytest.approx([-0.58, 2.2, 1e-9])


@pytest.mark.parametrize(
    "losses", [[1.0, 2.0], [[float("nan"), 1.0]], [[float("inf"), 1.0]], np.zeros((3, 0))]
)
def test_what_is_not_a_finite_matrix_is_refused(losses: object) -> None:
    for function in (non_dominated, knee, reference_point):
        with pytest.raises(ValueError, match="losses must"):
            function(losses)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="losses must"):
        hypervolume(losses, [1.0, 1.0])  # type: ignore[arg-type]


def test_a_choice_among_no_points_is_refused() -> None:
    for function in (knee, reference_point):
        with pytest.raises(ValueError, match="at least one point"):
            function(np.zeros((0, 2)))


@pytest.mark.parametrize("reference", [[1.0], [1.0, float("nan")], [[1.0, 1.0]]])
def test_a_reference_that_does_not_fit_is_refused(reference: object) -> None:
    with pytest.raises(ValueError, match="one finite loss per objective"):
        hypervolume([[0.5, 0.5]], reference)  # type: ignore[arg-type]


def test_importing_pareto_is_cheap() -> None:
    code = (
        "import sys, evomerge.pareto\n"
        "assert not {'moocore', 'pymoo', 'scipy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_spread_takes_what_people_take_and_then_the_gaps():
    t = np.linspace(0.0, 1.0, 101)
    losses = np.column_stack([t, 3.0 * (1.0 - t) ** 2])
    chosen = spread(losses, 6)
    assert chosen[0] == int(np.argmin(losses.mean(axis=1)))
    assert chosen[1] == knee(losses)
    assert {0, 100} <= set(chosen)
    assert len(set(chosen)) == 6
    assert spread(losses, 200) == list(range(101))
    assert spread(losses, 0) == []
    assert spread(np.zeros((3, 2)), 2) in ([0, 1], [0, 2])
    assert spread(np.zeros((0, 2)), 2) == []
