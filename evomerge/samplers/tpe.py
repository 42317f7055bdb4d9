"""Multivariate tree-structured Parzen estimator (Bergstra et al. 2011; Falkner et al. 2018)."""

from typing import TYPE_CHECKING

from evomerge.datatypes import Problem
from evomerge.samplers.optuna_study import OptunaBased, checked_start

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

START = 16
"""Points of the centred design, but never more than a third of the budget."""


class TpeSampler(OptunaBased):
    """Draws from a density of good points, keeps what is likeliest against that of the others."""

    def __init__(self, problem: Problem, *, seed: int, start: int | None = None) -> None:
        n_start = checked_start("tpe", start, START, problem.budget)
        super().__init__(problem, seed=seed, n_start=n_start)

    def _new_sampler(self, seed: int) -> "BaseSampler":
        from optuna.samplers import TPESampler

        return TPESampler(n_startup_trials=1, multivariate=True, constant_liar=True, seed=seed)
