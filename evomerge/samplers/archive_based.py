"""The frame of samplers that breed a generation from an archive of what was found so far."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import SPREAD, Kinds, centred_design, proposal
from evomerge.samplers.generational import Generational, Point
from evomerge.samplers.ledger import Told
from evomerge.samplers.options import is_number
from evomerge.samplers.variation import mutated

START = 24
"""Points of generation 0 where the budget is four times that or more."""

_TRIES = 20
"""How often a child is bred again that was proposed before, until it is let through."""


class ArchiveBased(Generational):
    """Generation 0 are the known-good merges; each later one is bred from the archive, then told.

    Generation 0: the anchors, the experts alone where the problem knows them, then the centred
    design. Results are taken in the order of ids. Failed candidates never enter the archive; while
    it is empty, children are drawn around the anchors. A point is not proposed twice in a run,
    unless `_TRIES` children in a row were known.
    """

    def __init__(self, problem: Problem, *, seed: int, generation: int | None) -> None:
        """Prepare generation 0.

        Args:
            problem: dimensions, anchors, number of objectives and budget.
            seed: of everything random.
            generation: children bred before the next look at losses; a twenty-fifth of the budget
                within 4 and 32 if left out.

        Raises:
            ConfigError: `generation` is not a whole number of at least 1.
        """
        checked_range("generation", 1 if generation is None else generation, low=1, whole=True)
        self._problem = problem
        self._kinds = Kinds.of(problem)
        self._seed = seed
        self._size = generation or min(max(problem.budget // 25, 4), 32)
        self._experts = [
            tuple(proposal(np.array(point, dtype=np.float64), self._kinds))
            for point in problem.experts
        ]
        super().__init__(problem.n_objectives, self._start())
        self._proposed = set(self._upcoming)

    def _take(self, generation: Sequence[Told]) -> None:
        self._learn([told for told in generation if told.losses is not None])

    @abstractmethod
    def _learn(self, generation: Sequence[Told]) -> None:
        """Put the successes of a generation, by id, into the archive."""

    @abstractmethod
    def _child(self, rng: np.random.Generator) -> FloatArray | None:
        """Breed a point, shape `(n_dimensions,)`; None from an empty archive."""

    def _start(self) -> list[Point]:
        known = list(dict.fromkeys(tuple(map(float, anchor)) for anchor in self._problem.anchors))
        n_anchors = len(known)
        written = {tuple(proposal(np.array(anchor), self._kinds)) for anchor in known}
        known += [expert for expert in dict.fromkeys(self._experts) if expert not in written]
        n = max(self._size, len(known), min(START, self._problem.budget // 4))
        design = centred_design(self._problem, n, self._seed).tolist()
        points = known + [tuple(row) for row in design[n_anchors:]]
        return list(dict.fromkeys(points))[:n]

    def _breed(self) -> list[Point]:
        rng = np.random.default_rng([self._seed, 0xA5C, self._generation])
        children: list[Point] = []
        for _ in range(self._size):
            for _ in range(_TRIES):
                child = self._child(rng)
                if child is None:
                    anchor = np.array(
                        self._problem.anchors[rng.integers(len(self._problem.anchors))]
                    )
                    child = mutated(anchor, self._kinds, SPREAD, rng)
                u = tuple(proposal(child, self._kinds))
                if u not in self._proposed:
                    break
            children.append(u)
            self._proposed.add(u)
        return children


def checked_range(
    name: str, value: object, *, low: float, high: float = math.inf, whole: bool = False
) -> None:
    """Check that an option is a finite number, or a whole one, within `low` and `high`.

    Raises:
        ConfigError: it is not.
    """
    fits = is_number(value) and (not whole or isinstance(value, int))
    if fits and isinstance(value, int | float) and low <= value <= high and value < math.inf:
        return
    kind = "a whole number" if whole else "a number"
    upper = "" if math.isinf(high) else f" and at most {high:g}"
    raise ConfigError(
        f"{name} must be {kind} of at least {low:g}{upper}, but got {value!r}: leave it out for "
        f"the default"
    )
