"""Grid archives of quality diversity: cells of a few scores, each with its best point."""

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray

WORST_SHARE = 0.1
"""Share of the losses told that lie beyond the grid's worst edge: collapsed models must not stretch
it until all others share a bin."""


EVALUATIONS_PER_CELL = 10
"""Evaluations planned for each cell of a grid by default; with fewer, nothing competes (measured:
experiments/LOG.md). The 1,200 generations of CycleQD on 15 x 15 cells had five."""

MOST_BINS = 15
"""Bins of an axis at most, unless asked for more: as published for CycleQD."""


def default_bins(budget: int, n_axes: int) -> int:
    """Bins of each axis for a grid that a budget of evaluations can fill."""
    n_cells = budget / EVALUATIONS_PER_CELL
    return min(max(round(float(n_cells ** (1.0 / n_axes))), 2), MOST_BINS)


def shares_of(losses: FloatArray) -> FloatArray:
    """Place losses within the grid: 1 at the best of each objective, 0 at the grid's worst edge.

    That edge is the loss that WORST_SHARE of the rows exceed; these have negative shares.

    Args:
        losses: `(n_points, n_objectives)` finite losses, at least one point.

    Returns:
        `(n_points, n_objectives)` shares; 0 where all losses are equal.
    """
    ordered = np.sort(losses, axis=0)
    best, worst = ordered[0], ordered[int((1.0 - WORST_SHARE) * (len(losses) - 1))]
    worst = np.where(worst > best, worst, ordered[-1])
    # halves: the difference of two huge losses must not overflow
    half_range = worst / 2 - best / 2
    return np.asarray((worst / 2 - losses / 2) / np.where(half_range > 0.0, half_range, 1.0))


def bins_of(shares: FloatArray, n_bins: int) -> NDArray[np.int64]:
    """Number the bins from 0 for the worst to `n_bins` - 1 for the best.

    Args:
        shares: `(n_points, n_objectives)` places within the grid; negative ones are in bin 0.
        n_bins: of each objective, in equal steps that are closed at their better edge.

    Returns:
        `(n_points, n_objectives)` numbers of bins.
    """
    return np.asarray(np.clip(np.ceil(shares * n_bins) - 1, 0, n_bins - 1), dtype=np.int64)


def elites(cells: NDArray[np.int64], losses: FloatArray) -> NDArray[np.int64]:
    """Find the best point of every cell that has one.

    Args:
        cells: `(n_points, n_axes)` numbers of bins.
        losses: `(n_points,)` losses.

    Returns:
        Row numbers, in the order of cells; of equals the first, so that an elite stays until it is
        beaten.
    """
    if len(cells) == 0:
        return np.zeros(0, dtype=np.int64)
    order = np.lexsort((losses, *cells.T[::-1]))  # a stable sort: the last key counts most
    ordered = cells[order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.asarray(order[is_first], dtype=np.int64)
