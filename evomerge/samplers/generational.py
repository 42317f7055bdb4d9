"""The frame of samplers that wait: a generation is asked, wholly told, and learnt from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from evomerge.datatypes import Candidate, Evidence
from evomerge.samplers.ledger import Ledger, Told

Point = tuple[float, ...]


class Generational(ABC):
    """Asks for the points of a generation, then waits until all of them are told.

    Results are taken in the order of ids, so that it does not matter which worker is first.
    """

    def __init__(self, n_objectives: int, first: Sequence[Point]) -> None:
        """Begin with the points of generation 0, as they are proposed."""
        self._ledger = Ledger(n_objectives)
        self._generation = 0
        self._upcoming = list(first)
        self._n_current = len(self._upcoming)

    @property
    def generation_size(self) -> int:
        """How many candidates are asked for before the next generation is made."""
        return self._n_current

    def ask(self) -> Candidate | None:
        """The next candidate, or None while a wholly asked generation is not wholly told."""
        if not self._upcoming:
            return None
        return self._ledger.ask(self._generation, self._upcoming.pop(0))

    def tell(
        self,
        candidate: Candidate,
        losses: Sequence[float] | None,
        evidence: Evidence | None = None,
    ) -> None:
        """Take in losses; after the last of a generation the next one is made.

        Raises:
            ValueError: the candidate is not pending or its losses are not finite.
        """
        self._ledger.tell(candidate, losses, evidence)
        if not self._upcoming and self._ledger.n_pending == 0:
            self._take(self._ledger.close_generation())
            self._generation += 1
            self._upcoming = self._breed()
            self._n_current = len(self._upcoming)

    @abstractmethod
    def _take(self, generation: Sequence[Told]) -> None:
        """Learn from a whole generation, which comes by id."""

    @abstractmethod
    def _breed(self) -> list[Point]:
        """The points of the generation that begins, one at least."""
