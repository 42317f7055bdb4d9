"""Who was asked and who was told: the bookkeeping that every sampler shares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.datatypes import Candidate, Evidence

Losses = tuple[float, ...] | None
"""What a candidate was told: one finite loss per objective, or None for a failure."""


@dataclass(frozen=True, slots=True)
class Told:
    """A candidate, its losses and what they rest on, if that is known."""

    candidate: Candidate
    losses: Losses
    evidence: Evidence | None = None


class Ledger:
    """Hands out ids from 0 and matches every tell with its ask."""

    def __init__(self, n_objectives: int) -> None:
        self._n_objectives = n_objectives
        self._n_asked = 0
        self._pending: dict[int, Candidate] = {}
        self._told: list[Told] = []

    def ask(self, generation: int, u: Sequence[float]) -> Candidate:
        """Give a point the next id and expect it to be told."""
        candidate = Candidate(id=self._n_asked, generation=generation, u=tuple(map(float, u)))
        self._n_asked += 1
        self._pending[candidate.id] = candidate
        return candidate

    def readmit(self, candidate: Candidate) -> None:
        """Expect a candidate to be told that an earlier process was given as its next.

        Raises:
            ValueError: it is not the next.
        """
        if candidate.id != self._n_asked:
            raise ValueError(f"candidate {self._n_asked} is next, not {candidate.id}")
        self._n_asked += 1
        self._pending[candidate.id] = candidate

    def tell(
        self,
        candidate: Candidate,
        losses: Sequence[float] | None,
        evidence: Evidence | None = None,
    ) -> Told:
        """Accept losses for a candidate that is pending.

        Raises:
            ValueError: the candidate was not asked here or was told before, or the losses are not
                one finite number per objective.
        """
        asked = self._pending.get(candidate.id)
        # the rung is the caller's: a candidate may have climbed since it was asked
        if asked is None or (asked.generation, asked.u) != (candidate.generation, candidate.u):
            raise ValueError(f"candidate {candidate.id} was not asked or has been told before")
        if losses is not None:
            losses = tuple(map(float, losses))
            if len(losses) != self._n_objectives or not all(map(math.isfinite, losses)):
                raise ValueError(
                    f"candidate {candidate.id} needs {self._n_objectives} finite losses or None, "
                    f"got {losses}"
                )
        del self._pending[candidate.id]
        told = Told(asked, losses, evidence)
        self._told.append(told)
        return told

    @property
    def n_asked(self) -> int:
        """How many candidates were asked: the next one's id."""
        return self._n_asked

    @property
    def pending(self) -> tuple[Candidate, ...]:
        """What was asked and not told, in the order of ids."""
        return tuple(self._pending.values())

    @property
    def n_pending(self) -> int:
        """How many candidates were asked and not told."""
        return len(self._pending)

    def close_generation(self) -> list[Told]:
        """Return what was told since the last call.

        By id: what a sampler learns must not depend on which worker finished first.
        """
        generation, self._told = sorted(self._told, key=lambda told: told.candidate.id), []
        return generation
