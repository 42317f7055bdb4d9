from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.pareto import hypervolume
from evomerge.samplers.cycle_qd import (
    PAPER_RANGE,
    RELEASED_RANGE,
    CycleQdSampler,
    elite_probabilities,
)

Loss = Callable[[Candidate], Sequence[float] | None]

CELLS = np.array([[0, 1], [3, 2], [7, 7]])
QUALITY = np.array([0.2, 0.5, 0.4])


def problem_of(n_real: int, n_objectives: int = 2, budget: int = 400, **known: Any) -> Problem:
    dimensions = tuple(Dimension(f"x{i}") for i in range(n_real))
    return Problem(dimensions, n_objectives, ((0.4,) * n_real,), budget, **known)


def run(sampler: CycleQdSampler, n: int, loss: Loss) -> list[Candidate]:
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


def test_elites_are_drawn_as_the_released_code_draws_them() -> None:
    p = elite_probabilities(CELLS, QUALITY, *RELEASED_RANGE)
    np.testing.assert_allclose(p, (0.048728, 0.270517, 0.680756), atol=5e-7)


def test_elites_are_drawn_as_the_paper_means_it() -> None:
    n = np.array([[0.5, 0.5, 0.5], [0.8, 0.5 + 0.3 * 3 / 7, 0.55], [0.7, 0.8, 0.8]])
    np.testing.assert_allclose(
        elite_probabilities(CELLS, QUALITY, *PAPER_RANGE), n.prod(axis=1) / n.prod(axis=1).sum()
    )


def test_what_is_equal_everywhere_has_no_say() -> None:
    p = elite_probabilities(np.array([[4], [4]]), np.array([1e308, -1e308]), 0.5, 0.8)
    np.testing.assert_allclose(p, [8 / 13, 5 / 13])
    assert elite_probabilities(
        np.zeros((1, 0), dtype=np.int64), np.zeros(1), 0.5, 0.8
    ).tolist() == [1.0]


def test_the_archives_spread_over_the_trade_off() -> None:
    """What lies between the experts is found; averages alone would never reach their ends."""
    experts = ((0.25,) * 4, (0.75,) * 4)
    problem = problem_of(4, origin=(0.5,) * 4, experts=experts)
    losses = [two_targets(c) for c in run(CycleQdSampler(problem, seed=1), 400, two_targets)]
    assert hypervolume(losses, [0.36, 0.36]) > 0.9 * 0.36**2 * 5 / 6  # of the whole front's


def test_children_move_towards_the_expert_that_is_best_at_the_generations_objective() -> None:
    """Experts are found by what they score, in whatever order they stand."""
    base, ends = (0.5,) * 4, ((0.5, 0.5, 0.9, 0.9), (0.9, 0.9, 0.5, 0.5))
    problem = problem_of(4, budget=40, origin=base, experts=ends, owners=(1, 1, 0, 0))
    sampler = CycleQdSampler(problem, seed=1, mutation=0.0, push=1.0)

    def loss(candidate: Candidate) -> list[float]:
        """Objective 0 is what expert 1 is good at; nothing in between matters."""
        return [-float(candidate.u == ends[1]), -float(candidate.u == ends[0])]

    asked = run(sampler, 26, loss)
    start = [c for c in asked if c.generation == 0]
    u = {0: np.array(ends[0]), 1: np.array(ends[1])}
    for candidate in asked[len(start) :]:
        if candidate.generation > 2:
            break
        best = {1: 0, 0: 1}[candidate.generation % 2]
        moved = np.array(candidate.u)
        own = u[best] > 0.5
        parents = np.array([c.u for c in start])
        assert (moved[own] >= parents.min(axis=0)[own]).all()
        assert (moved[~own] <= parents.max(axis=0)[~own] + 1e-9).all()
    pushed = [c for c in asked if c.generation == 1]
    assert np.mean([np.array(c.u)[2:].mean() for c in pushed]) > 0.55


def test_without_mutation_children_lie_nearly_halfway_between_elites() -> None:
    problem = Problem((Dimension("x"), Dimension("y")), 2, ((0.2, 0.4), (0.6, 0.8)), budget=8)
    sampler = CycleQdSampler(problem, seed=1, mutation=0.0)

    def loss(candidate: Candidate) -> list[float] | None:
        return [candidate.u[0], -candidate.u[0]] if candidate.u in problem.anchors else None

    for candidate in run(sampler, 30, loss)[4:]:
        np.testing.assert_allclose(candidate.u, (0.4, 0.6), atol=0.02)


def test_one_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs two at least, but there is 1: use cma_es"):
        CycleQdSampler(problem_of(2, n_objectives=1), seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "bins must be a whole number of at least 2"),
        ({"push": 1.5}, "push must be a number of at least 0 and at most 1"),
        ({"mutation": -1}, "mutation must be a number"),
        ({"elite_range": [0.8, 0.5]}, "two numbers above 0 and at most 100 in rising order"),
        ({"elite_range": [0, 1]}, "two numbers above 0"),
        ({"elite_range": 0.5}, "two numbers above 0"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CycleQdSampler(problem_of(2), seed=1, **options)
