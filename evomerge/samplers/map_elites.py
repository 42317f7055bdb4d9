"""MAP-Elites: the best merge of every kind (Mouret and Clune 2015, arXiv 1504.04909)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.archive_based import ArchiveBased, checked_range
from evomerge.samplers.grid import bins_of, default_bins, elites, shares_of
from evomerge.samplers.ledger import Told
from evomerge.samplers.variation import inherited, mutated


class MapElitesSampler(ArchiveBased):
    """Spreads over the cells of a grid of scores, for two objectives or more.

    The cells are bins of all objectives but one, of which each cell keeps the best; or of all of
    them, and a cell keeps the best in mean (of losses scaled to the range of the grid). The grid
    spans what was told so far; it is made anew, from all that was told, after each generation. The
    best at each objective is an elite too. Children come from elites drawn uniformly, by the
    iso+line operator (Vassiliades and Mouret 2018, eq. 2): x + N(0, iso^2 I) + N(0, line^2)
    (y - x), y being a second elite. Bits and choices come from y with the probability `line`; then
    one bit turns on average, and a choice now and then.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        quality: str | int | None = None,
        bins: int | None = None,
        iso: float = 0.05,
        line: float = 0.2,
        generation: int | None = None,
    ) -> None:
        """Start with the known-good merges.

        Args:
            problem: dimensions, anchors, number of objectives, budget.
            seed: of everything random.
            quality: the objective that is optimised within a cell, by name or number from 0; None:
                the cells are bins of all objectives.
            bins: of each axis; by default so many that there is a cell for every ten evaluations
                of the budget, within 2 and 15.
            iso: standard deviation of steps in all directions, in the unit cube.
            line: standard deviation of steps along the line to another elite, in its length.
            generation: children bred before the next look at losses.

        Raises:
            ConfigError: there is only one objective, or an option is out of range.
        """
        m = problem.n_objectives
        if m < 2:
            raise ConfigError(
                f"map_elites spreads over the values of objectives and needs two at least, but "
                f"there is {m}: use cma_es or m2n2"
            )
        checked_range("bins", 2 if bins is None else bins, low=2, high=1000, whole=True)
        checked_range("iso", iso, low=0.0, high=1.0)
        checked_range("line", line, low=0.0, high=1.0)
        self._quality = _checked_quality(problem, quality)
        n_axes = m if self._quality is None else m - 1
        self._bins = bins or default_bins(problem.budget, n_axes)
        self._iso, self._line = iso, line
        self._points: list[tuple[float, ...]] = []
        self._losses: list[tuple[float, ...]] = []
        self._elites: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        super().__init__(problem, seed=seed, generation=generation)

    def _learn(self, generation: Sequence[Told]) -> None:
        self._points += [told.candidate.u for told in generation]
        self._losses += [told.losses for told in generation if told.losses is not None]
        L = np.array(self._losses).reshape(-1, self._problem.n_objectives)
        if len(L) == 0:
            return
        shares = shares_of(L)
        cells, losses = bins_of(shares, self._bins), -shares.mean(axis=1)
        if self._quality is not None:
            cells, losses = np.delete(cells, self._quality, axis=1), L[:, self._quality]
        # a grid that spans what was told has no cell beyond its ends: these would be lost to a
        # point of the same bin that is better in the rest
        self._elites = np.union1d(elites(cells, losses), L.argmin(axis=0))

    def _child(self, rng: np.random.Generator) -> FloatArray | None:
        if len(self._elites) == 0:
            return None
        x, y = (np.array(self._points[i]) for i in rng.choice(self._elites, 2))
        along = x + self._line * rng.normal() * (y - x)
        crossed = np.where(self._kinds.real, along, inherited(x, y, self._line, rng))
        return mutated(crossed, self._kinds, self._iso, rng)


def _checked_quality(problem: Problem, quality: str | int | None) -> int | None:
    """The number of the objective.

    Raises:
        ConfigError: there is none of that name or number.
    """
    if quality is None:
        return None
    if isinstance(quality, str) and quality in problem.names:
        return problem.names.index(quality)
    if type(quality) is int and 0 <= quality < problem.n_objectives:
        return quality
    known = ", ".join(problem.names) or f"0 to {problem.n_objectives - 1}"
    raise ConfigError(
        f"quality must be one of the objectives ({known}), but got {quality!r}: name one, or leave "
        f"it out for a grid of all of them"
    )
