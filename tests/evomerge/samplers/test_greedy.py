"""Greedy forward selection over experts."""

from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.greedy import GreedySampler

ORIGIN = (0.5, 0.5, 0.5)
EXPERTS = ((1.0, 0.5, 0.5), (0.5, 1.0, 0.5), (0.5, 0.5, 1.0))


def pool(n_objectives: int = 1) -> Problem:
    """Three experts, a coefficient each."""
    return Problem(
        dimensions=tuple(Dimension(f"x{i}") for i in range(3)),
        n_objectives=n_objectives,
        anchors=((0.6, 0.6, 0.6),),
        budget=100,
        names=("maths", "code")[:n_objectives],
        origin=ORIGIN,
        experts=EXPERTS,
    )


def distance(candidate: Candidate, target: tuple[float, ...]) -> float:
    return float(((np.array(candidate.u) - target) ** 2).mean())


def generation_of(sampler: GreedySampler) -> list[Candidate]:
    return list(iter(sampler.ask, None))


def told(sampler: GreedySampler, target: tuple[float, ...]) -> list[Candidate]:
    """Ask a generation and tell it how far it is from the target."""
    generation = generation_of(sampler)
    for candidate in generation:
        sampler.tell(candidate, [distance(candidate, target)])
    return generation


def test_it_starts_with_the_anchors_the_experts_and_the_base() -> None:
    start = generation_of(GreedySampler(pool(), seed=1))
    assert [candidate.u for candidate in start] == [(0.6, 0.6, 0.6), *EXPERTS, ORIGIN]


def test_a_round_moves_the_best_towards_each_other_expert_and_the_base() -> None:
    sampler = GreedySampler(pool(), seed=1)
    told(sampler, EXPERTS[1])
    second = generation_of(sampler)
    expected = [
        np.array(EXPERTS[1]) + 2 / 3 * (np.array(end) - EXPERTS[1])
        for end in (EXPERTS[0], EXPERTS[2], ORIGIN)
    ]
    np.testing.assert_allclose([candidate.u for candidate in second], expected, atol=1e-9)


def test_the_step_is_halved_when_no_direction_improves() -> None:
    sampler = GreedySampler(pool(), seed=1)
    told(sampler, EXPERTS[1])
    told(sampler, EXPERTS[1])  # nothing is better than the expert itself
    third = generation_of(sampler)
    np.testing.assert_allclose(third[0].u, (0.5 + 0.5 / 3, 1.0 - 0.5 / 3, 0.5), atol=1e-9)


def test_it_finds_a_mixture_of_experts() -> None:
    target = (0.7, 0.55, 0.6)  # in the hull of the base and the experts
    sampler = GreedySampler(pool(), seed=1)
    asked: list[Candidate] = []
    while len(asked) < 100:
        asked += told(sampler, target)
    start = min(distance(candidate, target) for candidate in asked[:5])
    assert min(distance(candidate, target) for candidate in asked) < 0.05 * start


def test_it_goes_on_towards_drawn_points_when_the_experts_have_no_more_to_give() -> None:
    target = (0.3, 0.3, 0.3)  # outside of the hull
    sampler = GreedySampler(pool(), seed=1)
    asked: list[Candidate] = []
    while len(asked) < 300:
        asked += told(sampler, target)
    in_hull = distance(asked[4], target)
    assert min(distance(candidate, target) for candidate in asked) < 0.2 * in_hull


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "2 objectives: give sampler.weights"),
        ({"weights": [1.0]}, "one number >= 0 per objective"),
        ({"weights": [1, 1], "scalarization": "sum"}, "a scalarization is one of"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GreedySampler(pool(2), seed=1, **options)


@pytest.mark.parametrize("kind", ["weighted", "tchebycheff", "percentile"])
def test_weights_choose_between_objectives(kind: str) -> None:
    sampler = GreedySampler(
        pool(2), seed=1, weights={"maths": 1.0, "code": 0.0}, scalarization=kind
    )
    best: tuple[float, tuple[float, ...]] = (np.inf, (0.0,) * 3)
    for _ in range(12):
        for candidate in generation_of(sampler):
            losses = [distance(candidate, EXPERTS[0]), distance(candidate, EXPERTS[2])]
            best = min(best, (losses[0], candidate.u))
            sampler.tell(candidate, losses)
    assert best[1] == EXPERTS[0]
