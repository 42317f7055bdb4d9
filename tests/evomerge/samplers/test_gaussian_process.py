import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.pareto import hypervolume
from evomerge.samplers.gaussian_process import GaussianProcessSampler, _chosen

Loss = Callable[[Candidate], Sequence[float] | None]

MIXED = Problem(
    (
        *(Dimension(f"x{i}") for i in range(3)),
        Dimension("gate", "binary"),
        Dimension("variant", "categorical", 3),
    ),
    n_objectives=1,
    anchors=((0.4, 0.4, 0.4, 1.0, 0.166666667), (0.2, 0.2, 0.2, 0.0, 0.5)),
    budget=30,
)


def real(n_dimensions: int, n_objectives: int = 1, budget: int = 30) -> Problem:
    dimensions = tuple(Dimension(f"x{i}") for i in range(n_dimensions))
    return Problem(dimensions, n_objectives, ((0.5,) * n_dimensions,), budget)


def distances(*targets: float) -> Loss:
    def loss(candidate: Candidate) -> list[float]:
        return [float(((np.array(candidate.u) - t) ** 2).mean()) for t in targets]

    return loss


def mixed_loss(candidate: Candidate) -> list[float]:
    choice = MIXED.dimensions[4].choice(candidate.u[4])
    reals = float(((np.array(candidate.u[:3]) - 0.6) ** 2).sum())
    return [reals + 0.2 * (candidate.u[3] != 0.0) + 0.2 * (choice != 2)]


def steady(sampler: Any, n: int, loss: Loss, n_workers: int = 1) -> list[Candidate]:
    """Ask n candidates; the oldest is told whenever all workers are busy."""
    asked: list[Candidate] = []
    told = 0
    while len(asked) < n:
        if len(asked) - told == n_workers:
            sampler.tell(asked[told], loss(asked[told]))
            told += 1
        asked.append(sampler.ask())
    return asked


def test_the_order_of_tells_does_not_matter() -> None:
    loss = distances(0.3, 0.7)
    samplers = [GaussianProcessSampler(real(3, 2), seed=1, start=8) for _ in range(2)]
    first, second = ([sampler.ask() for _ in range(8)] for sampler in samplers)
    for candidate in first[:6]:
        samplers[0].tell(candidate, loss(candidate))
    for candidate in second[5::-1]:
        samplers[1].tell(candidate, loss(candidate))
    assert samplers[0].ask() == samplers[1].ask()


def test_a_sampler_that_readmits_what_was_asked_continues_the_same() -> None:
    whole = steady(GaussianProcessSampler(MIXED, seed=3), 18, mixed_loss, n_workers=2)
    resumed = GaussianProcessSampler(MIXED, seed=3)
    for candidate in whole[:14]:
        resumed.readmit(candidate)
    for candidate in whole[:12]:
        resumed.tell(candidate, mixed_loss(candidate))
    for index in range(14, 18):
        resumed.tell(whole[index - 2], mixed_loss(whole[index - 2]))
        assert resumed.ask() == whole[index]


def test_another_process_proposes_the_same() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_gaussian_process import *\n"
        "print([c.u for c in steady(GaussianProcessSampler(MIXED, seed=3), 13, mixed_loss, 2)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, __file__.rpartition("/")[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    here = [c.u for c in steady(GaussianProcessSampler(MIXED, seed=3), 13, mixed_loss, 2)]
    assert result.stdout.strip() == str(here)


def test_one_objective_is_nearly_solved_in_few_evaluations() -> None:
    loss = distances(0.85)
    asked = steady(GaussianProcessSampler(real(4), seed=1), 22, loss)
    losses = [sum(loss(candidate) or ()) for candidate in asked]
    assert min(losses[:10]) > 0.04
    assert min(losses) < 0.004


def test_a_front_is_followed_with_parallel_asks() -> None:
    """The middle between two targets is best in both; the design has next to nothing there."""
    loss = distances(0.55, 0.85)
    sampler = GaussianProcessSampler(real(3, 2), seed=1, start=10)
    asked = steady(sampler, 18, loss, n_workers=3)
    spreads = [float(np.std(candidate.u)) for candidate in asked]  # the front is the diagonal
    assert np.median(spreads[-5:]) < 0.5 * np.median(spreads[1:10])
    assert len({candidate.u for candidate in asked}) == 18


