import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.optuna_study import quiet, rescaled
from evomerge.samplers.tpe import START, TpeSampler
from evomerge.samplers.uniform import UniformSampler

Loss = Callable[[Candidate], Sequence[float] | None]

MIXED = Problem(
    (
        *(Dimension(f"x{i}") for i in range(4)),
        Dimension("gate", "binary"),
        Dimension("variant", "categorical", 5),
    ),
    n_objectives=2,
    anchors=((0.4, 0.4, 0.4, 0.4, 1.0, 0.1), (0.2, 0.2, 0.2, 0.2, 0.0, 0.3)),
    budget=60,
)


def real(n_dimensions: int, n_objectives: int = 1, budget: int = 60) -> Problem:
    dimensions = tuple(Dimension(f"x{i}") for i in range(n_dimensions))
    return Problem(dimensions, n_objectives, ((0.5,) * n_dimensions,), budget)


def two_losses(candidate: Candidate) -> list[float]:
    u = np.array(candidate.u)
    return [float(((u - target) ** 2).mean()) for target in (0.3, 0.7)]


def steady(sampler: TpeSampler, n: int, loss: Loss, n_workers: int = 1) -> list[Candidate]:
    """Ask n candidates; the oldest is told whenever all workers are busy."""
    asked: list[Candidate] = []
    told = 0
    while len(asked) < n:
        if len(asked) - told == n_workers:
            sampler.tell(asked[told], loss(asked[told]))
            told += 1
        asked.append(sampler.ask())
    return asked


def test_the_order_of_tells_does_not_matter() -> None:
    samplers = [TpeSampler(MIXED, seed=1) for _ in range(2)]
    first, second = ([sampler.ask() for _ in range(15)] for sampler in samplers)
    assert first == second
    for candidate in first[:12]:
        samplers[0].tell(candidate, two_losses(candidate))
    for candidate in second[11::-1]:
        samplers[1].tell(candidate, two_losses(candidate))
    assert samplers[0].ask() == samplers[1].ask()


def test_a_sampler_that_readmits_what_was_asked_continues_the_same() -> None:
    whole = steady(TpeSampler(MIXED, seed=3), 40, two_losses, n_workers=3)
    resumed = TpeSampler(MIXED, seed=3)
    for candidate in whole[:25]:
        resumed.readmit(candidate)
    for candidate in whole[:22]:
        resumed.tell(candidate, two_losses(candidate))
    for index in range(25, 40):
        resumed.tell(whole[index - 3], two_losses(whole[index - 3]))
        assert resumed.ask() == whole[index]


def test_another_process_proposes_the_same() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_tpe import *\n"
        "print([c.u for c in steady(TpeSampler(MIXED, seed=3), 20, two_losses, 3)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, __file__.rpartition("/")[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    here = [c.u for c in steady(TpeSampler(MIXED, seed=3), 20, two_losses, 3)]
    assert result.stdout.strip() == str(here)


def test_the_unit_of_losses_does_not_matter() -> None:
    expected = steady(TpeSampler(MIXED, seed=2), 30, two_losses)
    scaled = steady(TpeSampler(MIXED, seed=2), 30, lambda c: [1024 * v for v in two_losses(c)])
    assert scaled == expected


def test_losses_are_rescaled_whatever_their_zero_and_magnitude() -> None:
    losses = np.array([[-1.6e308, 5.0, -0.5], [1.6e308, 5.0, -0.25], [0.0, 5.0, -0.375]])
    assert rescaled(losses).tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.5, 0.0, 0.5]]


def test_it_learns_where_candidates_fail() -> None:
    problem = replace(real(3, budget=60), anchors=((0.7, 0.5, 0.5),))

    def loss(candidate: Candidate) -> list[float] | None:
        return None if candidate.u[0] > 0.5 else [(candidate.u[0] - 0.3) ** 2]

    asked = steady(TpeSampler(problem, seed=1), 60, loss)
    fails = [loss(candidate) is None for candidate in asked]
    assert sum(fails[:8]) >= 6
    assert sum(fails[-20:]) <= 2


