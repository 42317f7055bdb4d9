import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__

from evomerge.datatypes import Candidate, Dimension, Problem, digest_of
from evomerge.errors import ConfigError
from evomerge.samplers.cma_es import CmaEsSampler, default_population


def problem_of(
    n_dimensions: int, *anchors: tuple[float, ...], n_objectives: int = 1, n_binary: int = 0
) -> Problem:
    dimensions = [Dimension(f"x{i}") for i in range(n_dimensions - n_binary)]
    dimensions += [Dimension(f"bit {i}", kind="binary") for i in range(n_binary)]
    return Problem(
        tuple(dimensions), n_objectives, anchors or ((0.4,) * n_dimensions,), budget=1000
    )


def generation_of(sampler: CmaEsSampler) -> list[Candidate]:
    asked = []
    while (candidate := sampler.ask()) is not None:
        asked.append(candidate)
    return asked


def minimise(sampler: CmaEsSampler, target: float, n_generations: int) -> float:
    best = np.inf
    for _ in range(n_generations):
        for candidate in generation_of(sampler):
            loss = float(((np.array(candidate.u) - target) ** 2).mean())
            sampler.tell(candidate, [loss])
            best = min(best, loss)
    return best


@pytest.mark.parametrize("n_dimensions", [1, 2, 24, 47, 48, 100])
def test_the_optimum_is_approached_in_any_dimension(n_dimensions: int) -> None:
    sampler = CmaEsSampler(problem_of(n_dimensions), seed=1)
    assert minimise(sampler, 0.7, 60) < 0.05 * 0.3**2


def test_an_optimum_in_a_corner_of_the_cube_is_reached() -> None:
    assert minimise(CmaEsSampler(problem_of(10), seed=1), 1.0, 60) < 1e-4


def test_the_scalarisation_weighs_the_objectives() -> None:
    """Of two targets the heavier one attracts; equal weights meet between them."""
    problem = problem_of(2, n_objectives=2)
    found = {}
    for weights in ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        sampler = CmaEsSampler(problem, seed=1, weights=weights)
        for _ in range(40):
            asked = generation_of(sampler)
            for candidate in asked:
                u = np.array(candidate.u)
                sampler.tell(candidate, [((u - t) ** 2).mean() for t in (0.2, 0.8)])
        found[weights] = np.mean([candidate.u for candidate in asked])
    assert list(found.values()) == pytest.approx([0.2, 0.5, 0.8], abs=0.03)


def test_weights_of_a_mapping_count_in_order_and_only_their_ratio_matters() -> None:
    problem = problem_of(3, n_objectives=2)
    asked = []
    for weights in ({"math": 2, "chat": 6}, [0.25, 0.75]):
        sampler = CmaEsSampler(problem, seed=1, weights=weights)
        for candidate in generation_of(sampler):
            sampler.tell(candidate, [candidate.u[0], candidate.u[1]])
        asked.append(generation_of(sampler))
    assert asked[0] == asked[1]


def test_a_collapsed_distribution_restarts_at_the_next_anchor_with_twice_the_population() -> None:
    sampler = CmaEsSampler(problem_of(2, (0.5, 0.5), (0.9, 0.1)), seed=1, population=6, sigma=0.05)
    sizes = []
    centres, widths = [], []
    for _ in range(90):
        asked = generation_of(sampler)
        sizes.append(len(asked))
        points = np.array([candidate.u for candidate in asked])
        centres.append(points.mean(axis=0))
        widths.append(np.ptp(points, axis=0).max())
        for candidate in asked:
            sampler.tell(candidate, [sum((u - 0.5) ** 2 for u in candidate.u)])
    assert 12 in sizes
    restart = sizes.index(12)
    assert sizes[0] == 6
    assert set(sizes[1:restart]) == {7}  # and the mean
    assert min(widths[:restart]) > 1e-7  # no evaluation is spent on digits that a recipe drops
    assert centres[restart - 1] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert centres[restart] == pytest.approx([0.9, 0.1], abs=0.1)


