"""Quasi-random search: the anchors, then a scrambled Sobol sequence over the whole cube."""

from collections.abc import Sequence

import numpy as np

from evomerge.datatypes import Candidate, Evidence, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import Kinds, proposal
from evomerge.samplers.ledger import Ledger

MAX_DIMENSIONS = 21201
"""As many as there are direction numbers (Joe and Kuo 2008)."""

CHUNK = 64
"""Points drawn at once: a power of two keeps the sequence balanced and scipy silent."""


class SobolSampler:
    """Covers the cube evenly; learns nothing, never waits. A baseline and a design for surrogates.

    All candidates belong to generation 0. `scramble=False` gives the plain sequence, which starts
    in the corner 0 and ignores the seed.
    """

    def __init__(self, problem: Problem, *, seed: int, scramble: bool = True) -> None:
        """Start at the problem's anchors.

        Raises:
            ConfigError: more dimensions than the Sobol sequence has.
        """
        from scipy.stats import qmc

        d = len(problem.dimensions)
        if d > MAX_DIMENSIONS:
            raise ConfigError(
                f"the sobol sampler takes at most {MAX_DIMENSIONS} dimensions, but the space has "
                f"{d}: use the uniform sampler or a space with fewer dimensions"
            )
        rng = np.random.default_rng([seed, 0x50B01])
        self._sequence = qmc.Sobol(d, scramble=scramble, rng=rng)
        self._upcoming: list[Sequence[float]] = list(problem.anchors)
        self._kinds = Kinds.of(problem)
        self._ledger = Ledger(problem.n_objectives)

    @property
    def generation_size(self) -> None:
        """It never waits for losses."""
        return

    def ask(self) -> Candidate:
        """The next candidate, always at once."""
        if not self._upcoming:
            self._upcoming = [proposal(x, self._kinds) for x in self._sequence.random(CHUNK)]
        return self._ledger.ask(generation=0, u=self._upcoming.pop(0))

    def tell(
        self,
        candidate: Candidate,
        losses: Sequence[float] | None,
        evidence: Evidence | None = None,
    ) -> None:
        """Check and forget; raises `ValueError` for a candidate that is not pending."""
        self._ledger.tell(candidate, losses, evidence)
