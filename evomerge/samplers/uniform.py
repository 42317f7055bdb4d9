"""Random search: the anchors, then uniform points of the whole cube."""

from collections.abc import Sequence

import numpy as np

from evomerge.datatypes import Candidate, Evidence, Problem
from evomerge.samplers.design import Kinds, proposal
from evomerge.samplers.ledger import Ledger


class UniformSampler:
    """Learns nothing, never waits: the baseline that every other sampler has to beat.

    All candidates belong to generation 0.
    """

    def __init__(self, problem: Problem, *, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 0x0411F])
        self._kinds = Kinds.of(problem)
        self._anchors = list(problem.anchors)
        self._ledger = Ledger(problem.n_objectives)

    @property
    def generation_size(self) -> None:
        """It never waits for losses."""
        return

    def ask(self) -> Candidate:
        """The next candidate, always at once."""
        if self._anchors:
            return self._ledger.ask(generation=0, u=self._anchors.pop(0))
        u = proposal(self._rng.random(len(self._kinds.binary)), self._kinds)
        return self._ledger.ask(generation=0, u=u)

    def tell(
        self,
        candidate: Candidate,
        losses: Sequence[float] | None,
        evidence: Evidence | None = None,
    ) -> None:
        """Check and forget; raises `ValueError` for a candidate that is not pending."""
        self._ledger.tell(candidate, losses, evidence)
