"""Model Swarms, and the flight of particles that GENOME+ shares."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers import model_swarms
from evomerge.samplers.design import Kinds, centred_design
from evomerge.samplers.model_swarms import STRAY, ModelSwarmsSampler
from evomerge.samplers.swarm import Pulls, default_swarm, flown, pool_start, step_to

ANCHOR = (0.6, 0.6, 0.6)
EXPERTS = ((0.9, 0.4, 0.4), (0.4, 0.9, 0.4), (0.4, 0.4, 0.9))

Loss = Callable[[Candidate], Sequence[float] | None]


def pool(budget: int = 200, n_objectives: int = 1, experts: tuple[Any, ...] = EXPERTS) -> Problem:
    dimensions = tuple(Dimension(f"x{i}") for i in range(3))
    return Problem(dimensions, n_objectives, (ANCHOR,), budget, experts=experts)


def squares(
    candidate: Candidate, target: float | Sequence[float] = (0.5, 0.45, 0.7)
) -> list[float]:
    return [float(((np.array(candidate.u) - target) ** 2).mean())]


def generation_of(sampler: ModelSwarmsSampler) -> list[Candidate]:
    return list(iter(sampler.ask, None))


def run(sampler: ModelSwarmsSampler, n_generations: int, loss: Loss) -> list[list[Candidate]]:
    generations = []
    for _ in range(n_generations):
        generations.append(generation_of(sampler))
        for candidate in generations[-1]:
            sampler.tell(candidate, loss(candidate))
    return generations


def fly(pulls: Pulls, kinds: Kinds, step: float = 1.0, seed: int = 1, **points: Any) -> FloatArray:
    """One particle, or as many as X has."""
    X = np.atleast_2d(points["X"])
    given = {"V": np.zeros(X.shape), "P": X, "best": X[0], "worst": X[0], **points, "X": X}
    arrays = {name: np.array(value, dtype=np.float64) for name, value in given.items()}
    return flown(**arrays, pulls=pulls, step=step, kinds=kinds, rng=np.random.default_rng(seed))


REALS = Kinds.of(pool())


@pytest.mark.parametrize(
    ("pulls", "points", "expected"),
    [
        (Pulls(1, 0, 0, 0), {"V": [[0.2, -0.2, 0.0]]}, (0.6, 0.4, 0.5)),
        (Pulls(0, 1, 0, 0), {"P": [[0.9, 0.5, 0.1]]}, (0.7, 0.5, 0.3)),
        (Pulls(0, 0, 1, 0), {"best": [0.9, 0.5, 0.1]}, (0.7, 0.5, 0.3)),
        (Pulls(0, 0, 0, 1), {"worst": [0.9, 0.5, 0.1]}, (0.3, 0.5, 0.7)),
        (Pulls(0, 0, 0, 1), {"worst": [-2.0, 0.5, 3.0]}, (1.0, 0.5, 0.0)),
    ],
)
def test_one_pull_alone_moves_a_particle_by_the_step(
    pulls: Pulls, points: dict[str, Any], expected: tuple[float, ...]
) -> None:
    """Divided by the sum of the drawn phi, a single pull is 1 whatever was drawn."""
    moved = fly(pulls, REALS, step=0.5, X=[0.5] * 3, **points)
    np.testing.assert_allclose(moved, [expected], atol=1e-9)


def test_pulls_are_shared_by_the_formula() -> None:
    phi = np.array([0.4, 0.3, 0.2, 0.1])
    points: dict[str, Any] = {
        "X": np.full((2, 3), 0.5),
        "V": [[0.1, 0.0, -0.1], [0.0, 0.1, 0.0]],
        "P": [[0.6, 0.5, 0.5], [0.5, 0.6, 0.5]],
        "best": [0.7, 0.7, 0.7],
        "worst": [0.2, 0.3, 0.4],
    }
    r = (1.0 - np.random.default_rng(3).random((2, 4))) * phi
    v, p, g, w = (r / r.sum(axis=1, keepdims=True)).T[:, :, None]
    steps = (
        v * np.array(points["V"])
        + p * (np.array(points["P"]) - 0.5)
        + g * (np.array(points["best"]) - 0.5)
        - w * (np.array(points["worst"]) - 0.5)
    )
    moved = fly(Pulls(*phi), REALS, step=0.8, seed=3, **points)
    np.testing.assert_allclose(moved, 0.5 + 0.8 * steps, atol=1e-9)


def test_bits_and_choices_are_taken_over_or_left_for_another() -> None:
    dimensions = (Dimension("bit", "binary"), Dimension("choice", "categorical", 4))
    kinds = Kinds.of(Problem(dimensions, 1, ((0.0, 0.125),), 100))
    X = np.tile([0.0, 0.125], (400, 1))
    to_best = fly(Pulls(0, 0, 1, 0), kinds, X=X, best=[1.0, 0.875])
    assert (to_best == [1.0, 0.875]).all()
    half = fly(Pulls(0, 1, 0, 0), kinds, step=0.5, X=X, P=np.tile([1.0, 0.875], (400, 1)))
    assert (half == [1.0, 0.875]).mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.1)
    off_worst = fly(Pulls(0, 0, 0, 1), kinds, X=X, worst=[0.0, 0.125])
    assert (off_worst[:, 0] == 1.0).all()
    chosen, counts = np.unique(off_worst[:, 1], return_counts=True)
    assert chosen.tolist() == [0.375, 0.625, 0.875]
    assert counts.min() > 80
    unlike_worst = fly(Pulls(0, 0, 0, 1), kinds, X=X, worst=[1.0, 0.875])
    assert (unlike_worst == X).all()


def test_a_pool_starts_with_anchors_experts_and_points_between_two_of_them() -> None:
    points = pool_start(pool(), 12, seed=1)
    assert tuple(points[0]) == ANCHOR
    assert [tuple(row) for row in points[1:4]] == list(EXPERTS)
    for point in points[4:]:
        a, b = np.flatnonzero(point > 0.4)  # each expert is alone in leaving .4
        share = (point[a] - 0.4) / 0.5
        between = share * np.array(EXPERTS[a]) + (1 - share) * np.array(EXPERTS[b])
        np.testing.assert_allclose(point, between, atol=1e-8)
    assert len(np.unique(points, axis=0)) == 12


def test_without_experts_it_starts_with_the_centred_design() -> None:
    problem = pool(experts=())
    asked = generation_of(ModelSwarmsSampler(problem, seed=3, population=8))
    np.testing.assert_array_equal([c.u for c in asked], centred_design(problem, 8, seed=3))


@pytest.mark.parametrize(
    ("budget", "n_experts", "size"),
    [(40, 0, 10), (300, 0, 15), (5000, 0, 20), (200, 30, 31), (60, 30, 15), (1000, 100, 101)],
)
def test_the_default_swarm_has_room_for_the_pool(budget: int, n_experts: int, size: int) -> None:
    assert default_swarm(pool(budget, experts=(EXPERTS[0],) * n_experts)) == size


def test_a_mixture_of_experts_is_found() -> None:
    generations = run(ModelSwarmsSampler(pool(), seed=1), 20, squares)
    start = min(squares(candidate)[0] for candidate in generations[0])
    assert min(squares(c)[0] for g in generations for c in g) < 0.1 * start


def recorded(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[dict[str, Any]]:
    """What `flown` is called with, one entry per generation."""
    calls: list[dict[str, Any]] = []

    def watched(X: FloatArray, V: FloatArray, P: FloatArray, *rest: Any, **given: Any) -> Any:
        entry = {"X": X.copy(), "V": V.copy(), "P": P.copy(), "best": rest[0], "worst": rest[1]}
        calls.append({**entry, "step": given["step"]})
        return flown(X, V, P, *rest, **given)

    monkeypatch.setattr(module, "flown", watched)
    return calls


def test_personal_bests_are_kept_and_bests_and_worsts_are_the_swarms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = recorded(monkeypatch, model_swarms)
    generations = run(ModelSwarmsSampler(pool(), seed=2, population=6), 5, squares)
    assert len(calls) == 5
    for n, call in enumerate(calls, start=1):
        paths = zip(*generations[:n], strict=True)
        expected = [min(path, key=lambda c: squares(c)[0]).u for path in paths]
        np.testing.assert_array_equal(call["P"], expected)
        asked = [c for generation in generations[:n] for c in generation]
        assert tuple(call["best"]) == min(asked, key=lambda c: squares(c)[0]).u
        worst = max(generations[n - 1], key=lambda c: squares(c)[0])
        assert tuple(call["worst"]) == worst.u


def test_the_step_decays_once_for_each_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, model_swarms)
    run(ModelSwarmsSampler(pool(), seed=2, population=20, step=0.8), 60, squares)
    by_step = [call["step"] for call in calls if len(call["X"]) == 20]
    expected = [max(0.8 * 0.95**n, 0.1) for n in range(60)]
    np.testing.assert_allclose(by_step, expected)
    assert step_to(1, 0.5) == 0.5
    assert step_to(1000, 0.5) == 0.1


def test_a_particle_that_finds_nothing_better_returns_to_its_best_at_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = recorded(monkeypatch, model_swarms)

    def only_the_start(candidate: Candidate) -> list[float]:
        return [1.0 if candidate.generation else 0.5]

    generations = run(ModelSwarmsSampler(pool(), seed=2, population=6), STRAY + 1, only_the_start)
    start = np.array([candidate.u for candidate in generations[0]])
    assert not (calls[STRAY - 1]["X"] == start).all(axis=1).any()
    np.testing.assert_array_equal(calls[STRAY]["X"], start)
    np.testing.assert_array_equal(calls[STRAY]["V"], np.zeros((6, 3)))


def test_particles_that_failed_fly_to_the_swarms_best() -> None:
    def loss(candidate: Candidate) -> list[float] | None:
        return None if candidate.u[0] > 0.55 else squares(candidate)

    late = run(ModelSwarmsSampler(pool(), seed=1), 20, loss)[-1]
    assert np.mean([candidate.u[0] <= 0.55 for candidate in late]) > 0.7


def test_after_nothing_but_failures_the_swarm_scatters_and_goes_on() -> None:
    def loss(candidate: Candidate) -> list[float] | None:
        return None if candidate.generation < 2 else squares(candidate)

    generations = run(ModelSwarmsSampler(pool(), seed=1), 22, loss)
    assert len({c.u for g in generations[:3] for c in g}) == sum(map(len, generations[:3]))
    found = [min(squares(c)[0] for c in g) for g in generations]
    assert min(found[2:]) < 0.2 * found[2]


@pytest.mark.parametrize("kind", ["weighted", "tchebycheff", "percentile"])
def test_several_objectives_are_scalarized(kind: str) -> None:
    def losses(candidate: Candidate) -> list[float]:
        return [squares(candidate, 0.45)[0], 1e3 * squares(candidate, 0.65)[0]]

    weights = [0.0, 1.0]
    sampler = ModelSwarmsSampler(pool(n_objectives=2), seed=1, weights=weights, scalarization=kind)
    asked = [c for g in run(sampler, 20, losses) for c in g]
    best = min(asked, key=lambda c: losses(c)[1])
    assert best.u == pytest.approx((0.65,) * 3, abs=0.06)
    late = np.mean([c.u for c in asked[-10:]], axis=0)
    assert np.abs(late - 0.65).mean() < np.abs(late - 0.45).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 3}, "population of model_swarms must be a whole number of at least 4"),
        ({"step": 0.05}, r"step must be a number of at least 0\.1 and at most 1"),
        ({"step": True}, "step must be a number"),
        ({"repulsion": -0.1}, "repulsion must be a number of at least 0"),
        ({"weights": None}, "model_swarms minimises one loss, but there are 2"),
        ({"scalarization": "sum"}, "a scalarization is one of"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSwarmsSampler(pool(n_objectives=2), **{"seed": 1, "weights": [1, 1], **options})