def test_failed_candidates_rank_last() -> None:
    """A region that always fails is left even though it would be the better one."""
    sampler = CmaEsSampler(problem_of(4), seed=3)
    for _ in range(30):
        asked = generation_of(sampler)
        for candidate in asked:
            failed = candidate.u[0] > 0.45
            sampler.tell(candidate, None if failed else [1.0 - candidate.u[0]])
    assert np.mean([candidate.u[0] <= 0.45 for candidate in asked]) >= 0.4
    assert np.mean([candidate.u[0] for candidate in asked]) == pytest.approx(0.45, abs=0.05)


def test_a_generation_of_failures_leaves_the_distribution_where_it_is() -> None:
    sampler = CmaEsSampler(problem_of(6), seed=1)
    for _ in range(30):
        asked = generation_of(sampler)
        for candidate in asked:
            sampler.tell(candidate, None)
    assert np.mean([candidate.u for candidate in asked]) == pytest.approx(0.4, abs=0.1)


def test_a_far_anchor_does_not_blow_up_the_steps() -> None:
    near, far = (0.5,) * 30, (1.0,) * 30
    sampler = CmaEsSampler(problem_of(30, near, far), seed=1, sigma=0.05, population=10)
    asked = generation_of(sampler)
    assert (asked[0].u, asked[1].u) == (near, far)
    for candidate in asked:
        sampler.tell(candidate, [0.0 if candidate.u == far else 1.0])
    assert np.std([candidate.u for candidate in generation_of(sampler)], axis=0).mean() < 0.06


def test_bits_turn_from_the_start_and_settle() -> None:
    problem = problem_of(8, (1.0,) * 8, n_binary=8)
    sampler = CmaEsSampler(problem, seed=1)
    first = np.array([candidate.u for candidate in generation_of(sampler)])
    assert set(np.unique(first)) == {0.0, 1.0}
    sampler, wanted = CmaEsSampler(problem, seed=1), np.array([1, 0, 0, 1, 1, 0, 1, 0])
    best = np.inf
    for _ in range(15):
        for candidate in generation_of(sampler):
            wrong = float((np.array(candidate.u) != wanted).sum())
            best = min(best, wrong)
            sampler.tell(candidate, [wrong])
    assert best == 0


