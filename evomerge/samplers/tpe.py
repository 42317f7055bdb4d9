"""Tree-structured Parzen estimator: densities of the good and of the other points.

Bergstra et al. 2011; several objectives: Ozaki et al. 2022; with one density over all dimensions
(multivariate): Falkner et al. 2018. The algorithm is Optuna's.
"""

from typing import TYPE_CHECKING

from evomerge.datatypes import Problem
from evomerge.samplers.optuna_study import OptunaBased, checked_start

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

START = 8
"""Points of the centred design that come first (measured: experiments/LOG.md)."""


class TpeSampler(OptunaBased):
    """Proposes the point that is likeliest under the good tenth against the rest, of 24 drawn.

    For any number of objectives and kind of dimension, and cheap: it takes thousands of told
    candidates. What is pending counts as bad (constant liar), which keeps parallel asks apart. With
    several objectives the good ones are the first ranks of domination, and of the last rank those
    that cover the most hypervolume.
    """

    def __init__(self, problem: Problem, *, seed: int, start: int | None = None) -> None:
        """Start with the centred design.

        Args:
            problem: dimensions, anchors, number of objectives and budget.
            seed: of everything random.
            start: points of the design (the anchors at least) before the densities are used; by
                default START, but at most a third of the budget.

        Raises:
            ConfigError: `start` is not a whole number of at least 1.
        """
        n_start = checked_start("tpe", start, START, problem.budget)
        super().__init__(problem, seed=seed, n_start=n_start)

    def _new_sampler(self, seed: int) -> "BaseSampler":
        from optuna.samplers import TPESampler

        # multivariate is not Optuna's default with several objectives, but better and cheaper
        return TPESampler(n_startup_trials=1, multivariate=True, constant_liar=True, seed=seed)
