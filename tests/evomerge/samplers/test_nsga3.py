import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import centred_design
from evomerge.samplers.nsga3 import Nsga3Sampler


def problem_of(n_real: int, n_binary: int = 0, n_objectives: int = 3, budget: int = 200) -> Problem:
    dimensions = [Dimension(f"x{i}") for i in range(n_real)]
    dimensions += [Dimension(f"bit {i}", kind="binary") for i in range(n_binary)]
    anchor = (0.4,) * n_real + (1.0,) * n_binary
    return Problem(tuple(dimensions), n_objectives, (anchor,), budget)


def run(
    sampler: Nsga3Sampler, n: int, loss: Callable[[Candidate], Sequence[float] | None]
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


def triangle(candidate: Candidate) -> list[float]:
    """DTLZ1's linear front without its multimodality: the losses sum to 0.5 where x2.. are .5."""
    x = candidate.u
    g = sum((u - 0.5) ** 2 for u in x[2:])
    front = (x[0] * x[1], x[0] * (1 - x[1]), 1 - x[0])
    return [0.5 * (1 + 10 * g) * f for f in front]


def losses_of(asked: Sequence[Candidate]) -> FloatArray:
    return np.array([triangle(candidate) for candidate in asked])


def test_generation_zero_is_the_centred_design() -> None:
    problem = problem_of(5, 5)
    asked = run(Nsga3Sampler(problem, seed=3, population=10), 10, triangle)
    np.testing.assert_array_equal([c.u for c in asked], centred_design(problem, 10, seed=3))


def test_the_front_is_approached_and_covered() -> None:
    asked = run(Nsga3Sampler(problem_of(6), seed=1, population=36), 1800, triangle)
    late = losses_of(asked[-72:])
    assert np.median(late.sum(axis=1)) < 0.52
    assert (late.min(axis=0) < 0.03).all()
    assert (late.max(axis=0) > 0.4).all()


def test_scales_of_the_objectives_do_not_matter() -> None:
    def scaled(candidate: Candidate) -> list[float]:
        return (np.array(triangle(candidate)) * [1.0, 1024.0, 2.0**-10]).tolist()

    plain, other = (
        run(Nsga3Sampler(problem_of(5), seed=2, population=20), 300, loss)
        for loss in (triangle, scaled)
    )
    assert [c.u for c in plain] == [c.u for c in other]


def test_no_point_is_proposed_twice() -> None:
    def loss(candidate: Candidate) -> list[float]:
        u = np.array(candidate.u)
        return [u[:5].mean(), 1 - u.mean(), u[5:].mean()]

    asked = run(Nsga3Sampler(problem_of(0, 10), seed=1, population=20), 500, loss)
    assert len({candidate.u for candidate in asked}) == 500


def test_failed_candidates_do_not_breed_once_there_are_successes() -> None:
    def loss(candidate: Candidate) -> list[float] | None:
        return None if candidate.u[0] > 0.5 else [1 - candidate.u[0], candidate.u[1], 1.0]

    asked = run(Nsga3Sampler(problem_of(2), seed=1, population=20), 400, loss)
    late = [candidate.u[0] for candidate in asked[-100:]]
    assert np.mean([u > 0.5 for u in late]) < 0.5


def test_six_objectives_are_taken() -> None:
    def loss(candidate: Candidate) -> list[float]:
        return [(u - 0.5) ** 2 for u in candidate.u]

    asked = run(Nsga3Sampler(problem_of(6, n_objectives=6), seed=1), 300, loss)
    first, last = (np.mean([loss(c) for c in part]) for part in (asked[:20], asked[-100:]))
    assert last < 1.2 * first


def test_pymoo_prints_nothing_also_where_it_is_not_compiled() -> None:
    code = (
        "import pymoo.functions\n"
        "pymoo.functions.is_compiled = lambda: False\n"
        "from evomerge.datatypes import Dimension, Problem\n"
        "from evomerge.samplers.nsga3 import Nsga3Sampler\n"
        "sampler = Nsga3Sampler(Problem((Dimension('x'),), 2, ((0.5,),), 100), seed=1)\n"
        "for candidate in [sampler.ask() for _ in range(sampler.generation_size)]:\n"
        "    sampler.tell(candidate, [candidate.u[0], -candidate.u[0]])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize("population", [3, 0, 4.5, "20", True])
def test_a_wrong_population_is_refused_with_a_remedy(population: Any) -> None:
    with pytest.raises(ConfigError, match=r"population of nsga3 .* at least 4.*leave it out"):
        Nsga3Sampler(problem_of(2), seed=1, population=population)
