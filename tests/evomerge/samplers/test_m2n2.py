from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Answers, Candidate, Dimension, Evidence, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.ledger import Told
from evomerge.samplers.m2n2 import M2n2Sampler, resources
from evomerge.samplers.resource_competition import (
    attraction,
    competed_fitness,
    slerp,
    split_places,
)

S = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 1], [0, 0, 0, 1, 1]], dtype=np.float64)

Reply = Callable[[Candidate], tuple[Sequence[float] | None, Evidence | None]]


def problem_of(n_real: int, n_objectives: int = 1, **known: Any) -> Problem:
    dimensions = tuple(Dimension(f"x{i}") for i in range(n_real))
    return Problem(dimensions, n_objectives, ((0.4,) * n_real,), budget=200, **known)


def run(sampler: M2n2Sampler, n: int, reply: Reply) -> list[Candidate]:
    asked: list[Candidate] = []
    pending: list[Candidate] = []
    while len(asked) < n:
        candidate = sampler.ask()
        if candidate is None:
            for done in pending:
                sampler.tell(done, *reply(done))
            pending = []
        else:
            asked.append(candidate)
            pending.append(candidate)
    return asked


def answered(values: Sequence[float], items: Sequence[int] | None = None) -> Told:
    """A member that was asked one objective's items."""
    losses = np.array(values, dtype=np.float64)
    numbers = np.arange(len(losses)) if items is None else np.array(items, dtype=np.int64)
    evidence = Evidence((0.1,), (len(losses),), (Answers(numbers, losses),))
    return Told(Candidate(0, 0, (0.5,)), (float(losses.mean()),), evidence)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.0, (3, 3, 2)),
        (0.5, (2.284457, 2.284457, 1.577350)),
        (1.0, (1.833333, 1.833333, 1.333333)),
    ],
)
def test_fitness_is_the_published_share_of_items(alpha: float, expected: Sequence[float]) -> None:
    np.testing.assert_allclose(competed_fitness(S, alpha), expected, atol=5e-7)


@pytest.mark.parametrize(
    ("first", "expected"), [(0, (0, 1, 1)), (1, (1, 0, 1)), (2, (1.5, 1.5, 0))]
)
def test_attraction_is_what_the_first_parent_lacks(first: int, expected: Sequence[float]) -> None:
    np.testing.assert_allclose(attraction(S, first), expected, atol=1e-12)


def test_capacities_scale_what_items_are_worth() -> None:
    capacities = np.array([1.0, 1, 1, 10, 1])
    expected = competed_fitness(S) + np.array([0, 0, 9])
    np.testing.assert_allclose(competed_fitness(S, capacities=capacities), expected)


def test_an_item_that_nobody_knows_is_worth_nothing() -> None:
    assert competed_fitness(np.zeros((2, 3))).tolist() == [0.0, 0.0]
    assert attraction(np.ones((2, 3)), 0).tolist() == [0.0, 0.0]


def test_merging_on_the_arc_reproduces_the_published_values() -> None:
    x, y = np.array([1.0, 0, 0, 0]), np.array([0.0, 2, 0, 0])
    np.testing.assert_allclose(slerp(x, y, 0.3), (0.891007, 0.907981, 0, 0), atol=5e-7)
    child = slerp(x, y, split_places(4, 1, 0.3))
    np.testing.assert_allclose(child, (0.891007, 1.782013, 0, 0), atol=5e-7)
    x, y = np.array([1.0, 2, 3, 4]), np.array([2.0, -1, 0, 1])
    child = slerp(x, y, split_places(4, 1, 0.3))
    np.testing.assert_allclose(child, (1.590528, -0.034540, 1.166991, 2.368522), atol=5e-7)


@pytest.mark.parametrize("b", [(2.0, 4.0), (-1.0, -2.0), (0.0, 0.0)])
def test_parallel_opposite_and_zero_vectors_are_averaged(b: Sequence[float]) -> None:
    a = np.array([1.0, 2.0])
    np.testing.assert_allclose(slerp(a, np.array(b), 0.25), 0.75 * a + 0.25 * np.array(b))


def test_right_and_wrong_answers_are_told_apart_whatever_their_losses() -> None:
    members = [answered([-1, 0] * 5), answered([0, 0] * 5)]
    scores, capacities, n_items = resources(members, 1)
    assert scores.tolist() == [[1, 0] * 5, [0, 0] * 5]
    assert capacities.tolist() == [0.1] * 10
    assert n_items == 10


def test_a_threshold_decides_what_is_right() -> None:
    members = [answered(np.arange(10) / 10), answered(np.full(10, 0.25))]
    assert resources(members, 1, threshold=0.3)[0].tolist() == [[1] * 3 + [0] * 7, [1] * 10]


def test_graded_answers_count_by_their_gain_on_the_item() -> None:
    rows = [[2.0] * 10, [3.0] * 10, [6.0] * 9 + [2.5]]
    scores = resources([answered(row) for row in rows], 1)[0]
    np.testing.assert_allclose(scores[:, 0], (1, 0.75, 0))
    np.testing.assert_allclose(scores[:, 9], (1, 0, 0.5))