@pytest.mark.parametrize("n_choices", [2, 5, 20])
def test_every_choice_is_tried_from_the_start(n_choices: int) -> None:
    choice = Dimension("variant", "categorical", n_choices)
    problem = Problem((choice,), 1, ((choice.position(n_choices // 2),),), budget=1000)
    sampler = CmaEsSampler(problem, seed=1, population=600)
    asked = [choice.choice(candidate.u[0]) for candidate in generation_of(sampler)]
    departed = [c for c in asked if c != n_choices // 2]
    assert 0.15 < len(departed) / 600 < 0.55
    assert len(set(departed)) > 0.7 * (n_choices - 1)  # not only the neighbours


def test_a_choice_settles_with_the_bits_and_reals_around_it() -> None:
    choice = Dimension("variant", "categorical", 7)
    dimensions = (Dimension("x"), choice, Dimension("bit", "binary"), Dimension("y"))
    anchors = tuple((0.5, choice.position(i), 1.0, 0.5) for i in (3, 0, 5))
    sampler = CmaEsSampler(Problem(dimensions, 1, anchors, budget=1000), seed=2)
    for _ in range(25):
        asked = generation_of(sampler)
        for candidate in asked:
            x, variant, bit, y = candidate.u
            wrong = (choice.choice(variant) != 5) + (bit != 0.0)
            sampler.tell(candidate, [wrong + (x - 0.3) ** 2 + (y - 0.7) ** 2])
    x, variant, bit, y = asked[0].u  # the mean
    assert (choice.choice(variant), bit) == (5, 0.0)
    assert (x, y) == pytest.approx((0.3, 0.7), abs=0.05)


def test_more_anchors_than_the_population_are_left_out() -> None:
    anchors = tuple((0.1 * i, 0.5) for i in range(1, 8))
    small = CmaEsSampler(problem_of(2, *anchors), seed=1, population=4)
    assert tuple(c.u for c in generation_of(small)) == anchors[:4]
    default = CmaEsSampler(problem_of(2, *anchors), seed=1)
    assert tuple(c.u for c in generation_of(default))[:7] == anchors


@pytest.mark.parametrize(
    ("n_dimensions", "budget", "population"),
    [(1, 1000, 8), (24, 1000, 26), (24, 200, 20), (24, 20, 13), (64, 10_000, 32)],
)
def test_the_default_population_leaves_room_for_ten_generations(
    n_dimensions: int, budget: int, population: int
) -> None:
    assert default_population(n_dimensions, budget) == population


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 3}, "population of cma_es must be a whole number of at least 4"),
        ({"population": "8"}, "population of cma_es"),
        ({"sigma": 0}, "sigma must be above 0"),
        ({"sigma": -0.1}, "sigma must be above 0"),
        ({"sigma": float("nan")}, "sigma must be above 0"),
        ({"sigma": "wide"}, "sigma must be above 0"),
        ({"weights": None}, r"2 objectives: give sampler\.weights"),
        ({"weights": [1.0]}, "weights must be one number >= 0 per objective"),
        ({"weights": [1.0, -1.0]}, "weights must be"),
        ({"weights": [0.0, 0.0]}, "weights must be"),
        ({"weights": ["1", 2]}, "weights must be"),
        ({"weights": [float("nan"), 1]}, "weights must be"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CmaEsSampler(problem_of(2, n_objectives=2), **{"seed": 1, "weights": [1, 1], **options})


def test_the_mean_is_a_candidate_that_teaches_nothing() -> None:
    """Two searches that differ in what the mean scored ask the same."""
    samplers = [CmaEsSampler(problem_of(4), seed=3, population=6) for _ in range(2)]
    for generation in range(5):
        both = [generation_of(sampler) for sampler in samplers]
        assert [c.u for c in both[0]] == [c.u for c in both[1]]
        assert len(both[0]) == samplers[0].generation_size == 6 + (generation > 0)
        for candidates, sampler, score_of_mean in zip(both, samplers, (0.0, 9.0), strict=True):
            for index, candidate in enumerate(candidates):
                is_mean = generation > 0 and index == 0
                loss = score_of_mean if is_mean else sum((u - 0.3) ** 2 for u in candidate.u)
                sampler.tell(candidate, [loss])


VARIANTS = ("full", "separable", "margin", "learning_rate")


def mixed_problem() -> Problem:
    choice = Dimension("variant", "categorical", 5)
    dimensions = [Dimension(f"x{i}") for i in range(4)]
    dimensions += [Dimension(f"bit {i}", "binary") for i in range(4)]
    start = (0.4,) * 4 + (1.0,) * 4 + (choice.position(0),)
    other = (0.9,) * 4 + (0.0,) * 4 + (choice.position(1),)
    return Problem((*dimensions, choice), 1, (start, other), budget=1000)


def mixed_loss(candidate: Candidate) -> float:
    """Best at 0.6, bits off, the fourth choice."""
    u = np.array(candidate.u)
    wrong = u[4:8].sum() + (abs(u[8] - 0.7) > 0.01)
    return float(((u[:4] - 0.6) ** 2).sum() + 0.1 * wrong)


def mixed_run(variant: str, n_generations: int) -> list[list[Candidate]]:
    sampler = CmaEsSampler(mixed_problem(), seed=3, variant=variant)
    run = []
    for _ in range(n_generations):
        run.append(generation_of(sampler))
        for candidate in reversed(run[-1]):
            fails = candidate.id % 7 == 3
            sampler.tell(candidate, None if fails else [mixed_loss(candidate)])
    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_finds_reals_bits_and_the_choice(variant: str) -> None:
    run = mixed_run(variant, 60)
    assert tuple(c.u for c in run[0][:2]) == mixed_problem().anchors
    losses = [mixed_loss(candidate) for generation in run for candidate in generation]
    assert min(losses) < 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_survives_generations_that_do_not_differ_or_fail(variant: str) -> None:
    for losses in ([0.25], [1e300], None):
        sampler = CmaEsSampler(mixed_problem(), seed=3, variant=variant)
        for _ in range(40):
            for candidate in generation_of(sampler):
                assert np.isfinite(candidate.u).all()
                sampler.tell(candidate, losses)


def digest_of_variants() -> str:
    return digest_of([[[c.u for c in g] for g in mixed_run(v, 25)] for v in VARIANTS])


def test_every_variant_asks_the_same_on_another_processor() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_cma_es\n"
        "print(test_cma_es.digest_of_variants())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
        env={
            "PYTHONHASHSEED": "1",
            "PATH": "",
            "OPENBLAS_CORETYPE": "Nehalem",
            "NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__),
        },
    )
    assert result.stdout.strip() == digest_of_variants()


@pytest.mark.parametrize("n_binary", [1, 8])
def test_a_margin_keeps_bits_turning_after_everything_agreed(n_binary: int) -> None:
    """The optimum moves after 40 generations: a bit that no longer turned would miss it."""
    anchor = (1.0,) * n_binary
    problem = problem_of(n_binary, anchor, n_binary=n_binary)
    sampler = CmaEsSampler(problem, seed=1, variant="margin", restarts=False)
    for generation in range(100):
        asked = generation_of(sampler)
        for candidate in asked:
            is_on = np.array(candidate.u) == 1.0
            sampler.tell(candidate, [float((~is_on if generation < 40 else is_on).sum())])
        if generation == 39:
            assert asked[0].u == anchor
    assert asked[0].u == (0.0,) * n_binary  # the mean


def test_without_restarts_a_collapsed_distribution_is_sampled_on() -> None:
    sampler = CmaEsSampler(
        problem_of(2, (0.5, 0.5), (0.9, 0.1)), seed=1, population=6, sigma=0.05, restarts=False
    )
    for _ in range(150):
        asked = generation_of(sampler)
        for candidate in asked:
            sampler.tell(candidate, [sum((u - 0.5) ** 2 for u in candidate.u)])
    assert len(asked) == 6  # not even the mean moves
    np.testing.assert_allclose([c.u for c in asked], 0.5, atol=1e-3)


@pytest.mark.parametrize(
    ("scalarization", "tolerance"), [("tchebycheff", 0.1), ("percentile", 0.19)]
)
def test_scalarizations_without_scale_compromise(scalarization: str, tolerance: float) -> None:
    """Any point between the optima has about the same sum of ranks, only the ends have not."""
    sampler = CmaEsSampler(
        problem_of(2, n_objectives=2), seed=1, weights=[1, 1], scalarization=scalarization
    )
    for _ in range(40):
        asked = generation_of(sampler)
        for candidate in asked:
            u = np.array(candidate.u)
            sampler.tell(candidate, [((u - 0.3) ** 2).mean(), 1e6 * ((u - 0.7) ** 2).mean()])
    assert np.mean([candidate.u for candidate in asked]) == pytest.approx(0.5, abs=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "sep"}, "variant of cma_es is one of auto, full, separable"),
        ({"variant": None}, "variant of cma_es is one of"),
        ({"variant": "margin"}, "margin is for bits and choices, but all dimensions are real"),
        ({"restarts": "no"}, "restarts must be true or false"),
        ({"scalarization": "sum"}, "a scalarization is one of"),
    ],
)
def test_unusable_variants_are_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CmaEsSampler(problem_of(2), **{"seed": 1, **options})
