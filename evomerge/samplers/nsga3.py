"""NSGA-III: a population that follows reference directions (Deb and Jain 2014).

Survival is written out here: pymoo's sorts unstably, so that a run could not be replayed on
another processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import DECIMALS
from evomerge.samplers.ledger import Told
from evomerge.samplers.nsga2 import default_population
from evomerge.samplers.options import checked_population
from evomerge.samplers.population_based import PopulationBased
from evomerge.samplers.reference_directions import reference_directions

CROSSOVER = 0.9
"""Probability that a pair of parents is crossed, as in NSGA-II."""


@dataclass(frozen=True, slots=True, eq=False)
class _Population:
    """Points with what decides between them; a row each."""

    X: FloatArray
    F: FloatArray
    is_feasible: NDArray[np.bool_]
    rank: NDArray[np.int64]
    niche: NDArray[np.int64]
    distance: FloatArray


class Nsga3Sampler(PopulationBased):
    """Minimises several losses: NSGA-II's algorithm with niches for crowding distances.

    Of equally ranked points those survive whose directions, seen from the ideal point, have few
    survivors: with four and more objectives, where crowding distances say little, the front stays
    covered. Parents are drawn by the tournament of U-NSGA-III (Seada and Deb 2014): within a niche
    the better one, between niches any. Failed candidates survive only where there are too few
    successes, and lose every tournament against one.
    """

    def __init__(self, problem: Problem, *, seed: int, population: int | None = None) -> None:
        """Start with the centred design.

        Args:
            problem: dimensions, anchors, number of objectives and budget.
            seed: of everything random.
            population: candidates of a generation; anchors beyond it are left out. There are as
                many directions as make a full lattice within it. By default a tenth of the budget
                within 12 and 100, but no fewer than there are anchors.

        Raises:
            ConfigError: there is one objective only, or `population` is not a whole number of at
                least 4.
        """
        if problem.n_objectives < 2:
            raise ConfigError(
                f"nsga3 spreads over trade-offs between objectives and needs two at least, but "
                f"there is {problem.n_objectives}: use cma_es or nsga2"
            )
        self._size = checked_population("nsga3", population) or max(
            default_population(problem.budget), len(problem.anchors)
        )
        self._directions = reference_directions(problem.n_objectives, self._size)
        self._normalisation = _Normalisation(problem.n_objectives)
        self._population: _Population | None = None
        super().__init__(problem, seed=seed, first_generation=self._size, generation=self._size)

    def _take(self, generation: Sequence[Told]) -> None:
        from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

        no_losses = (0.0,) * self._directions.shape[1]
        X = np.array([told.candidate.u for told in generation])
        F = np.array([told.losses or no_losses for told in generation])
        is_feasible = np.array([told.losses is not None for told in generation])
        if self._population is not None:
            X = np.concatenate([self._population.X, X])
            F = np.concatenate([self._population.F, F])
            is_feasible = np.concatenate([self._population.is_feasible, is_feasible])
        rows = np.flatnonzero(is_feasible)
        rank = np.full(len(X), len(X))
        niche, distance = np.full(len(X), -1), np.zeros(len(X))
        survivors: list[int] = []
        if len(rows):
            fronts = NonDominatedSorting().do(F[rows], n_stop_if_ranked=self._size)
            fronts = [np.sort(front) for front in fronts]
            for number, front in enumerate(fronts):
                rank[rows[front]] = number
            N = self._normalisation.normalised(F[rows], fronts[0])
            niche[rows], distance[rows] = _associated(N, self._directions)
            rng = np.random.default_rng([self._seed, 0x2514, self._generation])
            survivors = self._niched([rows[front] for front in fronts], niche, distance, rng)
        survivors += np.flatnonzero(~is_feasible).tolist()[: self._size - len(survivors)]
        keep = np.array(survivors)
        self._population = _Population(
            X[keep], F[keep], is_feasible[keep], rank[keep], niche[keep], distance[keep]
        )

    def _niched(
        self,
        fronts: Sequence[NDArray[np.int64]],
        niche: NDArray[np.int64],
        distance: FloatArray,
        rng: np.random.Generator,
    ) -> list[int]:
        """Whole fronts while they fit; of the next one those in the emptiest niches (alg. 4)."""
        survivors: list[int] = []
        for front in fronts:
            if len(survivors) + len(front) <= self._size:
                survivors.extend(front.tolist())
                continue
            counts = np.bincount(niche[survivors], minlength=len(self._directions))
            waiting: dict[int, list[int]] = {}
            # nearest to its direction first
            for row in front[np.argsort(distance[front], kind="stable")].tolist():
                waiting.setdefault(int(niche[row]), []).append(row)
            while len(survivors) < self._size:
                niches = np.array(sorted(waiting))
                emptiest = niches[counts[niches] == counts[niches].min()]
                chosen = int(emptiest[rng.integers(len(emptiest))])
                members = waiting[chosen]
                # an empty niche takes its nearest, one that is represented any
                place = 0 if counts[chosen] == 0 else int(rng.integers(len(members)))
                survivors.append(members.pop(place))
                counts[chosen] += 1
                if not members:
                    del waiting[chosen]
            break
        return survivors

    def _children(self, places: Sequence[int], rng: np.random.Generator) -> FloatArray:
        assert self._population is not None  # a generation was told before one is bred
        X = self._population.X
        n_matings = -(-len(places) // 2)
        pairs = rng.integers(len(X), size=(2, 2, n_matings))  # contestants, parents
        parents = X[self._winners(pairs[0], pairs[1])]
        crosses = rng.random(n_matings) < CROSSOVER
        children = np.where(
            crosses[:, None], self._recombination.crossed(parents, rng), parents
        ).reshape(-1, X.shape[1])
        return np.asarray(children[: len(places)])

    def _winners(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        """The better of two rows each; the first where neither is (rows are drawn at random)."""
        p = self._population
        assert p is not None
        order = np.lexsort((p.distance, p.rank))  # mergesort: stable
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        differ = p.is_feasible[a] != p.is_feasible[b]
        b_wins = np.where(
            differ, p.is_feasible[b], (p.niche[a] == p.niche[b]) & (place[b] < place[a])
        )
        return np.where(b_wins, b, a)


class _Normalisation:
    """Losses from 0 at the ideal to 1 at the intercepts of the front's hyperplane (alg. 2)."""

    def __init__(self, n_objectives: int) -> None:
        self._ideal = np.full(n_objectives, np.inf)
        self._extremes = np.empty((0, n_objectives))

    def normalised(self, F: FloatArray, front: NDArray[np.int64]) -> FloatArray:
        """Learn from `(n, n_objectives)` losses and the rows of their first front; `(n, m)`."""
        m = F.shape[1]
        self._ideal = np.minimum(self._ideal, F.min(axis=0))
        # by its own extent first: of any magnitude, without overflow, in digits that are portable
        known = np.concatenate([self._extremes, F])
        size = np.abs(np.concatenate([known, self._ideal[None]])).max(axis=0)
        size = np.where(size > 0.0, size, 1.0)
        ideal = self._ideal / size
        nadir = (F[front] / size).max(axis=0) - ideal
        worst = (F / size).max(axis=0) - ideal
        nadir = np.where(nadir > 1e-9, nadir, np.where(worst > 1e-9, worst, 1.0))
        candidates = np.concatenate([self._extremes, F[front]])
        Z = np.round((candidates / size - ideal) / nadir, DECIMALS)
        # achievement scalarizing function: the point farthest along each axis
        weights = np.where(np.eye(m) > 0.0, 1.0, 1e6)
        nearest = [int((Z * w).max(axis=1).argmin()) for w in weights]
        self._extremes = candidates[nearest]
        return np.asarray((F / size - ideal) / (nadir * _intercepts(Z[nearest])))


def _intercepts(E: FloatArray) -> FloatArray:
    """Where the plane through `(m, m)` extreme points cuts the axes; 1 where it does not."""
    ones = np.ones(len(E))
    if abs(np.linalg.det(E)) < 1e-6:
        return ones
    inverse = np.linalg.solve(E, ones)
    if (inverse <= 1e-3).any() or (inverse >= 1e3).any():
        return ones
    return np.asarray(np.round(1.0 / inverse, DECIMALS))


def _associated(N: FloatArray, directions: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    """The direction nearest to each of `(n, m)` normalised losses, and how far it is."""
    unit = directions / np.sqrt((directions**2).sum(axis=1, keepdims=True))
    along = (N[:, None, :] * unit).sum(axis=2)
    across = N[:, None, :] - along[:, :, None] * unit
    # rounded: between directions alike the first, whatever the last bits
    distances = np.round(np.sqrt((across**2).sum(axis=2)), DECIMALS)
    return distances.argmin(axis=1), distances.min(axis=1)