def test_many_objectives_are_scalarized_in_turn() -> None:
    loss = distances(*np.linspace(0.65, 0.9, 6))
    sampler = GaussianProcessSampler(real(3, 6), seed=1, start=8)
    asked = steady(sampler, 20, loss)
    losses = np.array([loss(candidate) for candidate in asked])
    reference = losses[0]
    assert hypervolume(losses, reference) > 1.3 * hypervolume(losses[:8], reference)
    leaders = [int(np.argmin(row / row.sum())) for row in losses[8:]]
    assert len(set(leaders)) >= 2  # not all for the same objective


def test_the_best_bit_and_choice_are_found() -> None:
    asked = steady(GaussianProcessSampler(MIXED, seed=1), 20, mixed_loss)
    best = min(asked, key=lambda c: mixed_loss(c)[0])
    assert (best.u[3], MIXED.dimensions[4].choice(best.u[4])) == (0.0, 2)


def test_it_learns_where_candidates_fail() -> None:
    def loss(candidate: Candidate) -> list[float] | None:
        return None if candidate.u[0] > 0.5 else [(candidate.u[0] - 0.3) ** 2]

    asked = steady(GaussianProcessSampler(real(2), seed=1, start=8), 20, loss)
    assert sum(loss(c) is None for c in asked[-8:]) <= 2


def test_repeated_points_pending_and_told_are_survived() -> None:
    bits = Problem(tuple(Dimension(f"b{i}", "binary") for i in range(2)), 2, ((1.0, 1.0),), 30)
    sampler = GaussianProcessSampler(bits, seed=1, start=4)
    asked = steady(sampler, 12, distances(0.2, 0.6), n_workers=5)
    assert {c.u for c in asked} == {(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)}


def test_beyond_its_limit_it_keeps_the_front_then_the_latest() -> None:
    losses = np.array([[0.0, 9.0], [5.0, 5.0], [9.0, 0.0], [6.0, 6.0], [7.0, 7.0], [8.0, 8.0]])
    assert _chosen(losses, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert _chosen(losses, 4).tolist() == [0, 1, 2, 5]
    assert _chosen(losses, 2).tolist() == [1, 2]


def test_it_says_when_it_no_longer_knows_all() -> None:
    loss, sampler = distances(0.4), GaussianProcessSampler(real(2), seed=1, start=400)
    steady(sampler, 301, loss)
    assert sampler.remarks == ()
    steady(sampler, 2, loss, n_workers=3)
    told = [sampler.ask() for _ in range(4)]
    for candidate in told:
        sampler.tell(candidate, loss(candidate))
    (remark,) = sampler.remarks
    assert "300 candidates" in remark
    assert "nsga2" in remark


def test_a_singular_covariance_gives_a_point_of_the_design_and_a_remark() -> None:
    class Singular(GaussianProcessSampler):
        def _asked(self, *_: Any) -> Any:
            raise RuntimeError("the input is not positive-definite")

    loss = distances(0.4)
    sampler = Singular(real(2), seed=1, start=4)
    asked = steady(sampler, 8, loss)
    design = steady(GaussianProcessSampler(real(2), seed=1, start=8), 8, loss)
    assert asked == design
    (remark,) = sampler.remarks
    assert "candidate 4:" in remark


@pytest.mark.parametrize("start", [0, 1.5, None])
def test_a_start_is_checked_and_never_more_than_a_third_of_the_budget(start: Any) -> None:
    if start is not None:
        with pytest.raises(ConfigError, match="start of gaussian_process must be a whole number"):
            GaussianProcessSampler(MIXED, seed=1, start=start)
        return
    loss = distances(0.4)
    own = steady(GaussianProcessSampler(real(2, budget=15), seed=1), 6, loss)
    longer = steady(GaussianProcessSampler(real(2, budget=15), seed=1, start=6), 6, loss)
    assert own[:5] == longer[:5]
    assert own[5] != longer[5]
