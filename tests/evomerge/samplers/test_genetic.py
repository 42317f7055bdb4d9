from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import centred_design
from evomerge.samplers.genetic import GeneticSampler, default_population


def problem_of(n_real: int, n_binary: int = 0, n_objectives: int = 1, budget: int = 400) -> Problem:
    dimensions = [Dimension(f"x{i}") for i in range(n_real)]
    dimensions += [Dimension(f"bit {i}", kind="binary") for i in range(n_binary)]
    anchor = (0.43,) * n_real + (1.0,) * n_binary
    return Problem(tuple(dimensions), n_objectives, (anchor,), budget, names=("a", "b", "c"))


def run(
    sampler: GeneticSampler, n: int, loss: Callable[[Candidate], Sequence[float] | None]
) -> list[Candidate]:
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


def squares(candidate: Candidate, target: float = 0.7) -> list[float]:
    return [float(((np.array(candidate.u) - target) ** 2).mean())]


def test_the_optimum_is_approached() -> None:
    asked = run(GeneticSampler(problem_of(8), seed=1), 600, squares)
    assert min(squares(c)[0] for c in asked) < 0.01 * squares(asked[0])[0]


def test_generation_zero_is_the_centred_design() -> None:
    problem = problem_of(5, 5)
    asked = run(GeneticSampler(problem, seed=3, population=10), 10, squares)
    np.testing.assert_array_equal([c.u for c in asked], centred_design(problem, 10, seed=3))


@pytest.mark.parametrize("levels", [2, 3, 11, 101])
def test_every_coordinate_but_the_anchors_lies_on_a_level(levels: int) -> None:
    """Crossover and mutation too: Mergenetic's log shows genes such as .8535 between tenths."""
    asked = run(GeneticSampler(problem_of(4, 3), seed=1, levels=levels), 300, squares)
    u = np.array([candidate.u for candidate in asked[1:]])
    allowed = np.round(np.arange(levels) / (levels - 1), 9)
    assert np.isin(u[:, :4], allowed).all()
    assert asked[0].u[:4] == (0.43,) * 4


def test_a_coarse_grid_is_explored_with_hardly_a_repeat() -> None:
    asked = run(GeneticSampler(problem_of(4, budget=600), seed=1, levels=5), 200, squares)
    assert len({candidate.u for candidate in asked}) >= 195  # of 625
    best = min(asked, key=lambda c: squares(c)[0])
    assert best.u == (0.75,) * 4


def test_weights_by_name_attract() -> None:
    def loss(candidate: Candidate) -> list[float]:
        return [squares(candidate, target)[0] for target in (0.2, 0.5, 0.8)]

    weights = {"c": 1.0, "a": 0.0, "b": 0.0}
    sampler = GeneticSampler(problem_of(3, n_objectives=3), seed=1, weights=weights)
    late = run(sampler, 400, loss)[-20:]
    assert np.median([c.u for c in late]) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("scalarization", ["tchebycheff", "percentile"])
def test_other_scalarizations_compromise(scalarization: str) -> None:
    def loss(candidate: Candidate) -> list[float]:
        return [squares(candidate, 0.3)[0], 1e6 * squares(candidate, 0.7)[0]]

    problem = Problem((Dimension("x"), Dimension("y")), 2, ((0.4, 0.4),), 400)
    sampler = GeneticSampler(problem, seed=1, weights=[1, 1], scalarization=scalarization)
    late = run(sampler, 400, loss)[-20:]
    assert np.median([c.u for c in late]) == pytest.approx(0.5, abs=0.15)


def test_failed_candidates_rank_last() -> None:
    def loss(candidate: Candidate) -> list[float] | None:
        return None if candidate.u[0] > 0.5 else [1.0 - candidate.u[0]]

    late = [c.u[0] for c in run(GeneticSampler(problem_of(2), seed=1), 400, loss)[-100:]]
    assert np.median(late) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("budget", "population"), [(10, 12), (400, 20), (5000, 40)])
def test_the_default_population_is_a_twentieth_of_the_budget(budget: int, population: int) -> None:
    assert default_population(budget) == population


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 3}, "population of genetic must be a whole number of at least 4"),
        ({"levels": 1}, "levels must be a whole number of at least 2.*without levels"),
        ({"levels": 10.0}, "levels must be"),
        ({"levels": True}, "levels must be"),
        ({"weights": [1.0]}, "weights must be one number >= 0 per objective"),
        ({"weights": None}, "genetic minimises one loss, but there are 2"),
        ({"scalarization": "sum"}, "a scalarization is one of"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    problem = Problem((Dimension("x"),), 2, ((0.5,),), 100)
    with pytest.raises(ConfigError, match=message):
        GeneticSampler(problem, **{"seed": 1, "weights": [1, 1], **options})
