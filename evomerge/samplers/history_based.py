"""The frame of samplers that keep no state but what they were told."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import Candidate, Evidence, FloatArray, Problem
from evomerge.samplers.design import Kinds, centred_design, proposal
from evomerge.samplers.ledger import Ledger, Told

_TRIES = 20
"""How often a repeated point is moved before it is let through."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What is known when a candidate is asked for; rows in the order of ids.

    `points` `(n, n_dimensions)` and `losses` `(n, n_objectives)` are of the successes, with their
    `standard_errors` (NaN where unknown) and `n_items` (0 where unknown), both
    `(n, n_objectives)`. `ids` `(n,)` numbers the successes. `failed` and `pending` are points,
    `(n_failed, n_dimensions)` and `(n_pending, n_dimensions)`. `n_asked` counts all asks before
    this one.
    """

    ids: NDArray[np.int64]
    points: FloatArray
    losses: FloatArray
    standard_errors: FloatArray
    n_items: NDArray[np.int64]
    failed: FloatArray
    pending: FloatArray
    n_asked: int


class HistoryBased(ABC):
    """Starts with the centred design, then proposes from what was told, and never waits.

    A proposal is a function of the seed, of how many were asked before, of what was told (in any
    order) and of what is pending. All candidates belong to generation 0.
    """

    def __init__(self, problem: Problem, *, seed: int, n_start: int) -> None:
        """Prepare the start: the anchors, then points around them until there are `n_start`."""
        self._problem = problem
        self._kinds = Kinds.of(problem)
        self._seed = seed
        n = max(n_start, len(set(problem.anchors)))
        self._start = [tuple(row) for row in centred_design(problem, n, seed).tolist()]
        self._ledger = Ledger(problem.n_objectives)
        self._proposed: set[tuple[float, ...]] = set()
        self._told: dict[int, Told] = {}

    @property
    def generation_size(self) -> None:
        """It never waits for losses."""
        return

    def ask(self) -> Candidate:
        """The next candidate, always at once."""
        index = self._ledger.n_asked
        if index < len(self._start):
            u: Sequence[float] = self._start[index]
        else:
            rng = np.random.default_rng([self._seed, 0x415B, index])
            u = self._unseen(proposal(self._propose(self._view(), rng), self._kinds), rng)
        candidate = self._ledger.ask(generation=0, u=u)
        self._proposed.add(candidate.u)
        return candidate

    def readmit(self, candidate: Candidate) -> None:
        """Take the next candidate as it was asked before, without proposing it again."""
        self._ledger.readmit(candidate)
        self._proposed.add(candidate.u)

    def tell(
        self,
        candidate: Candidate,
        losses: Sequence[float] | None,
        evidence: Evidence | None = None,
    ) -> None:
        """Take in losses; raises `ValueError` for a candidate that is not pending."""
        self._told[candidate.id] = self._ledger.tell(candidate, losses, evidence)

    @abstractmethod
    def _propose(self, view: View, rng: np.random.Generator) -> FloatArray:
        """A point of the cube, shape `(n_dimensions,)`, bits and choices relaxed or not."""

    def _view(self) -> View:
        told = [self._told[i] for i in sorted(self._told)]
        d, m = len(self._problem.dimensions), self._problem.n_objectives
        successes = [t for t in told if t.losses is not None]
        errors = np.full((len(successes), m), np.nan)
        n_items = np.zeros((len(successes), m), dtype=np.int64)
        for row, t in enumerate(successes):
            if t.evidence is not None:
                errors[row] = t.evidence.standard_errors
                n_items[row] = t.evidence.n_items

        def points(candidates: list[Candidate]) -> FloatArray:
            return np.array([c.u for c in candidates], dtype=np.float64).reshape(-1, d)

        return View(
            ids=np.array([t.candidate.id for t in successes], dtype=np.int64),
            points=points([t.candidate for t in successes]),
            losses=np.array([t.losses for t in successes], dtype=np.float64).reshape(-1, m),
            standard_errors=errors,
            n_items=n_items,
            failed=points([t.candidate for t in told if t.losses is None]),
            pending=points(list(self._ledger.pending)),
            n_asked=self._ledger.n_asked,
        )

    def _unseen(self, u: list[float], rng: np.random.Generator) -> list[float]:
        """Move a point that was proposed before a little, the more the more often it has to be."""
        kinds = self._kinds
        for attempt in range(_TRIES):
            if tuple(u) not in self._proposed:
                break
            x = np.array(u)
            moved = np.clip(x + rng.normal(0.0, 0.01 * 1.3**attempt, len(x)), 0.0, 1.0)
            turns = rng.random(len(x)) < (attempt + 1) / len(x)
            x = np.where(kinds.real, moved, np.where(turns, rng.random(len(x)), x))
            u = proposal(x, kinds)
        return u
