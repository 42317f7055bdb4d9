"""Gaussian process with expected hypervolume improvement."""

from typing import TYPE_CHECKING

from evomerge.datatypes import Problem
from evomerge.samplers.optuna_study import OptunaBased, checked_start

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

START = 16
"""Points of the centred design, but never more than a third of the budget."""


class GaussianProcessSampler(OptunaBased):
    """Models each objective, and proposes where the hypervolume is expected to grow most."""

    def __init__(self, problem: Problem, *, seed: int, start: int | None = None) -> None:
        n_start = checked_start("gaussian_process", start, START, problem.budget)
        super().__init__(problem, seed=seed, n_start=n_start)

    def _new_sampler(self, seed: int) -> "BaseSampler":
        from optuna.samplers import GPSampler

        return GPSampler(n_startup_trials=1, deterministic_objective=False, seed=seed)
