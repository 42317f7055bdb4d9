import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import centred_design
from evomerge.samplers.nsga2 import Nsga2Sampler, default_population


def problem_of(n_real: int, n_binary: int = 0, n_objectives: int = 2, budget: int = 200) -> Problem:
    dimensions = [Dimension(f"x{i}") for i in range(n_real)]
    dimensions += [Dimension(f"bit {i}", kind="binary") for i in range(n_binary)]
    anchor = (0.4,) * n_real + (1.0,) * n_binary
    return Problem(tuple(dimensions), n_objectives, (anchor,), budget)


def run(
    sampler: Nsga2Sampler, n: int, loss: Callable[[Candidate], Sequence[float] | None]
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


def two_targets(candidate: Candidate) -> list[float]:
    u = np.array(candidate.u)
    return [float(((u - target) ** 2).mean()) for target in (0.2, 0.8)]


def test_generation_zero_is_the_centred_design() -> None:
    problem = problem_of(5, 5)
    asked = run(Nsga2Sampler(problem, seed=3, population=10), 10, two_targets)
    expected = centred_design(problem, 10, seed=3)
    np.testing.assert_array_equal([candidate.u for candidate in asked], expected)


def test_the_population_spreads_over_the_front() -> None:
    asked = run(Nsga2Sampler(problem_of(4), seed=1, population=20), 800, two_targets)
    last = np.array([candidate.u for candidate in asked[-40:]]).mean(axis=1)
    assert last.min() < 0.3
    assert last.max() > 0.7
    assert np.sort(two_targets(asked[-1]))[0] < 0.1


def test_no_point_is_proposed_twice() -> None:
    asked = run(Nsga2Sampler(problem_of(0, 10), seed=1, population=20), 500, two_targets)
    assert len({candidate.u for candidate in asked}) == 500


def test_a_mutated_choice_becomes_any_other_alike() -> None:
    """From a population of one choice all others arise, neighbours no more often than the rest."""
    choice = Dimension("variant", "categorical", 5)
    problem = Problem((Dimension("x"), choice), 1, ((0.5, choice.position(2)),), budget=1000)
    sampler = Nsga2Sampler(problem, seed=1, population=100)

    def loss(candidate: Candidate) -> list[float]:
        return [float(choice.choice(candidate.u[1]) != 2)]

    asked = [choice.choice(candidate.u[1]) for candidate in run(sampler, 3000, loss)]
    counts = [asked[300:].count(i) for i in range(5)]
    assert counts[2] > 0.75 * sum(counts)
    others = np.array(counts)[[0, 1, 3, 4]]
    assert others.min() > 0.6 * others.max()


def test_an_exhausted_space_is_survived() -> None:
    asked = run(Nsga2Sampler(problem_of(0, 2), seed=1, population=20), 200, two_targets)
    assert len({candidate.u for candidate in asked}) == 4


def test_failed_candidates_do_not_breed_once_there_are_successes() -> None:
    """Half of the cube fails, however good it would be: the search leaves it."""

    def loss(candidate: Candidate) -> list[float] | None:
        return None if candidate.u[0] > 0.5 else [1 - candidate.u[0], candidate.u[1]]

    asked = run(Nsga2Sampler(problem_of(2), seed=1, population=20), 400, loss)
    late = [candidate.u[0] for candidate in asked[-100:]]
    assert np.mean([u > 0.5 for u in late]) < 0.5
    assert np.median(late) == pytest.approx(0.5, abs=0.1)


def test_six_objectives_are_taken() -> None:
    def loss(candidate: Candidate) -> list[float]:
        return [(u - 0.5) ** 2 for u in candidate.u]

    asked = run(Nsga2Sampler(problem_of(6, n_objectives=6), seed=1), 300, loss)
    first, last = (np.mean([loss(c) for c in part]) for part in (asked[:20], asked[-100:]))
    assert last < 1.2 * first  # a spread in six dimensions does not contract, nor may it explode


def test_pymoo_prints_nothing_also_where_it_is_not_compiled() -> None:
    code = (
        "import pymoo.functions\n"
        "pymoo.functions.is_compiled = lambda: False\n"
        "from evomerge.datatypes import Dimension, Problem\n"
        "from evomerge.samplers.nsga2 import Nsga2Sampler\n"
        "Nsga2Sampler(Problem((Dimension('x'),), 1, ((0.5,),), 100), seed=1).ask()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize(("budget", "population"), [(10, 12), (200, 20), (5000, 100)])
def test_the_default_population_is_a_tenth_of_the_budget(budget: int, population: int) -> None:
    assert default_population(budget) == population


def test_the_default_population_has_room_for_all_anchors() -> None:
    anchors = tuple((i / 40,) for i in range(40))
    problem = Problem((Dimension("x"),), 1, anchors, budget=100)
    asked = run(Nsga2Sampler(problem, seed=1), 40, lambda c: [c.u[0]])
    assert tuple(candidate.u for candidate in asked) == anchors


@pytest.mark.parametrize("population", [3, 0, -4, 4.5, "20", True])
def test_a_wrong_population_is_refused_with_a_remedy(population: Any) -> None:
    with pytest.raises(ConfigError, match=r"population of nsga2 .* at least 4.*leave it out"):
        Nsga2Sampler(problem_of(2), seed=1, population=population)
