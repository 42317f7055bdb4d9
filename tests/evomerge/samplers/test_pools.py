"""LoraHub and Evo-Merging: CMA-ES on a loss with a price on the coefficients."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers import regularized
from evomerge.samplers.cma_es import CmaEsSampler
from evomerge.samplers.evo_merging import EvoMergingSampler
from evomerge.samplers.lorahub import LorahubSampler
from evomerge.samplers.regularized import Coefficients

BOTH = (LorahubSampler, EvoMergingSampler)
LOW, HIGH = -2.0, 2.0
"""Of the coefficients of the pools below."""

Loss = Callable[[FloatArray], Sequence[float] | None]


def pool(
    n_experts: int = 4, per_expert: int = 1, budget: int = 300, n_objectives: int = 1
) -> Problem:
    """Coefficients within LOW and HIGH; the anchor has .7 for all."""
    owners = np.repeat(np.arange(n_experts), per_expert)
    experts = [tuple(position(np.where(owners == k, 1.0, 0.0))) for k in range(n_experts)]
    d = len(owners)
    return Problem(
        tuple(Dimension(f"x{i}") for i in range(d)),
        n_objectives,
        (tuple(position(np.full(d, 0.7))),),
        budget,
        origin=tuple(position(np.zeros(d))),
        experts=tuple(experts),
        owners=tuple(owners.tolist()),
    )


def position(c: FloatArray) -> list[float]:
    listed: list[float] = np.round((c - LOW) / (HIGH - LOW), 9).tolist()
    return listed


def coefficients(candidate: Candidate) -> FloatArray:
    return LOW + np.array(candidate.u) * (HIGH - LOW)


def run(sampler: Any, n: int, loss: Loss) -> list[list[Candidate]]:
    """Whole generations until there are n candidates; the loss is of coefficients."""
    generations: list[list[Candidate]] = []
    while sum(map(len, generations)) < n:
        generations.append(list(iter(sampler.ask, None)))
        assert len(generations[-1]) == sampler.generation_size
        for candidate in generations[-1]:
            sampler.tell(candidate, loss(coefficients(candidate)))
    return generations


def to(target: Sequence[float] | FloatArray | float) -> Loss:
    return lambda c: [float(((c - target) ** 2).mean())]


@pytest.mark.parametrize("sampler", BOTH)
@pytest.mark.parametrize(
    ("known", "missing"),
    [
        ({"origin": None}, "does not find the base or coefficients of one expert each:"),
        ({"experts": ()}, "does not find the experts or coefficients of one expert each:"),
        ({"owners": (None,) * 4}, "does not find coefficients of one expert each:"),
        ({"origin": None, "experts": (), "owners": ()}, "the base or the experts or coeff"),
    ],
)
def test_spaces_without_base_experts_or_owners_are_refused(
    sampler: Any, known: dict[str, Any], missing: str
) -> None:
    with pytest.raises(ConfigError, match=missing + ".*from 0 to 1 at least, or use cma_es"):
        sampler(replace(pool(), **known), seed=1)


def test_coefficients_are_distances_from_the_base_in_experts() -> None:
    problem = Problem(
        dimensions=(
            Dimension("a"),
            Dimension("b"),
            Dimension("shared"),
            Dimension("same"),
            Dimension("gate", "binary"),
            Dimension("variant", "categorical", 4),
        ),
        n_objectives=1,
        anchors=((0.5, 0.5, 0.5, 0.5, 1.0, 0.125),),
        budget=100,
        origin=(0.2, 0.9, 0.5, 0.5, 1.0, 0.375),
        experts=((0.6, 0.9, 0.5, 0.5, 1.0, 0.375), (0.2, 0.4, 0.5, 0.5, 0.0, 0.375)),
        owners=(0, 1, None, 1, 1, 0),
    )
    found = Coefficients(problem, sampler="this")
    of_base, of_experts = found.of(np.array(problem.origin)), np.array(problem.experts)
    np.testing.assert_array_equal(of_base, np.zeros(4))
    np.testing.assert_allclose(found.of(of_experts[0]), [1, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found.of(of_experts[1]), [0, 1, 1, 0], atol=1e-12)
    other_choice = np.array([0.0, 1.0, 0.9, 0.1, 1.0, 0.875])
    np.testing.assert_allclose(found.of(other_choice), [-0.5, -0.2, 0, 1], atol=1e-12)
    np.testing.assert_allclose(
        found.at(np.array([-0.5, 5.0]), other_choice)[:2], [0.0, 0.0], atol=1e-12
    )
    np.testing.assert_allclose(found.reach(), [[-0.5, -0.2], [2.0, 1.8]])


@pytest.mark.parametrize("sampler", BOTH)
def test_generation_zero_is_the_anchors_and_the_experts_mean(sampler: Any) -> None:
    (start,) = run(sampler(pool(), seed=1), 1, to(0.0))
    np.testing.assert_allclose([coefficients(c) for c in start], [[0.7] * 4, [0.25] * 4], atol=1e-8)


@pytest.mark.parametrize("sampler", BOTH)
def test_a_start_that_is_known_is_not_asked_again(sampler: Any) -> None:
    options = {"denoise": 0} if sampler is EvoMergingSampler else {}
    made = sampler(pool(), seed=1, **options)
    asked = [c.u for g in run(made, 200, to((0.3, -0.2, 0.1, 0.6))) for c in g]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("sampler", BOTH)
def test_a_loss_that_is_flat_leads_to_the_base(sampler: Any) -> None:
    """The charge is for magnitude: a wrong sign would reward large coefficients."""
    options = {"denoise": 0} if sampler is EvoMergingSampler else {}
    generations = run(sampler(pool(), seed=1, **options), 300, lambda _: [1.0])
    late = np.abs([coefficients(candidate) for candidate in generations[-1]]).mean()
    assert late < 0.03


@pytest.mark.parametrize("sampler", BOTH)
def test_what_a_coefficient_costs_is_stated(sampler: Any) -> None:
    """The minimum of (c - 1/2)^2 + r c, mean over experts, is at (1 - r) / 2."""
    for r in (0.0, 0.4):
        generations = run(sampler(pool(), seed=1, regularization=r), 400, to(0.5))
        late = np.mean([coefficients(candidate) for candidate in generations[-1]])
        assert late == pytest.approx((1 - r) / 2, abs=0.02)


@pytest.mark.parametrize("sampler", BOTH)
def test_experts_that_hurt_get_a_negative_sign(sampler: Any) -> None:
    target = (0.6, -0.4, 0.2, 0.0)
    generations = run(sampler(pool(), seed=1, regularization=0.01), 300, to(target))
    late = np.mean([coefficients(candidate) for candidate in generations[-1]], axis=0)
    np.testing.assert_allclose(late, target, atol=0.1)


@pytest.mark.parametrize("sampler", BOTH)
def test_coefficients_stay_within_the_bound_but_for_the_anchors(sampler: Any) -> None:
    generations = run(sampler(pool(), seed=1, bound=0.6), 200, to((1.0, -1.0, 1.0, 1.0)))
    asked = np.array([coefficients(c) for g in generations[1:] for c in g])
    assert np.abs(asked).max() == pytest.approx(0.6, abs=0.03)
    assert np.abs(asked).max() < 0.6 + 1e-8
    np.testing.assert_allclose(coefficients(generations[0][0]), [0.7] * 4)


@pytest.mark.parametrize("sampler", BOTH)
def test_weights_choose_between_objectives(sampler: Any) -> None:
    def losses(c: FloatArray) -> list[float]:
        return [*to(0.1)(c), *to(0.5)(c)]  # type: ignore[misc]

    for kind in ("weighted", "tchebycheff", "percentile"):
        made = sampler(
            pool(n_objectives=2), seed=1, weights=[0, 1], scalarization=kind, regularization=0.0
        )
        late = np.mean([coefficients(c) for c in run(made, 300, losses)[-1]])
        assert late == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("sampler", BOTH)
def test_a_start_without_any_success_is_survived(sampler: Any) -> None:
    calls: list[int] = []

    def loss(c: FloatArray) -> Sequence[float] | None:
        calls.append(1)
        return None if len(calls) < 20 else to(0.5)(c)

    generations = run(sampler(pool(), seed=1, regularization=0.0), 300, loss)
    late = np.mean([coefficients(candidate) for candidate in generations[-1]])
    assert late == pytest.approx(0.5, abs=0.05)


def test_shares_first_then_one_scale_for_each_expert() -> None:
    """Stage 1 moves each coefficient between 0 and the scale, stage 2 an expert's together."""
    problem = pool(n_experts=3, per_expert=4, budget=300)
    target = np.repeat([0.5, 0.3, -0.4], 4) * np.tile([1.0, 0.5, 0.0, 1.0], 3)
    generations = run(EvoMergingSampler(problem, seed=1, denoise=90), 300, to(target))
    sizes = np.cumsum([len(generation) for generation in generations])
    switch = int(np.searchsorted(sizes, 90)) + 1  # with the generation in which they are told
    first, second = (
        np.array([coefficients(c) for g in part for c in g])
        for part in (generations[1:switch], generations[switch:])
    )
    assert first.min() >= -1e-8
    assert first.max() <= 1 / 3 + 1e-8  # the scale of the mean, which is better than the anchor
    assert len(np.unique(np.round(first[:, 0] / np.maximum(first[:, 1], 1e-9), 6))) > 20
    assert second.min() < 0.0
    for k in range(3):  # the rank of an expert's coefficients is one: shares are fixed
        of_expert = second[:, 4 * k : 4 * k + 4]
        assert np.linalg.matrix_rank(of_expert, tol=1e-6) == 1


