from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.pareto import hypervolume
from evomerge.samplers.archive_based import START
from evomerge.samplers.design import Kinds, centred_design
from evomerge.samplers.grid import bins_of, default_bins, elites, shares_of
from evomerge.samplers.map_elites import MapElitesSampler
from evomerge.samplers.variation import mutated

Loss = Callable[[Candidate], Sequence[float] | None]


def problem_of(n_real: int, n_objectives: int = 2, budget: int = 400, **known: Any) -> Problem:
    dimensions = tuple(Dimension(f"x{i}") for i in range(n_real))
    return Problem(dimensions, n_objectives, ((0.4,) * n_real,), budget, **known)


def run(sampler: MapElitesSampler, n: int, loss: Loss) -> list[Candidate]:
    asked: list[Candidate] = []
    pending: list[Candidate] = []
    while len(asked) < n:
        candidate = sampler.ask()
        if candidate is None:
            for done in pending:
                sampler.tell(done, loss(done))
            pending = []
        else:
            asked.append(candidate)
            pending.append(candidate)
    return asked


def two_targets(candidate: Candidate) -> list[float]:
    u = np.array(candidate.u)
    return [float(((u - target) ** 2).mean()) for target in (0.2, 0.8)]


def test_bins_are_closed_at_their_better_edge_and_span_what_was_told() -> None:
    losses = np.array([0, 1, 2, 3, 4, 4.5, 5, 6, 7, 9, 10])[:, None]
    # of eleven, one is worse than the grid's worst edge: 9
    for scale in (1.0, 1e307):
        bins = bins_of(shares_of(scale * losses), 2)[:, 0]
        assert bins.tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_collapsed_models_do_not_stretch_the_grid() -> None:
    losses = np.array([*np.linspace(0.0, 0.9, 10), 1e9])[:, None]
    assert len(set(bins_of(shares_of(losses), 10)[:, 0].tolist())) == 10


def test_equal_losses_share_the_first_bin() -> None:
    assert (bins_of(shares_of(np.full((4, 2), 0.3)), 5) == 0).all()


def test_each_cell_keeps_its_best_and_of_equals_the_first() -> None:
    cells = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    losses = np.array([0.3, 0.5, 0.2, 0.5, 0.2])
    assert elites(cells, losses).tolist() == [1, 2]
    assert elites(np.zeros((3, 0), dtype=np.int64), np.array([2.0, 1.0, 1.0])).tolist() == [1]
    assert elites(cells[:0], losses[:0]).tolist() == []


def test_a_mutated_choice_becomes_any_other_alike_and_one_bit_turns_on_average() -> None:
    choice = Dimension("c", "categorical", 4)
    bits = tuple(Dimension(f"b{i}", "binary") for i in range(8))
    problem = Problem((Dimension("x"), *bits, choice), 1, ((0.5,) * 10,), budget=1)
    x = np.array([0.5, *[1.0] * 4, *[0.0] * 4, choice.position(1)])
    rng = np.random.default_rng(0)
    children = np.array([mutated(x, Kinds.of(problem), 0.1, rng) for _ in range(4000)])
    assert children[:, 0].std() == pytest.approx(0.1, rel=0.05)
    turned = (children[:, 1:9] != x[1:9]).sum(axis=1)
    assert turned.mean() == pytest.approx(1.0, abs=0.06)
    counts = np.bincount([choice.choice(u) for u in children[:, 9]], minlength=4)
    assert counts[1] == pytest.approx(0.85 * 4000, rel=0.03)
    np.testing.assert_allclose(counts[[0, 2, 3]], 200, atol=50)


def test_generation_zero_is_anchors_experts_and_design() -> None:
    experts = ((0.9, 0.1, 0.1), (0.4, 0.4, 0.4))  # the second is the anchor
    problem = problem_of(3, experts=experts)
    asked = [c.u for c in run(MapElitesSampler(problem, seed=3), START, two_targets)]
    design = [tuple(row) for row in centred_design(problem, START, 3).tolist()]
    assert asked == [design[0], experts[0], *design[1 : START - 1]]


def test_elites_spread_over_the_whole_front() -> None:
    asked = run(MapElitesSampler(problem_of(4), seed=1), 400, two_targets)
    losses = np.array([two_targets(candidate) for candidate in asked])
    assert losses.min(axis=0).max() < 0.03  # both ends
    assert hypervolume(losses, [0.36, 0.36]) > 0.9 * 0.36**2 * 5 / 6  # of the whole front's


def test_a_cell_keeps_the_best_in_the_quality_that_was_named() -> None:
    """With the first objective as quality, bins of the second keep what is good at the first."""
    problem = problem_of(2, names=("speed", "size"))

    def loss(candidate: Candidate) -> list[float]:
        return [(candidate.u[0] - 0.9) ** 2, candidate.u[1]]

    named, numbered = (
        run(MapElitesSampler(problem, seed=1, quality=quality), 200, loss)
        for quality in ("speed", 0)
    )
    assert named == numbered
    late = np.array([candidate.u for candidate in named[-50:]])
    assert np.median(late[:, 0]) > 0.75
    assert np.ptp(late[:, 1]) > 0.6


def test_steps_lie_on_the_line_to_another_elite() -> None:
    """With iso = 0 the children of two points that differ in one coordinate stay on their line."""
    problem = Problem((Dimension("x"), Dimension("y")), 2, ((0.3, 0.5), (0.7, 0.5)), budget=8)

    def loss(candidate: Candidate) -> list[float] | None:
        return [candidate.u[0], -candidate.u[0]] if candidate.u[1] == 0.5 else None

    sampler = MapElitesSampler(problem, seed=1, iso=0.0)
    asked = run(sampler, 44, loss)[4:]
    assert {candidate.u[1] for candidate in asked} == {0.5}
    assert len({candidate.u[0] for candidate in asked}) > 30


def test_one_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs two at least, but there is 1: use cma_es"):
        MapElitesSampler(problem_of(2, n_objectives=1), seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "bins must be a whole number of at least 2"),
        ({"iso": -0.1}, "iso must be a number of at least 0"),
        ({"line": "wide"}, "line must be a number"),
        ({"quality": "speed"}, r"one of the objectives \(0 to 1\), but got 'speed'"),
        ({"quality": 2}, "one of the objectives"),
        ({"generation": 1.5}, "generation must be a whole number"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MapElitesSampler(problem_of(2), seed=1, **options)


@pytest.mark.parametrize(
    ("budget", "n_axes", "n_bins"), [(100, 1, 10), (400, 2, 6), (100, 6, 2), (9000, 2, 15)]
)
def test_a_grid_has_a_cell_for_every_ten_evaluations(budget: int, n_axes: int, n_bins: int) -> None:
    assert default_bins(budget, n_axes) == n_bins