def test_it_goes_on_with_the_design_while_nothing_succeeds() -> None:
    problem = real(4)
    without = [c.u for c in steady(TpeSampler(problem, seed=5), 30, lambda _: None)]
    longer = [c.u for c in steady(TpeSampler(problem, seed=5, start=30), 30, two_losses1)]
    assert without == longer
    assert len(set(without)) == 30


def test_what_is_pending_keeps_proposals_apart() -> None:
    def smallest_step(n_workers: int) -> float:
        sampler = TpeSampler(real(2), seed=1)
        steady(sampler, 40, lambda c: [sum((u - 0.4) ** 2 for u in c.u)])
        points = np.array([sampler.ask().u for _ in range(n_workers)])
        return float(np.linalg.norm(points - points.mean(axis=0), axis=1).mean())

    assert smallest_step(12) > 0.05


@pytest.mark.parametrize("n_objectives", [1, 2, 6])
def test_it_finds_better_points_than_chance(n_objectives: int) -> None:
    problem = real(8, n_objectives, budget=60)
    targets = np.linspace(0.3, 0.7, n_objectives + 1)[1:]

    def loss(candidate: Candidate) -> list[float]:
        return [float(((np.array(candidate.u) - t) ** 2).mean()) for t in targets]

    def mean_of_best(sampler: TpeSampler | UniformSampler) -> float:
        losses = [sum(loss(c)) for c in steady(sampler, 60, loss)]  # type: ignore[arg-type]  # any sampler
        return float(np.mean(sorted(losses)[:15]))

    chance = np.mean([mean_of_best(UniformSampler(problem, seed=s)) for s in range(3)])
    found = np.mean([mean_of_best(TpeSampler(problem, seed=s, start=4)) for s in range(3)])
    assert found < 0.5 * chance


def test_the_best_bits_and_choice_are_found() -> None:
    def loss(candidate: Candidate) -> list[float]:
        choice = MIXED.dimensions[5].choice(candidate.u[5])
        miss = float(candidate.u[4] != 0.0) + float(choice != 4)
        return [miss + v for v in two_losses(Candidate(0, 0, candidate.u[:4]))]

    asked = steady(TpeSampler(MIXED, seed=2), 60, loss)
    late = [c.u[4] == 0.0 and MIXED.dimensions[5].choice(c.u[5]) == 4 for c in asked[-20:]]
    assert np.mean(late) > 0.6  # chance is one in ten


@pytest.mark.parametrize(("budget", "n_start"), [(300, START), (12, 4), (2, 1)])
def test_the_start_is_never_more_than_a_third_of_the_budget(budget: int, n_start: int) -> None:
    problem = real(3, budget=budget)
    long = [c.u for c in steady(TpeSampler(problem, seed=1, start=40), n_start + 1, two_losses1)]
    own = [c.u for c in steady(TpeSampler(problem, seed=1), n_start + 1, two_losses1)]
    assert own[:n_start] == long[:n_start]
    assert own[n_start] != long[n_start]


def two_losses1(candidate: Candidate) -> list[float]:
    return two_losses(candidate)[:1]


@pytest.mark.parametrize("start", [0, -3, 2.5, "8", True])
def test_a_start_that_is_no_number_of_points_is_refused(start: object) -> None:
    with pytest.raises(ConfigError, match=r"start of tpe must be a whole number.*leave it out"):
        TpeSampler(MIXED, seed=1, start=start)  # type: ignore[arg-type]  # what a user writes


def test_settings_of_logs_and_warnings_are_left_as_they_were() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    filters = list(warnings.filters)
    with quiet():
        assert not logging.getLogger("optuna.samplers").isEnabledFor(logging.CRITICAL)
        warnings.warn("held back", UserWarning, stacklevel=1)
    assert logging.getLogger("optuna").level == logging.DEBUG
    assert warnings.filters == filters
    optuna.logging.set_verbosity(optuna.logging.INFO)