def test_what_is_worth_nothing_at_some_depth_is_denoised() -> None:
    problem = pool(n_experts=2, per_expert=4, budget=900)
    target = np.tile([0.5, 0.0, 0.5, 0.5], 2)
    generations = run(EvoMergingSampler(problem, seed=1, regularization=0.0), 900, to(target))
    late = np.mean([coefficients(candidate) for candidate in generations[-1]], axis=0)
    np.testing.assert_allclose(late[target == 0.0], 0.0, atol=0.06)
    np.testing.assert_allclose(late[target > 0.0], 0.5, atol=0.15)


def told_to_cma_es(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[FloatArray, float]]]:
    """The points and values that CMA-ES was told, for each stage."""
    stages: list[list[tuple[FloatArray, float]]] = []

    class Watched(CmaEsSampler):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.told: list[tuple[FloatArray, float]] = []
            stages.append(self.told)
            super().__init__(*arguments, **options)

        def tell(self, candidate: Candidate, losses: Any, evidence: Any = None) -> None:
            self.told.append((np.array(candidate.u), losses[0]))
            super().tell(candidate, losses, evidence)

    monkeypatch.setattr(regularized, "CmaEsSampler", Watched)
    return stages


def test_the_incumbent_is_valued_anew_when_the_charge_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result of stage 1 must not keep a value that holds a charge for shares."""
    stages = told_to_cma_es(monkeypatch)
    loss = to((0.25, 0.25, 0.0, 0.1))
    generations = run(EvoMergingSampler(pool(), seed=1, denoise=120), 160, loss)
    known = [c for g in generations for c in g if c.id < 2 + len(stages[0]) - 1]
    # generation 0 has found the mean to be best: all shares 1, each charged for with 1
    z, value = stages[0][0]
    np.testing.assert_allclose(z, np.ones(4))
    (of_mean,) = loss(np.full(4, 0.25)) or ()
    assert value == pytest.approx(of_mean + 0.05 * 1.0)
    # stage 2 begins at the best of stage 1, where each beta is a share of the scale of 1/4
    best_shares, best_value = min(stages[0], key=lambda pair: pair[1])
    _, value = stages[1][0]
    (raw,) = loss(best_shares / 4) or ()
    assert best_value == pytest.approx(raw + 0.05 * best_shares.mean())
    assert value == pytest.approx(raw + 0.05 * best_shares.mean() / 4)
    assert any(np.allclose(coefficients(c), best_shares / 4, atol=1e-7) for c in known)


@pytest.mark.parametrize("sampler", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 3}, "population of .* must be a whole number of at least 4"),
        ({"sigma": 0.0}, r"sigma must be a number of at least 0\.001 and at most 1"),
        ({"bound": 0}, r"bound must be a number of at least 0\.01"),
        ({"regularization": -0.05}, "regularization must be a number of at least 0"),
        ({"weights": None}, "minimises one loss, but there are 2"),
        ({"scalarization": "sum"}, "a scalarization is one of"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(
    sampler: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler(pool(n_objectives=2), **{"seed": 1, "weights": [1, 1], **options})


def test_a_stage_is_a_whole_number_of_evaluations() -> None:
    with pytest.raises(ConfigError, match="denoise must be a whole number of at least 0"):
        EvoMergingSampler(pool(), seed=1, denoise=0.5)  # type: ignore[arg-type]
