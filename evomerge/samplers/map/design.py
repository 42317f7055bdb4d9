"""Which merges a quadratic is fitted to: the published grid, and a Latin hypercube."""

import itertools
import math

import numpy as np

from evomerge.datatypes import FloatArray
from evomerge.samplers.map.quadratic import n_parameters, rank

_MOST_GRID = 200_000
"""Grid points up to which the whole grid is laid out; of larger ones points are drawn."""


def levels(n_points: int, n_coefficients: int) -> int:
    """Levels per axis of the published grid: ceil((n / .5)^(1 / N))."""
    # the root of a perfect power must not be rounded up
    root = math.pow(n_points / 0.5, 1.0 / n_coefficients)
    return max(2, math.ceil(root - 1e-9))


def published_grid(n_points: int, n_coefficients: int, rng: np.random.Generator) -> FloatArray:
    """Sample as MAP does: the one-hot vectors, then points of a regular grid on [0, 1]^N.

    Points are drawn without replacement; one-hot vectors, points whose sum is 1 and points with
    all coordinates equal are left out. From eight coefficients on there are two levels, from
    which a quadratic is not identifiable (see `quadratic.rank`): use `latin_hypercube`.

    Returns:
        `(n, N)` points; fewer than `n_points` where the grid has no more.
    """
    N = n_coefficients
    one_hot = np.eye(N)
    wanted = n_points - N
    if wanted <= 0:
        return one_hot[:n_points]
    g = levels(wanted, N)
    axis = np.linspace(0.0, 1.0, g)
    if g**N <= _MOST_GRID:
        grid = np.array(list(itertools.product(axis, repeat=N)))
        grid = grid[_is_left(grid)]
        rows = rng.choice(len(grid), size=min(wanted, len(grid)), replace=False)
        return np.vstack([one_hot, grid[rows]])
    drawn: dict[tuple[float, ...], None] = {}
    while len(drawn) < wanted:
        some = rng.choice(axis, size=(wanted, N))
        drawn.update(dict.fromkeys(map(tuple, some[_is_left(some)].tolist())))
    return np.vstack([one_hot, np.array(list(drawn)[:wanted])])


def latin_hypercube(
    n_points: int, low: FloatArray, high: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Fill a box evenly in every coordinate (McKay et al. 1979); of ten, the one of fullest rank.

    Args:
        n_points: How many.
        low: `(N,)` corner of the box.
        high: `(N,)` opposite corner.
        rng: What is random.

    Returns:
        `(n_points, N)` points.
    """
    N = len(low)
    best, most = np.zeros((n_points, N)), -1
    wanted = min(n_points, n_parameters(N))
    for _ in range(10):
        strata = np.column_stack([rng.permutation(n_points) for _ in range(N)])
        points = (strata.reshape(n_points, N) + rng.random((n_points, N))) / max(n_points, 1)
        # a rank costs a decomposition: only where the design could be short of parameters
        found = rank(points) if N <= 12 and n_points else wanted
        if found > most:
            best, most = points, found
        if most >= wanted:
            break
    return np.asarray(low + best * (high - low))


def _is_left(points: FloatArray) -> "np.typing.NDArray[np.bool_]":
    """Which grid points the published design may draw; a one-hot vector has the sum 1."""
    sums = np.abs(points.sum(axis=1) - 1.0) > 1e-9
    return np.asarray(sums & (np.ptp(points, axis=1) > 1e-12))
