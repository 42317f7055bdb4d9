"""The frame of evolutionary algorithms: a generation is asked, told, selected from and bred."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.design import Kinds, centred_design
from evomerge.samplers.generational import Generational, Point
from evomerge.samplers.ledger import Told
from evomerge.samplers.recombination import Recombination

PATIENCE = 20
"""Rounds of breeding without a full generation of new points before repeats are let through."""


class PopulationBased(Generational):
    """Generation 0 is the centred design; each later one is bred whole when the last is told.

    Results are taken in the order of ids. The random numbers of a generation follow from the seed
    and the generation's number. A point is not proposed twice in a run, unless all neighbours are
    exhausted.
    """

    def __init__(
        self, problem: Problem, *, seed: int, first_generation: int, generation: int
    ) -> None:
        """Start with the centred design.

        Args:
            problem: dimensions, anchors, number of objectives and budget.
            seed: of everything random.
            first_generation: points of generation 0.
            generation: children of every later one.
        """
        self._kinds = Kinds.of(problem)
        self._recombination = Recombination(self._kinds)
        self._seed = seed
        self._n_children = generation
        super().__init__(problem.n_objectives, self._start(problem, first_generation))
        self._proposed = set(self._upcoming)

    @abstractmethod
    def _take(self, generation: Sequence[Told]) -> None:
        """Choose the survivors of the population and a generation, which comes by id."""

    @abstractmethod
    def _children(self, places: Sequence[int], rng: np.random.Generator) -> FloatArray:
        """Cross one child for each of some places in the generation, a row each."""

    def _mutated(self, children: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Mutate `(n_children, n_dimensions)` points into others, as they are proposed."""
        return self._recombination.mutated(children, rng)

    def _start(self, problem: Problem, n: int) -> list[Point]:
        """The n points of generation 0."""
        return [tuple(row) for row in centred_design(problem, n, self._seed).tolist()]

    def _breed(self) -> list[Point]:
        rng = np.random.default_rng([self._seed, 0xE0, self._generation])
        children: dict[int, Point] = {}
        for turn in range(PATIENCE + 1):
            open_places = [i for i in range(self._n_children) if i not in children]
            bred = self._mutated(self._children(open_places, rng), rng)
            for _ in range(turn // 3):  # nothing new near the parents: look farther away
                bred = self._mutated(bred, rng)
            for place, row in zip(open_places, bred.tolist(), strict=True):
                u = tuple(row)
                if u not in self._proposed or turn == PATIENCE:
                    children[place] = u
                    self._proposed.add(u)
            if len(children) == self._n_children:
                break
        return [children[place] for place in range(self._n_children)]
