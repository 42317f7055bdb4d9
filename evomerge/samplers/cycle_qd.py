"""CycleQD: one archive for each objective, each in turn the one to breed from.

Kuroki, Nakamura, Akiba and Tang 2024, "Agent Skill Acquisition for Large Language Models via
CycleQD" (arXiv 2410.14735).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.archive_based import ArchiveBased, checked_range
from evomerge.samplers.grid import bins_of, default_bins, elites, shares_of
from evomerge.samplers.ledger import Told
from evomerge.samplers.options import is_number
from evomerge.samplers.variation import inherited, mutated

SPREAD_OF_WEIGHTS = 0.01
"""Standard deviation of the parents' weights around 1, as published: nearly the average."""

PUSH = 0.1
"""Largest step towards an expert, in the expert's whole task vector, as published."""

RELEASED_RANGE = (0.5, 1.3)
"""What the worst and the best elite weigh in the released code: its formula adds .8 to .5."""

PAPER_RANGE = (0.5, 0.8)
"""What the paper means; it selected less and found less (measured: experiments/LOG.md)."""


class CycleQdSampler(ArchiveBased):
    """Spreads over the trade-offs between two objectives or more.

    In the archive of objective q a cell is a bin of each *other* objective, and keeps the best in
    q. Generation g breeds from archive q = g mod n_objectives; what it finds enters all archives.
    The grids span what was told so far, and are made anew after each generation.

    *Crossover* is task arithmetic of two elites: the mean with weights N(1, .01^2). As the weights
    sum to one, it does not matter where vectors start from. Bits and choices come whole from either
    parent.

    *Mutation*, translated. The paper adds U diag(.1 u_r S_r) V^T to each matrix, U S V^T being the
    singular value decomposition of an expert's delta and u_r uniform in [0, 1]: each direction of
    the expert's delta grows by up to a tenth of it. A coefficient moves all directions of its part
    of the model alike; so each coordinate of the expert moves by .1 u of the way from the base to
    the expert, u being drawn for each coordinate (`problem.origin` to `problem.experts`, in the
    dimensions that `problem.owners` gives it). The expert is the one that was best at q when it was
    evaluated alone, in generation 0. On top come normal steps, because such pushes only ever add,
    and the whole mutation where the problem knows no experts.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        bins: int | None = None,
        elite_range: Sequence[float] = RELEASED_RANGE,
        push: float = PUSH,
        mutation: float = 0.1,
        generation: int | None = None,
    ) -> None:
        """Start with the known-good merges, the experts among them.

        Args:
            problem: dimensions, anchors, number of objectives, budget; origin, experts, owners.
            seed: of everything random.
            bins: of each objective; 15 as published, but by default no more than give a cell for
                every ten evaluations of the budget.
            elite_range: what the worst and the best of an archive weigh when parents are drawn, in
                quality and in each other objective; by default RELEASED_RANGE, not PAPER_RANGE.
            push: largest step towards the expert, as a share of its coefficients.
            mutation: standard deviation of normal steps, in the unit cube.
            generation: children bred before the next look at losses.

        Raises:
            ConfigError: there is only one objective, or an option is out of range.
        """
        if problem.n_objectives < 2:
            raise ConfigError(
                f"cycle_qd trades objectives off and needs two at least, but there is "
                f"{problem.n_objectives}: use cma_es or m2n2"
            )
        checked_range("bins", 2 if bins is None else bins, low=2, high=1000, whole=True)
        checked_range("push", push, low=0.0, high=1.0)
        checked_range("mutation", mutation, low=0.0, high=1.0)
        self._low, self._high = _checked_elite_range(elite_range)
        self._bins = bins or default_bins(problem.budget, problem.n_objectives - 1)
        self._push, self._mutation = push, mutation
        self._points: list[tuple[float, ...]] = []
        self._losses: list[tuple[float, ...]] = []
        self._parents: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._probabilities: FloatArray = np.zeros(0)
        self._push_by = np.zeros(len(problem.dimensions))
        self._losses_of_experts: dict[int, tuple[float, ...]] = {}
        super().__init__(problem, seed=seed, generation=generation)

    def _learn(self, generation: Sequence[Told]) -> None:
        for told in generation:
            if told.losses is not None:
                self._points.append(told.candidate.u)
                self._losses.append(told.losses)
                if told.candidate.generation == 0:
                    self._notice_expert(told.candidate.u, told.losses)
        m = self._problem.n_objectives
        q = (self._generation + 1) % m  # the archive that the next generation breeds from
        if not self._losses:
            return
        L = np.array(self._losses)
        cells = np.delete(bins_of(shares_of(L), self._bins), q, axis=1)
        self._parents = elites(cells, L[:, q])
        self._probabilities = elite_probabilities(
            cells[self._parents], -L[self._parents, q], self._low, self._high
        )
        self._push_by = self._way_to_expert(q)

    def _notice_expert(self, u: tuple[float, ...], losses: tuple[float, ...]) -> None:
        for k, expert in enumerate(self._experts):
            # an expert may be an anchor too, and those are passed on with all their digits
            if np.abs(np.subtract(u, expert)).max() < 1e-8:
                self._losses_of_experts[k] = losses

    def _way_to_expert(self, q: int) -> FloatArray:
        """From the base to the expert that is best at q, shape `(n_dimensions,)`."""
        way = np.zeros(len(self._problem.dimensions))
        known = self._losses_of_experts
        if not known or self._problem.origin is None:
            return way
        best = min(sorted(known), key=lambda k: known[k][q])
        way = np.subtract(self._problem.experts[best], self._problem.origin)
        if self._problem.owners:
            way = np.where([owner == best for owner in self._problem.owners], way, 0.0)
        return np.where(self._kinds.real, way, 0.0)

    def _child(self, rng: np.random.Generator) -> FloatArray | None:
        n = len(self._parents)
        if n == 0:
            return None
        chosen = rng.choice(n, 2, replace=n == 1, p=self._probabilities)
        a, b = (np.array(self._points[self._parents[i]]) for i in chosen)
        omega = rng.normal(1.0, SPREAD_OF_WEIGHTS, 2)
        mean = (omega[0] * a + omega[1] * b) / omega.sum()
        pushed = mean + self._push * rng.random(len(a)) * self._push_by
        crossed = np.where(self._kinds.real, pushed, inherited(a, b, 0.5, rng))
        return mutated(crossed, self._kinds, self._mutation, rng)


def elite_probabilities(
    cells: NDArray[np.int64], quality: FloatArray, low: float, high: float
) -> FloatArray:
    """Draw elites that are good at everything: the product of n(quality) and n(bin) of each axis.

    n(v) goes from `low` for the worst elite to `high` for the best, and is 1 where all are equal.

    Args:
        cells: `(n_elites, n_axes)` numbers of bins, more being better.
        quality: `(n_elites,)`, more being better.
        low: n of the worst, above 0.
        high: n of the best.

    Returns:
        `(n_elites,)` probabilities.
    """
    values = np.column_stack([quality, cells.astype(np.float64)])
    if len(values) == 0:
        return np.zeros(0)
    # halves: the difference of two huge losses must not overflow
    worst, half_range = values.min(axis=0), values.max(axis=0) / 2 - values.min(axis=0) / 2
    share = (values / 2 - worst / 2) / np.where(half_range > 0.0, half_range, 1.0)
    n = np.where(half_range > 0.0, low + (high - low) * share, 1.0)
    p = (n / n.max(axis=0)).prod(axis=1)  # of many axes it would overflow or vanish otherwise
    return np.asarray(p / p.sum())


def _checked_elite_range(elite_range: Sequence[float]) -> tuple[float, float]:
    """Lower and upper end.

    Raises:
        ConfigError: it is not two numbers above 0 in rising order.
    """
    ends = list(elite_range) if isinstance(elite_range, list | tuple) else []
    if len(ends) == 2 and all(is_number(end) for end in ends) and 0 < ends[0] <= ends[1] <= 100:
        return float(ends[0]), float(ends[1])
    raise ConfigError(
        f"elite_range must be two numbers above 0 and at most 100 in rising order, but got "
        f"{elite_range!r}: [0.5, 1.3] is the default"
    )
