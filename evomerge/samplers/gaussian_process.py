"""Gaussian processes and the hypervolume that a point is expected to gain (Daulton et al. 2020).

The models (Matern 5/2, a length scale per dimension, noise estimated) and the log expected
improvement (Ament et al. 2023) are Optuna's. BoTorch would add known noise for each candidate,
correlated objectives, several fidelities and true batches; with neither in play it was measured to
find as much hypervolume in one and a half to two and a half times the time.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray, Problem
from evomerge.pareto import non_dominated
from evomerge.samplers.history_based import View
from evomerge.samplers.optuna_study import OptunaBased, checked_start, rescaled

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

START = 16
"""Points of the centred design that come first."""

MOST_TOLD = 300
"""Candidates that the models are fitted to at most."""

LARGEST_FRONT = {1: MOST_TOLD, 2: MOST_TOLD, 3: 150, 4: 40}
"""For each number of objectives, up to how many points on the front the hypervolume is computed: it
is cut into boxes, once for each of 64 samples of what is pending (.02 s each at these fronts), and
each box takes 1 MB of memory (experiments/LOG.md)."""

RHO = 0.05
"""Share of the sum in the augmented Tchebycheff function (Knowles 2006)."""

MOST_DIFFERENCES = 3_200_000
"""Squared differences between the points' coordinates at most: a fit's time grows with them."""


class GaussianProcessSampler(OptunaBased):
    """Models each objective, and proposes where the hypervolume is expected to grow the most.

    For some hundred evaluations: few samplers need as few, but a proposal takes seconds. With five
    objectives or more, and with three and four once the front is large, each proposal is by the
    expected improvement of another augmented Tchebycheff function of them (ParEGO, Knowles 2006).
    What is pending is averaged over what the models expect of it. Failed candidates are a little
    worse than the worst.

    The models know at most 300 candidates, fewer in many dimensions (223 in 64): the front, the
    latest first, then the latest others.
    """

    def __init__(self, problem: Problem, *, seed: int, start: int | None = None) -> None:
        """Start with the centred design.

        Args:
            problem: dimensions, anchors, number of objectives and budget.
            seed: of everything random.
            start: points of the design (the anchors at least) before the models are used; by
                default START, but at most a third of the budget.

        Raises:
            ConfigError: `start` is not a whole number of at least 1.
        """
        n_start = checked_start("gaussian_process", start, START, problem.budget)
        super().__init__(problem, seed=seed, n_start=n_start)
        differences = MOST_DIFFERENCES // len(problem.dimensions)
        self._most_told = max(min(MOST_TOLD, math.isqrt(differences)), 50)
        self._singular_at: int | None = None

    @property
    def remarks(self) -> tuple[str, ...]:
        """Where the models do not say what they seem to say."""
        remarks = []
        if len(self._told) > self._most_told:
            remarks.append(
                f"the Gaussian process knows the front and the latest of what was told, "
                f"{self._most_told} candidates: nsga2 and tpe use all"
            )
        if self._singular_at is not None:
            remarks.append(
                f"the Gaussian process had no numerical solution at candidate "
                f"{self._singular_at}: it, and any later one like it, is from the centred design"
            )
        return tuple(remarks)

    def _new_sampler(self, seed: int) -> "BaseSampler":
        from optuna.samplers import GPSampler

        sampler = GPSampler(n_startup_trials=1, deterministic_objective=False, seed=seed)
        # Optuna's 2048, 10 and 128 take 2.3 times the time and eight times the memory, for the same
        # hypervolume on smooth problems and perhaps a few percent on rugged ones
        # (experiments/LOG.md). A version without these attributes is slower, and still right.
        sampler._n_preliminary_samples = 512
        sampler._n_local_search = 6
        sampler._n_qmc_samples_ehvi = 64
        return sampler

    def _propose(self, view: View, rng: np.random.Generator) -> FloatArray:
        if len(view.ids) == 0:
            return self._designed(view.n_asked)
        n_failed = min(len(view.failed), self._most_told // 4)
        rows = _chosen(view.losses, self._most_told - n_failed)
        losses = rescaled(view.losses[rows])
        if non_dominated(losses).sum() > LARGEST_FRONT.get(losses.shape[1], 0):
            weighted = losses * rng.dirichlet(np.ones(losses.shape[1]))
            augmented = weighted.max(axis=1) + RHO * weighted.sum(axis=1)
            losses = rescaled(augmented[:, None])
        failed = view.failed[len(view.failed) - n_failed :]
        # twice the same row is singular
        pending = np.array(list(dict.fromkeys(map(tuple, view.pending.tolist()))))
        try:
            return self._asked(view.points[rows], losses, failed, pending, rng)
        except RuntimeError:  # torch's error of a covariance that is not positive definite
            if self._singular_at is None:
                self._singular_at = view.n_asked
            return self._designed(view.n_asked)


def _chosen(losses: FloatArray, n: int) -> NDArray[np.intp]:
    """Rows of at most `n` of the losses `(n_points, n_objectives)`: the front, then the latest."""
    if len(losses) <= n:
        return np.arange(len(losses))
    front = non_dominated(losses)
    latest_first = np.arange(len(losses))[::-1]
    ranked = np.concatenate([latest_first[front[::-1]], latest_first[~front[::-1]]])
    return np.sort(ranked[:n])
