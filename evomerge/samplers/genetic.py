"""A plain genetic algorithm on one loss, as Mergenetic searches with (Minut et al. 2025).

Simulated binary crossover, polynomial mutation, binary tournaments, survival of the best.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import DECIMALS, centred_design
from evomerge.samplers.ledger import Told
from evomerge.samplers.options import checked_population
from evomerge.samplers.population_based import PopulationBased
from evomerge.samplers.scalarization import scalarizer

CROSSOVER = 0.9
"""Probability that a pair of parents is crossed."""

_FAILED = np.inf


class GeneticSampler(PopulationBased):
    """Minimises one loss, or several as one; the best of parents and children survive.

    With `levels`, real coordinates other than the anchors' lie on an even grid: crossover rounds to
    it, and what mutation moves goes to another level (Mergenetic's discrete mode leaves its numbers
    between the levels). On a coarse grid two searches ask the same merges more often, and known
    ones cost nothing. Failed candidates rank last.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        population: int | None = None,
        levels: int | None = None,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        scalarization: str = "weighted",
    ) -> None:
        """Start with the centred design.

        Args:
            problem: dimensions, anchors, number of objectives and budget.
            seed: of everything random.
            population: candidates of a generation; anchors beyond it are left out. By default a
                twentieth of the budget within 12 and 40, but no fewer than there are anchors.
            levels: values that a real coordinate takes, both ends of its range among them; 11 are
                steps of a tenth. Any value if left out.
            weights: of the objectives, in their order or by name; only their ratios matter.
            scalarization: `weighted`, `tchebycheff` or `percentile`.

        Raises:
            ConfigError: an option is out of range, or there are several objectives and no weights.
        """
        if levels is not None and (
            isinstance(levels, bool) or not isinstance(levels, int) or levels < 2
        ):
            raise ConfigError(
                f"levels must be a whole number of at least 2, but got {levels!r}: 11 are steps of "
                f"a tenth, and without levels any value is taken"
            )
        self._levels = levels
        self._scalarizer = scalarizer(problem, weights, scalarization, sampler="genetic")
        self._size = checked_population("genetic", population) or max(
            default_population(problem.budget), len(problem.anchors)
        )
        n, m = len(problem.dimensions), problem.n_objectives
        self._X, self._F = np.empty((0, n)), np.empty((0, m))  # the population, best first
        self._is_feasible = np.zeros(0, dtype=np.bool_)
        self._history = np.empty((0, m))
        super().__init__(problem, seed=seed, first_generation=self._size, generation=self._size)

    def _start(self, problem: Problem, n: int) -> list[tuple[float, ...]]:
        if self._levels is None:
            return super()._start(problem, n)
        # on a grid points coincide: take the first different ones of a longer design
        design = centred_design(problem, 4 * n, self._seed)
        n_anchors = len(dict.fromkeys(problem.anchors))
        design[n_anchors:] = self._on_grid(design[n_anchors:])
        rows = [tuple(row) for row in design.tolist()]
        return (list(dict.fromkeys(rows)) + rows)[:n]

    def _take(self, generation: Sequence[Told]) -> None:
        no_losses = (0.0,) * self._F.shape[1]
        X = np.concatenate([self._X, [told.candidate.u for told in generation]])
        F = np.concatenate([self._F, [told.losses or no_losses for told in generation]])
        succeeds = [told.losses is not None for told in generation]
        is_feasible = np.concatenate([self._is_feasible, succeeds])
        new = F[len(self._F) :][succeeds]
        self._history = np.concatenate([self._history, new])
        loss = np.full(len(X), _FAILED)
        # of parents too: some kinds compare with all that is known by now
        loss[is_feasible] = self._scalarizer.losses(F[is_feasible], self._history)
        best = np.argsort(loss, kind="stable")[: self._size]
        self._X, self._F, self._is_feasible = X[best], F[best], is_feasible[best]

    def _children(self, places: Sequence[int], rng: np.random.Generator) -> FloatArray:
        n_matings = -(-len(places) // 2)
        # best first: the smaller index wins
        parents = self._X[rng.integers(len(self._X), size=(2, 2, n_matings)).min(axis=0)]
        crosses = rng.random(n_matings) < CROSSOVER
        crossed = np.where(crosses[:, None], self._recombination.crossed(parents, rng), parents)
        return self._on_grid(crossed.reshape(-1, parents.shape[2])[: len(places)])

    def _mutated(self, children: FloatArray, rng: np.random.Generator) -> FloatArray:
        return self._moved_on_grid(children, super()._mutated(children, rng))

    def _on_grid(self, X: FloatArray) -> FloatArray:
        """`(n, n_dimensions)` points with reals at their nearest levels."""
        if self._levels is None:
            return X
        steps = self._levels - 1
        # nine digits first: halfway between two levels, last bits must not decide
        nearest = np.round(np.floor(np.round(X * steps, DECIMALS) + 0.5) / steps, DECIMALS)
        return np.where(self._kinds.real, nearest, X)

    def _moved_on_grid(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """`after` on the grid, at least one level from `before` where it moved at all."""
        if self._levels is None:
            return after
        written = self._on_grid(after)
        stuck = (written == before) & (after != before)
        step = np.sign(after - before) / (self._levels - 1)
        moved = self._on_grid(np.clip(before + step, 0.0, 1.0))
        return np.where(self._kinds.real & stuck, moved, written)


def default_population(budget: int) -> int:
    """A twentieth of the budget within 12 and 40: best in 24 dimensions up to 3,000 (measured)."""
    return min(max(budget // 20, 12), 40)
