"""Model Swarms: particle swarm optimisation on one loss (Feng et al. 2024, arXiv 2410.11163)."""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.archive_based import checked_range
from evomerge.samplers.ledger import Told
from evomerge.samplers.options import checked_population
from evomerge.samplers.population_based import PopulationBased
from evomerge.samplers.scalarization import scalarizer
from evomerge.samplers.swarm import (
    SHORTEST_STEP,
    Pulls,
    default_swarm,
    flown,
    pool_start,
    scattered,
    step_to,
)

INERTIA, PERSONAL_BEST, BEST = 0.4, 0.3, 0.3
"""The phi of what a particle flies by, and of what it flies to."""

STRAY = 5
"""Generations without a better personal best after which a particle returns to it, at rest."""


class ModelSwarmsSampler(PopulationBased):
    """Minimises one loss, or several as one, by particles that share what they have found.

    Published for the weights of models; here a particle is a recipe. The swarm is the anchors, the
    experts alone and points between two of them (without experts the centred design). A particle
    flies by its inertia, to its own best, to the swarm's best and away from the worst of the
    generation, as `swarm.flown` has it. A failed particle has found nothing and flies on.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        population: int | None = None,
        step: float = 1.0,
        repulsion: float = 0.1,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        scalarization: str = "weighted",
    ) -> None:
        """Start with the pool.

        Args:
            problem: dimensions, anchors, number of objectives and budget; experts where known.
            seed: of everything random.
            population: particles; anchors and experts beyond it are left out. By default a
                twentieth of the budget within 10 and 20, but enough for anchors and experts within
                a quarter of the budget, and never fewer than there are anchors.
            step: share of the velocity that is flown in generation 1; later ones have .95 of the
                step before, and .1 at least.
            repulsion: the phi of the worst. As published it is .3; in pools of 8 and 20 experts .1
                came nearer to the best merge with 40 to 400 evaluations (LOG.md).
            weights: of the objectives, in their order or by name; only their ratios matter.
            scalarization: `weighted`, `tchebycheff` or `percentile`.

        Raises:
            ConfigError: an option is out of range, or there are several objectives and no weights.
        """
        checked_range("step", step, low=SHORTEST_STEP, high=1.0)
        checked_range("repulsion", repulsion, low=0.0, high=1.0)
        self._pulls = Pulls(INERTIA, PERSONAL_BEST, BEST, repulsion)
        self._scalarizer = scalarizer(problem, weights, scalarization, sampler="model_swarms")
        size = checked_population("model_swarms", population) or default_swarm(problem)
        self._first_step = step
        n, m = len(problem.dimensions), problem.n_objectives
        self._X = np.zeros((size, n))
        self._V = np.zeros((size, n))
        self._P = np.zeros((size, n))  # personal bests and their losses, if there are any
        self._F = np.zeros((size, m))
        self._has_best = np.zeros(size, dtype=np.bool_)
        self._best = self._worst = np.zeros(n)
        self._idle = np.zeros(size, dtype=np.int64)
        self._history = np.empty((0, m))
        super().__init__(problem, seed=seed, first_generation=size, generation=size)

    def _start(self, problem: Problem, n: int) -> list[tuple[float, ...]]:
        return [tuple(row) for row in pool_start(problem, n, self._seed).tolist()]

    def _take(self, generation: Sequence[Told]) -> None:
        X = np.array([told.candidate.u for told in generation])
        if self._generation == 0:  # each flies towards another
            rng = np.random.default_rng([self._seed, 0x5BA4])
            self._V = X[rng.integers(len(X), size=len(X))] - X
            self._P = X.copy()
        else:  # what was flown, after walls and repeats had their say
            self._V = (X - self._X) / self._step()
        self._X = X
        succeeds = np.array([told.losses is not None for told in generation])
        no_losses = (0.0,) * self._F.shape[1]
        F = np.array([told.losses or no_losses for told in generation])
        self._history = np.concatenate([self._history, F[succeeds]])
        # personal bests too: some kinds compare with all that is known by now
        both = self._scalarizer.losses(np.concatenate([self._F, F]), self._history)
        before = np.where(self._has_best, both[: len(X)], np.inf)
        now = np.where(succeeds, both[len(X) :], np.inf)
        improves = now < before
        self._P[improves], self._F[improves] = X[improves], F[improves]
        self._has_best |= improves
        self._idle = np.where(improves, 0, self._idle + 1)
        strays = self._has_best & (self._idle >= STRAY)
        self._X, self._V = self._X.copy(), self._V.copy()
        self._X[strays], self._V[strays], self._idle[strays] = self._P[strays], 0.0, 0
        if not self._has_best.any():
            return
        self._best = self._P[np.argmin(np.minimum(before, now))].copy()
        # who has found nothing has nowhere to return to but the swarm's best
        self._P[~self._has_best] = self._best
        if succeeds.any():
            self._worst = X[np.argmax(np.where(succeeds, now, -np.inf))]

    def _step(self) -> float:
        """Share of the velocity that is flown to the present generation."""
        return step_to(self._generation, self._first_step)

    def _children(self, places: Sequence[int], rng: np.random.Generator) -> FloatArray:
        X = self._X[list(places)]
        if not self._has_best.any():
            return scattered(X, self._kinds, rng)
        return flown(
            X,
            self._V[list(places)],
            self._P[list(places)],
            self._best,
            self._worst,
            pulls=self._pulls,
            step=self._step(),
            kinds=self._kinds,
            rng=rng,
        )

    def _mutated(self, children: FloatArray, rng: np.random.Generator) -> FloatArray:
        known = np.array([tuple(row) in self._proposed for row in children.tolist()])
        return np.where(known[:, None], super()._mutated(children, rng), children)
