"""Directions that cover a Pareto front of any number of objectives evenly."""

import itertools
import math

import numpy as np

from evomerge.datatypes import FloatArray


def reference_directions(n_objectives: int, at_most: int) -> FloatArray:
    """The largest one- or two-layered simplex lattice within a number of points.

    A lattice of p partitions has (m + p - 1 choose p) points (Das and Dennis 1998), none of them
    inside unless p >= m: with many objectives a second layer, shrunk by half to the middle, takes
    their place (Deb and Jain 2014, fig. 4).

    Args:
        n_objectives: m, at least 2.
        at_most: how many points there may be; the m corners are there in any case.

    Returns:
        `(n_directions, n_objectives)` non-negative rows that sum to 1, each different.
    """
    m = n_objectives
    outer = _partitions_within(m, max(at_most, m))
    layers = [_lattice(m, outer)]
    inner = min(_partitions_within(m, at_most - len(layers[0])), outer)
    if outer < m and inner > 0:
        layers.append((_lattice(m, inner) + 1.0 / m) / 2.0)
    return np.concatenate(layers)


def _partitions_within(m: int, n: int) -> int:
    """The largest p of which a lattice has at most n points."""
    p = 0
    while math.comb(m + p, p + 1) <= n:
        p += 1
    return p


def _lattice(m: int, p: int) -> FloatArray:
    """All rows of m multiples of 1 / p that sum to 1, the last objective's corner first."""
    bars = np.array(list(itertools.combinations(range(m + p - 1), m - 1)), dtype=np.float64)
    edges = np.hstack([np.full((len(bars), 1), -1.0), bars, np.full((len(bars), 1), m + p - 1.0)])
    return np.asarray((np.diff(edges, axis=1) - 1.0) / p)
