"""GENOME and GENOME+."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers import genome
from evomerge.samplers.design import centred_design
from evomerge.samplers.genome import GenomeSampler, roulette
from evomerge.samplers.swarm import flown, pool_start

EXPERTS = ((0.9, 0.4, 0.4, 0.4), (0.4, 0.9, 0.4, 0.4), (0.4, 0.4, 0.9, 0.4), (0.4, 0.4, 0.4, 0.9))

Loss = Callable[[Candidate], Sequence[float] | None]


def pool(n_objectives: int = 1, experts: tuple[Any, ...] = EXPERTS) -> Problem:
    dimensions = tuple(Dimension(f"x{i}") for i in range(4))
    return Problem(dimensions, n_objectives, ((0.5,) * 4,), 300, experts=experts)


def squares(candidate: Candidate, target: float | Sequence[float] = (0.5, 0.45, 0.7, 0.3)) -> float:
    return float(((np.array(candidate.u) - target) ** 2).mean())


def run(sampler: GenomeSampler, n_generations: int, loss: Loss) -> list[list[Candidate]]:
    generations = []
    for _ in range(n_generations):
        generations.append(list(iter(sampler.ask, None)))
        for candidate in generations[-1]:
            sampler.tell(candidate, loss(candidate))
    return generations


def loss_of(candidate: Candidate) -> list[float]:
    return [squares(candidate)]


def test_generation_zero_is_the_pool_or_else_the_centred_design() -> None:
    (start,) = run(GenomeSampler(pool(), seed=3, population=12), 1, loss_of)
    np.testing.assert_array_equal([c.u for c in start], pool_start(pool(), 12, seed=3))
    alone = pool(experts=())
    (start,) = run(GenomeSampler(alone, seed=3, population=12), 1, loss_of)
    np.testing.assert_array_equal([c.u for c in start], centred_design(alone, 12, seed=3))


@pytest.mark.parametrize("swarm", [False, True])
def test_it_goes_beyond_the_mixtures_it_starts_with(swarm: bool) -> None:
    generations = run(GenomeSampler(pool(), seed=1, swarm=swarm), 20, loss_of)
    start = min(squares(candidate) for candidate in generations[0])
    assert min(squares(c) for g in generations for c in g) < 0.1 * start


@pytest.mark.parametrize(("swarm", "later"), [(False, 11), (True, 16)])
def test_with_a_swarm_all_members_fly_before_half_as_many_children(swarm: bool, later: int) -> None:
    sampler = GenomeSampler(pool(), seed=1, population=11, swarm=swarm)
    assert [len(generation) for generation in run(sampler, 3, loss_of)] == [11, later, later]


def test_children_lie_between_two_parents_or_are_mutated() -> None:
    """Without mutation's step: what is between two points of a hull stays in it."""
    sampler = GenomeSampler(pool(), seed=1, population=12, mutation=0.0)
    start, children = run(sampler, 2, loss_of)
    parents = np.array([candidate.u for candidate in start])
    for child in children:
        assert any(
            np.linalg.norm(child.u - a) + np.linalg.norm(child.u - b)
            == pytest.approx(np.linalg.norm(a - b), abs=1e-7)
            for a in parents
            for b in parents
        )


def test_better_members_have_larger_shares_of_the_wheel() -> None:
    wheel = roulette(np.array([0.0, 1.0, 2.0, 3.0]))
    shares = np.diff(wheel, prepend=0.0)
    # 1, 2/3, 1/3 and 0 from best to worst, a quarter more for each
    np.testing.assert_allclose(shares, (np.array([1, 2 / 3, 1 / 3, 0]) + 0.25) / 3.0)


@pytest.mark.parametrize("move", [0.0, -5.0, -1e6, 1e6])
def test_the_wheel_does_not_depend_on_where_zero_is(move: float) -> None:
    """Shares in proportion to a fitness are no shares when it is not positive."""
    values = np.array([3.0, 1.0, 2.0])
    np.testing.assert_allclose(roulette(values + move), roulette(values), atol=1e-9)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1.7e308])
def test_the_wheel_turns_for_losses_of_any_size(scale: float) -> None:
    wheel = roulette(np.array([1.0, -1.0, 0.0]) * scale)
    np.testing.assert_allclose(np.diff(wheel, prepend=0.0), np.array([2, 8, 5]) / 15)


def test_failures_have_no_share_and_equals_have_equal_shares() -> None:
    wheel = roulette(np.array([np.inf, 2.0, np.inf, 2.0, np.inf]))
    np.testing.assert_allclose(np.diff(wheel, prepend=0.0), [0.0, 0.5, 0.0, 0.5, 0.0])


def test_the_best_survives_however_bad_its_children() -> None:
    """Of the start one is good; all later ones are alike and bad, and yet it remains a parent."""
    good = np.array(EXPERTS[1])

    def loss(candidate: Candidate) -> list[float]:
        return [0.0 if candidate.u == EXPERTS[1] else 1.0]

    late = run(GenomeSampler(pool(), seed=1, population=8, mutation=0.01), 30, loss)[-5:]
    distances = [np.abs(np.array(c.u) - good).max() for g in late for c in g]
    assert np.mean(np.array(distances) < 0.1) > 0.4


def test_failed_candidates_are_nobodys_parents() -> None:
    def loss(candidate: Candidate) -> list[float] | None:
        return None if candidate.u[0] > 0.6 else [1.0 - candidate.u[0]]

    late = run(GenomeSampler(pool(), seed=1), 20, loss)[-1]
    assert np.median([candidate.u[0] for candidate in late]) == pytest.approx(0.6, abs=0.08)


def test_members_that_fly_remember_the_best_of_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code never updates personal bests: they alias where a member is now."""
    calls: list[tuple[FloatArray, FloatArray, float]] = []

    def watched(X: FloatArray, V: FloatArray, P: FloatArray, *rest: Any, **given: Any) -> Any:
        calls.append((X.copy(), P.copy(), given["step"]))
        return flown(X, V, P, *rest, **given)

    monkeypatch.setattr(genome, "flown", watched)
    asked = [c for g in run(GenomeSampler(pool(), seed=1, swarm=True), 8, loss_of) for c in g]
    loss = {candidate.u: squares(candidate) for candidate in asked}
    departed = 0
    for X, P, _ in calls:
        for x, p in zip(X.tolist(), P.tolist(), strict=True):
            assert loss[tuple(p)] <= loss[tuple(x)]
            departed += p != x
    assert departed > 0
    # a generation's step is that of all its members
    whole = [step for X, _, step in calls if len(X) == 15]
    np.testing.assert_allclose(whole, [max(0.5 * 0.95**n, 0.1) for n in range(8)])


def test_weights_by_name_attract() -> None:
    def losses(candidate: Candidate) -> list[float]:
        return [squares(candidate, 0.45), squares(candidate, 0.7)]

    sampler = GenomeSampler(pool(2), seed=1, weights=[0.0, 1.0], swarm=True)
    late = run(sampler, 20, losses)[-1]
    assert np.median([c.u for c in late]) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 3}, "population of genome must be a whole number of at least 4"),
        ({"swarm": 1}, "swarm is true or false, but got 1: leave it out"),
        ({"mutation": 2.0}, "mutation must be a number of at least 0 and at most 1"),
        ({"weights": None}, "genome minimises one loss, but there are 2"),
        ({"scalarization": "sum"}, "a scalarization is one of"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenomeSampler(pool(2), **{"seed": 1, "weights": [1, 1], **options})
