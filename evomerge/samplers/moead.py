"""MOEA/D: one subproblem for each direction of a front (Zhang and Li 2007).

Of pymoo's there is one child at a time, made by a generator that cannot be replayed.
"""

from collections.abc import Sequence

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

FROM_NEIGHBOURS = 0.9
"""Probability that a subproblem's parents, and those its child may replace, are its neighbours;
else they are any (delta of Li and Zhang 2009)."""

MAX_REPLACED = 2
"""Subproblems that take the same child at most (n_r of Li and Zhang 2009)."""

SMALLEST_WEIGHT = 1e-6
"""For weights of 0, with which weakly dominated points would do as well."""


class MoeadSampler(PopulationBased):
    """Minimises several losses as many Tchebycheff problems that share what they find.

    Each subproblem keeps the best point known for its direction. A generation is a child of each,
    bred from two points of its neighbourhood; what is better then replaces what neighbours keep.
    Losses are normalised by the ideal point and the worst of what is kept. Failed candidates
    replace nothing and are replaced by any success.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        population: int | None = None,
        neighbours: int | None = None,
    ) -> None:
        """Start with the centred design, of which each subproblem takes the best.

        Args:
            problem: dimensions, anchors, number of objectives and budget.
            seed: of everything random.
            population: points of the design, anchors first; there are as many subproblems, and
                children of a generation, as make a full lattice of directions within it. By
                default a tenth of the budget within 12 and 100, but no fewer than there are
                anchors.
            neighbours: subproblems of a neighbourhood, itself among them. By default a quarter of
                all, but at least 4.

        Raises:
            ConfigError: there is one objective only, or an option is out of range.
        """
        if problem.n_objectives < 2:
            raise ConfigError(
                f"moead spreads over trade-offs between objectives and needs two at least, but "
                f"there is {problem.n_objectives}: use cma_es or nsga2"
            )
        size = checked_population("moead", population) or max(
            default_population(problem.budget), len(problem.anchors)
        )
        directions = reference_directions(problem.n_objectives, size)
        self._weights = np.maximum(directions, SMALLEST_WEIGHT)
        n = len(directions)
        wide = max(4, n // 4) if neighbours is None else neighbours
        if isinstance(wide, bool) or not isinstance(wide, int) or wide < 2:
            raise ConfigError(
                f"neighbours must be a whole number of at least 2, but got {neighbours!r}: leave "
                f"it out for a quarter of the population"
            )
        apart = np.round(((directions[:, None] - directions) ** 2).sum(axis=2), DECIMALS)
        self._neighbours = np.argsort(apart, axis=1, kind="stable")[:, :wide]
        self._X = np.empty((0, len(problem.dimensions)))  # what each subproblem keeps
        self._F = np.full((n, problem.n_objectives), np.inf)
        self._ideal = np.full(problem.n_objectives, np.inf)
        super().__init__(problem, seed=seed, first_generation=size, generation=n)

    def _take(self, generation: Sequence[Told]) -> None:
        told = [(t.candidate.u, t.losses) for t in generation if t.losses is not None]
        if told:
            self._ideal = np.minimum(self._ideal, np.min([losses for _, losses in told], axis=0))
        if self._generation == 0:
            places = np.arange(len(self._F)) % len(generation)
            self._X = np.array([t.candidate.u for t in generation])[places]
            if told:
                F = np.array([losses for _, losses in told])
                best = self._tchebycheff(F[None], self._weights[:, None], F).argmin(axis=1)
                self._X, self._F = np.array([u for u, _ in told])[best], F[best]
            return
        rng = np.random.default_rng([self._seed, 0x30EAD, self._generation])
        for place, told_child in enumerate(generation):
            everywhere = rng.random() >= FROM_NEIGHBOURS
            order = rng.permutation(len(self._F) if everywhere else self._neighbours.shape[1])
            if told_child.losses is None:
                continue
            rows = order if everywhere else self._neighbours[place][order]
            f = np.array(told_child.losses)
            known = np.isfinite(self._F[:, 0])
            scale = np.concatenate([self._F[known], f[None]])
            new = self._tchebycheff(f[None], self._weights[rows], scale)
            kept = np.full(len(rows), np.inf)
            kept[known[rows]] = self._tchebycheff(
                self._F[rows[known[rows]]], self._weights[rows[known[rows]]], scale
            )
            takes = rows[new <= kept][:MAX_REPLACED]
            self._X[takes], self._F[takes] = told_child.candidate.u, f

    def _children(self, places: Sequence[int], rng: np.random.Generator) -> FloatArray:
        pairs = np.array([self._mates(place, rng) for place in places]).T
        children = self._recombination.crossed(self._X[pairs], rng)
        first = rng.random(len(places)) < 0.5
        return np.asarray(np.where(first[:, None], children[0], children[1]))

    def _mates(self, place: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Two subproblems of a neighbourhood or of all."""
        if rng.random() < FROM_NEIGHBOURS:
            chosen = rng.choice(self._neighbours.shape[1], 2, replace=False)
            return np.asarray(self._neighbours[place][chosen])
        return np.asarray(rng.choice(len(self._F), 2, replace=False))

    def _tchebycheff(self, F: FloatArray, weights: FloatArray, known: FloatArray) -> FloatArray:
        """Largest weighted loss of each row, from 0 at the ideal to 1 at the worst known (eq. 5).

        Maxima and quotients only: they are the same in the last bit on every processor.
        """
        size = np.maximum(np.abs(known).max(axis=0), np.abs(self._ideal))
        size = np.where(size > 0.0, size, 1.0)  # differences of huge losses must not overflow
        ideal = self._ideal / size
        span = known.max(axis=0) / size - ideal
        span = np.where(span > 1e-12, span, 1.0)
        return np.asarray((weights * ((F / size - ideal) / span)).max(axis=-1))