def test_members_are_compared_on_items_that_all_have_answered() -> None:
    one = answered([-1] * 5 + [0] * 5, items=range(10))
    other = answered([0] * 9 + [-1], items=[11, 3, 2, 4, 5, 6, 7, 8, 9, 1])
    scores, _, n_items = resources([one, other], 1)
    assert n_items == 9
    assert scores.tolist() == [[1] * 4 + [0] * 5, [1] + [0] * 8]


def test_without_common_items_objectives_are_the_resources() -> None:
    one, other = answered([-1] * 8, items=range(8)), answered([0] * 8, items=range(8, 16))
    scores, capacities, n_items = resources([one, other], 1)
    assert scores.tolist() == [[1], [0]]
    assert capacities.tolist() == [1]
    assert n_items == 0


def test_objectives_count_the_same_however_many_items_they_have() -> None:
    def member(short: float, long: float) -> Told:
        answers = (
            Answers(np.arange(10), np.full(10, short)),
            Answers(np.arange(40), np.full(40, long)),
        )
        evidence = Evidence((0.1, 0.1), (10, 40), answers)
        return Told(Candidate(0, 0, (0.5,)), (short, long), evidence)

    scores, capacities, _ = resources([member(-1, 0), member(0, -1)], 2)
    np.testing.assert_allclose(competed_fitness(scores, 1.0, capacities), [1, 1])


def niches(candidate: Candidate) -> tuple[list[float], Evidence]:
    """Twenty items, each right in a stripe of the first coordinate; of some only few are right."""
    centres = np.concatenate([np.full(15, 0.4), np.full(5, 0.9)])
    losses = -(np.abs(candidate.u[0] - centres) < 0.1).astype(float)
    return [float(losses.mean())], Evidence((0.1,), (20,), (Answers(np.arange(20), losses),))


def test_competition_keeps_who_knows_what_few_know() -> None:
    """A plain genetic algorithm loses the stripe of five items, for the fifteen of the other."""

    def last(competition: float) -> np.ndarray[Any, Any]:
        sampler = M2n2Sampler(problem_of(2), seed=1, competition=competition, mutation=0.1)
        return np.array([c.u[0] for c in run(sampler, 400, niches)[-100:]])

    assert (last(1.0) > 0.75).mean() > 0.1
    assert (last(0.0) > 0.75).mean() < 0.05


def test_a_remark_says_when_models_compete_for_objectives() -> None:
    sampler = M2n2Sampler(problem_of(2), seed=1)
    run(sampler, 30, niches)
    assert sampler.remarks == ()
    sampler = M2n2Sampler(problem_of(2), seed=1)
    run(sampler, 30, lambda candidate: (niches(candidate)[0], None))
    assert "fidelity: off" in sampler.remarks[0]


def test_children_change_sides_at_a_depth() -> None:
    """Between parents on one ray from the base, a child has one length before the split."""
    problem = Problem(
        tuple(Dimension(f"x{i}") for i in range(4)),
        n_objectives=1,
        anchors=((0.6,) * 4, (0.9,) * 4),
        budget=8,
        origin=(0.5,) * 4,
        depths=(0.9, 0.1, 0.5, None),
    )
    sampler = M2n2Sampler(problem, seed=3, mutation=0.0, archive_size=2)
    cuts = set()
    for candidate in run(sampler, 60, lambda c: ([float(c.id)], None))[-40:]:
        u = np.array(candidate.u)
        assert ((u >= 0.6) & (u <= 0.9)).all()
        changes = np.flatnonzero(np.diff(u[[3, 1, 2, 0]]))  # in the order of depths
        assert len(changes) <= 1
        cuts |= set(changes.tolist())
    assert cuts == {0, 1, 2}


def test_experts_alone_belong_to_the_start() -> None:
    experts = ((0.9, 0.1), (0.1, 0.9))
    asked = run(M2n2Sampler(problem_of(2, experts=experts), seed=1), 6, niches)
    assert tuple(c.u for c in asked[:3]) == ((0.4, 0.4), *experts)


def test_bits_and_choices_are_inherited() -> None:
    """No child has a bit or choice that its two parents lack, unless mutation turned it."""
    choice = Dimension("c", "categorical", 5)
    dimensions = (Dimension("x"), *(Dimension(f"b{i}", "binary") for i in range(20)), choice)
    anchors = tuple((0.4, *(bit,) * 20, choice.position(int(bit))) for bit in (0.0, 1.0))
    problem = Problem(dimensions, 1, anchors, budget=400)
    asked = run(M2n2Sampler(problem, seed=1), 300, lambda c: ([-sum(c.u[1:21])], None))
    ones = [sum(candidate.u[1:21]) for candidate in asked[-100:]]
    assert np.mean(ones) > 16
    assert {choice.choice(candidate.u[-1]) for candidate in asked} == set(range(5))


def test_runs_with_answers_replay() -> None:
    problem = problem_of(6)
    first, second = (run(M2n2Sampler(problem, seed=5), 120, niches) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"archive_size": 1}, "archive_size must be a whole number of at least 2"),
        ({"competition": -1}, "competition must be a number of at least 0"),
        ({"mutation": 2}, "at most 1"),
        ({"threshold": float("nan")}, "threshold must be a number"),
        ({"generation": 0}, "generation must be a whole number of at least 1"),
        ({"generation": True}, "generation must be a whole number"),
        ({"mating_by_attraction": 1}, "mating_by_attraction is true or false"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        M2n2Sampler(problem_of(2), seed=1, **options)
