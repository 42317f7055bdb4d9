from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import centred_design
from evomerge.samplers.moead import MoeadSampler
from evomerge.samplers.reference_directions import reference_directions


def problem_of(n_real: int, n_objectives: int = 2, budget: int = 600) -> Problem:
    dimensions = tuple(Dimension(f"x{i}") for i in range(n_real))
    return Problem(dimensions, n_objectives, ((0.5,) * n_real,), budget)


def run(
    sampler: MoeadSampler, n: int, loss: Callable[[Candidate], Sequence[float] | None]
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


def distances(candidate: Candidate, *scales: float) -> list[float]:
    """Squared distances to 0.4 everywhere but 0.9 in one dimension each, scaled."""
    u = np.array(candidate.u)
    losses = []
    for i, scale in enumerate(scales):
        target = np.full(len(u), 0.4)
        target[i] = 0.9
        losses.append(scale * float(((u - target) ** 2).mean()))
    return losses


def test_the_front_is_covered_whatever_the_scales() -> None:
    """Squared distances to two points: the front is the line between them."""
    sampler = MoeadSampler(problem_of(4), seed=1, population=20)
    late = run(sampler, 1000, lambda c: distances(c, 1.0, 1e6))[-200:]
    u = np.array([candidate.u for candidate in late])
    share = (u[:, 0] - 0.4) / 0.5  # of the way to the first target
    # the maximum of two weighted squares: outermost but one of 20 directions is .19 from an end
    assert (np.quantile(share, 0.05), np.quantile(share, 0.95)) == pytest.approx(
        (0.2, 0.8), abs=0.1
    )
    assert share.min() < 0.1
    assert share.max() > 0.9
    assert np.median(np.abs(u[:, 0] + u[:, 1] - 1.3)) < 0.05
    assert np.median(np.abs(u[:, 2:] - 0.4)) < 0.05


def test_generation_zero_is_the_centred_design_and_later_ones_a_child_per_direction() -> None:
    problem = problem_of(5, n_objectives=3)
    sampler = MoeadSampler(problem, seed=3, population=20)
    asked = run(sampler, 50, lambda c: distances(c, 1.0, 1.0, 1.0))
    np.testing.assert_array_equal([c.u for c in asked[:20]], centred_design(problem, 20, seed=3))
    assert len(reference_directions(3, 20)) == 15
    assert [c.generation for c in asked] == [0] * 20 + [1] * 15 + [2] * 15


def test_a_failed_region_is_left_and_its_points_are_bred_from_no_more() -> None:
    def loss(candidate: Candidate) -> list[float] | None:
        return None if candidate.u[0] > 0.55 else distances(candidate, 1.0, 1.0)

    late = run(MoeadSampler(problem_of(3), seed=1), 600, loss)[-100:]
    assert np.mean([candidate.u[0] <= 0.55 for candidate in late]) > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 3}, "population of moead must be a whole number of at least 4"),
        ({"neighbours": 1}, "neighbours must be a whole number of at least 2"),
        ({"neighbours": 2.5}, "neighbours must be"),
        ({"neighbours": True}, "neighbours must be"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoeadSampler(problem_of(2), seed=1, **options)
