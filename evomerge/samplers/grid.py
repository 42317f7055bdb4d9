"""Grid archives of quality diversity: cells of a few scores, each with its best point."""

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray

WORST_SHARE = 0.1
"""Share of the losses told that lie beyond the grid's worst edge: collapsed models must not stretch
it until all others share a bin."""


def bins_of(losses: FloatArray, n_bins: int) -> NDArray[np.int64]:
    """Number the bins of losses, from 0 for the worst to `n_bins` - 1 for the best.

    The grid of each objective goes from its best loss to the one that WORST_SHARE of the rows
    exceed, in equal steps; what is worse falls into bin 0.

    Args:
        losses: `(n_points, n_objectives)` finite losses.
        n_bins: of each objective.

    Returns:
        `(n_points, n_objectives)` numbers of bins; 0 where all losses are equal.
    """
    if len(losses) == 0:
        return np.zeros(losses.shape, dtype=np.int64)
    ordered = np.sort(losses, axis=0)
    best, worst = ordered[0], ordered[int((1.0 - WORST_SHARE) * (len(losses) - 1))]
    worst = np.where(worst > best, worst, ordered[-1])
    # halves: the difference of two huge losses must not overflow
    half_range = worst / 2 - best / 2
    share = (worst / 2 - losses / 2) / np.where(half_range > 0.0, half_range, 1.0)
    # closed at the better edge: right=True of numpy.digitize
    return np.asarray(np.clip(np.ceil(share * n_bins) - 1, 0, n_bins - 1), dtype=np.int64)


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
