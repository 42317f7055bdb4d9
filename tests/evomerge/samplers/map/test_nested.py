"""Nested MAP: which experts are paired, what becomes of a pair, and the front at the end."""

from collections.abc import Callable

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Evidence, FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.pareto import hypervolume, non_dominated
from evomerge.samplers.ledger import Told
from evomerge.samplers.map.nested import NestedMapSampler
from evomerge.samplers.map.tree import Merge, Node, Tasks, paired

Loss = Callable[[FloatArray], FloatArray]


def pool(n: int, budget: int = 200) -> Problem:
    """Experts with a coefficient each in [0, 1], each the best at its own objective."""
    return Problem(
        dimensions=tuple(Dimension(f"expert {i}") for i in range(n)),
        n_objectives=n,
        anchors=((1.0 / n,) * n,),
        budget=budget,
        origin=(0.0,) * n,
        experts=tuple(map(tuple, np.eye(n).tolist())),
        owners=tuple(range(n)),
    )


def interfering(c: FloatArray) -> FloatArray:
    """Accuracy of each task: its own expert helps, the sum of the others hurts; as losses."""
    q = 1.0 - 2.0 * c + 1.2 * c**2 + 0.25 * (c.sum() - c)
    return np.asarray(-0.2 - 0.7 / (1.0 + np.exp(3.0 * q - 1.5)))


def run(sampler: NestedMapSampler, n: int, loss: Loss = interfering) -> list[list[Candidate]]:
    """Generations of n candidates in all, counts of 400 items told."""
    rng = np.random.default_rng(3)
    generations: list[list[Candidate]] = [[]]
    while sum(map(len, generations)) < n:
        candidate = sampler.ask()
        if candidate is None:
            for asked in generations[-1]:
                share = rng.binomial(400, -loss(np.array(asked.u))) / 400
                errors = np.sqrt(np.maximum(share * (1.0 - share), 1.0 / 400) / 400)
                evidence = Evidence(tuple(errors.tolist()), (400,) * len(share))
                sampler.tell(asked, (-share).tolist(), evidence)
            generations.append([])
        else:
            generations[-1].append(candidate)
    return generations


def told(u: tuple[float, ...], losses: tuple[float, ...]) -> Told:
    return Told(Candidate(0, 0, u), losses)


def leaf(i: int, losses: tuple[float, ...]) -> Node:
    u = tuple(np.eye(len(losses))[i].tolist())
    return Node((i,), np.array(u), told(u, losses))


def test_objectives_belong_to_the_expert_who_is_best_at_them() -> None:
    leaves = [leaf(0, (-0.9, -0.3, -0.8)), leaf(1, (-0.2, -0.7, -0.1)), leaf(2, (-0.1, -0.1, -0.1))]
    tasks = Tasks(leaves, np.array([0.5, 0.25, 0.25]))
    assert tasks.of((0,)).tolist() == [0.5, 0.0, 0.25]
    assert tasks.of((0, 1)).tolist() == [0.5, 0.25, 0.25]
    assert tasks.of((2,)).tolist() == [0.5, 0.25, 0.25]  # it leads at none: all count


def test_pairs_are_those_of_nearest_scores_and_an_odd_one_waits() -> None:
    # scores on their own tasks, as losses: each is best at its own
    own = (-0.9, -0.5, -0.88, -0.7, -0.52)
    leaves = [
        leaf(i, tuple(own[i] if i == j else -0.1 * (own[j] < -0.6) for j in range(5)))
        for i in range(5)
    ]
    tasks = Tasks(leaves, np.full(5, 0.2))
    tasks.score = lambda node: own[node.members[0]]  # type: ignore[method-assign]  # as in the paper
    pairs, left = paired(leaves, tasks)
    assert sorted(tuple(sorted((a.members[0], b.members[0]))) for a, b in pairs) == [(0, 2), (1, 4)]
    assert [node.members for node in left] == [(3,)]


def test_a_pair_proposes_the_optimum_of_its_quadratics() -> None:
    a, b = leaf(0, (-0.9, -0.1)), leaf(1, (-0.1, -0.9))
    tasks = Tasks([a, b], np.array([0.5, 0.5]))
    pair, rng = Merge(a, b), np.random.default_rng(0)
    rows = []
    for c in rng.random((20, 2)):
        losses = ((c - [0.7, 0.4]) ** 2).sum(), ((c - [0.5, 0.6]) ** 2).sum()
        rows.append((c, told(tuple(c.tolist()), losses)))
    a.told = b.told = None  # 20 exact samples are enough
    pair.settle(rows, pool(2), tasks)
    both, first, second = pair.proposals(tasks)
    np.testing.assert_allclose(both, [0.6, 0.5], atol=0.08)
    assert first[0] > both[0] > second[0]
    assert first[1] < both[1] < second[1]


def test_levels_halve_the_pool_at_the_published_cost_per_pair() -> None:
    generations = run(NestedMapSampler(pool(4), seed=1), 120)
    sizes = [len(generation) for generation in generations]
    assert sizes[0] == 6  # an anchor, the base, four experts
    assert sizes[1] == 40  # two pairs
    assert 2 <= sizes[2] <= 6
    assert sizes[3] == 20  # one pair of pairs
    for candidate in generations[1]:
        assert np.count_nonzero(candidate.u) == 2  # two experts, one coefficient each


def test_the_end_is_a_front_of_merges_of_all_experts() -> None:
    sampler = NestedMapSampler(pool(4), seed=1)
    generations = run(sampler, 140)
    known = [np.array(c.u) for g in generations[:1] for c in g]
    end = [np.array(c.u) for g in generations[5:] for c in g]
    assert sum(np.count_nonzero(u) >= 3 for u in end) >= 10
    losses = np.array([interfering(u) for u in end])
    assert non_dominated(losses).sum() >= 10
    reference = np.full(4, -0.2)
    start = hypervolume(np.array([interfering(u) for u in known]), reference)
    assert hypervolume(losses, reference) > 1.5 * start
    best = interfering(end[0])  # the first is for the preferences as given
    assert best.mean() < min(interfering(u).mean() for u in known)


def test_preferences_move_the_merge() -> None:
    def first(weights: list[float]) -> FloatArray:
        generations = run(NestedMapSampler(pool(3), seed=1, weights=weights), 80)
        return np.array(generations[-1][0].u if len(generations[-1]) else generations[-2][0].u)

    assert first([20.0, 1.0, 1.0])[0] > first([1.0, 20.0, 20.0])[0]


def test_a_short_budget_samples_pairs_less() -> None:
    generations = run(NestedMapSampler(pool(4, budget=50), seed=1), 30)
    assert len(generations[1]) == 2 * 8


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (
            Problem((Dimension("x"),), 1, ((0.4,),), 50),
            {},
            "two experts at least.*names 0: use map",
        ),
        (pool(1), {}, "names 1: use map"),
        (pool(3), {"samples": 0}, "samples of nested_map must be a whole number of at least 1"),
        (pool(3), {"weights": [1.0]}, r"one number >= 0 per objective \(3\)"),
    ],
)
def test_what_does_not_fit_is_refused(
    problem: Problem, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        NestedMapSampler(problem, seed=1, **options)  # type: ignore[arg-type]  # on purpose
