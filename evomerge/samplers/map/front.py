"""The predicted front: NSGA-II and NSGA-III on surrogates, which cost nothing to ask."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge import pareto
from evomerge.datatypes import FloatArray
from evomerge.samplers.design import Kinds, proposal

Survival = Literal["crowding", "reference_points"]
Predict = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the evolution; the defaults are those published with MAP, on another survival.

    Children are made by crossover with one probability, else by mutation with another (varOr);
    `eta` is the index of both distributions (Deb and Agrawal 1995).
    """

    population: int = 100
    generations: int = 25
    crossover: float = 0.7
    mutation: float = 0.3
    eta: float = 20.0
    survival: Survival = "crowding"


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Where may be searched: `(n_dimensions,)` corners, and what the dimensions are."""

    low: FloatArray
    high: FloatArray
    kinds: Kinds


def predicted_front(
    predict: Predict, start: FloatArray, box: Box, settings: Settings, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Evolve a population on a surrogate.

    Args:
        predict: `(n, n_objectives)` losses of `(n, n_dimensions)` points.
        start: `(n_start, n_dimensions)` points that begin; uniform ones of the box join them.
        box: Where to search.
        settings: Of the evolution.
        rng: What is random.

    Returns:
        The last population `(n, n_dimensions)`, best ranks first, and its predicted losses.
    """
    mu = settings.population
    uniform = rng.random((max(mu - len(start), mu // 2), len(box.low)))
    # of bits and choices, the whole of [0, 1]
    uniform = np.where(box.kinds.real, box.low + uniform * (box.high - box.low), uniform)
    points = _written(np.vstack([start, uniform]), box)
    losses = predict(points)
    chosen = survivors(losses, mu, settings.survival)
    points, losses = points[chosen], losses[chosen]
    for _ in range(settings.generations):
        children = _written(_children(points, box, settings, rng), box)
        points = np.vstack([points, children])
        losses = np.vstack([losses, predict(children)])
        _, first = np.unique(points, axis=0, return_index=True)
        rows = np.sort(first)
        chosen = rows[survivors(losses[rows], mu, settings.survival)]
        points, losses = points[chosen], losses[chosen]
    return points, losses


def survivors(losses: FloatArray, n: int, survival: Survival) -> NDArray[np.int64]:
    """The rows that survive, best ranks first; within a rank those that keep the front wide.

    `crowding` takes the widest crowding distances first (Deb et al. 2002), `reference_points`
    fills the least crowded directions first (Deb and Jain 2014).
    """
    kept: list[int] = []
    left = np.arange(len(losses))
    while len(left) and len(kept) < n:
        best = pareto.non_dominated(losses[left])
        front, left = left[best], left[~best]
        if survival == "reference_points" and len(kept) + len(front) > n:
            kept += _niched(losses, np.array(kept, dtype=np.int64), front, n - len(kept))
        else:
            widest = np.argsort(-crowding_distances(losses[front]), kind="stable")
            kept += front[widest].tolist()
    return np.array(kept[:n], dtype=np.int64)


def crowding_distances(losses: FloatArray) -> FloatArray:
    """Of the points of one front, shape `(n_points,)`; infinite at the ends."""
    n = len(losses)
    distances = np.zeros(n)
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distances[order[[0, -1]]] = np.inf
        if n > 2 and span > 0.0:
            distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distances


def reference_points(n_objectives: int) -> FloatArray:
    """MAP's directions: Das and Dennis's with 2 parts, and with 1 part halved to the centre.

    Returns:
        `(n, n_objectives)` points whose sum is 1: 5, 9, 14 and 44 of 2, 3, 4 and 8 objectives.
    """
    corners = np.eye(n_objectives)
    first, second = np.triu_indices(n_objectives, k=1)
    middles = (corners[first] + corners[second]) / 2.0
    inner = 0.5 * corners + 0.5 / n_objectives
    return np.unique(np.vstack([corners, middles, inner]), axis=0)


def _niched(
    losses: FloatArray, kept: NDArray[np.int64], front: NDArray[np.int64], n: int
) -> list[int]:
    rows = np.concatenate([kept, front])
    low, high = losses[rows].min(axis=0), losses[rows].max(axis=0)
    z = (losses[rows] - low) / np.where(high > low, high - low, 1.0)
    directions = reference_points(losses.shape[1])
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    along = z @ unit.T
    across = np.sqrt(np.maximum((z**2).sum(axis=1, keepdims=True) - along**2, 0.0))
    nearest, distance = across.argmin(axis=1), across.min(axis=1)
    counts = np.bincount(nearest[: len(kept)], minlength=len(directions)).astype(np.float64)
    waiting = list(range(len(kept), len(rows)))
    taken: list[int] = []
    while len(taken) < n and waiting:
        open_ = np.array(waiting)
        niche_counts = counts[nearest[open_]]
        emptiest = open_[niche_counts == niche_counts.min()]
        one = int(emptiest[distance[emptiest].argmin()])
        counts[nearest[one]] += 1
        taken.append(int(rows[one]))
        waiting.remove(one)
    return taken


def _children(
    points: FloatArray, box: Box, settings: Settings, rng: np.random.Generator
) -> FloatArray:
    """As many as there are points; by crossover, by mutation, or copies that a mutation spoils."""
    n, d = points.shape
    real, span = box.kinds.real, np.where(box.high > box.low, box.high - box.low, 1.0)
    first, second = points[rng.integers(n, size=n)], points[rng.integers(n, size=n)]
    # simulated binary crossover of each coordinate (Deb and Agrawal 1995)
    v, power = rng.random((n, d)), 1.0 / (settings.eta + 1.0)
    beta = np.where(v <= 0.5, 2.0 * v, 1.0 / np.maximum(2.0 * (1.0 - v), 1e-12)) ** power
    sign = np.where(rng.random((n, 1)) < 0.5, 1.0, -1.0)
    crossed = 0.5 * ((1.0 + sign * beta) * first + (1.0 - sign * beta) * second)
    inherited = np.where(rng.random((n, d)) < 0.5, first, second)
    crossed = np.where(real, crossed, inherited)
    # polynomial mutation of one coordinate on average
    w, moved = rng.random((n, d)), rng.random((n, d)) < 1.0 / d
    step = np.where(w < 0.5, (2.0 * w) ** power - 1.0, 1.0 - (2.0 * (1.0 - w)) ** power)
    redrawn = rng.random((n, d))
    mutated = np.where(moved, np.where(real, first + step * span, redrawn), first)
    draw = rng.random((n, 1))
    by_crossover = draw < settings.crossover
    by_mutation = ~by_crossover & (draw < settings.crossover + settings.mutation)
    return np.where(by_crossover, crossed, np.where(by_mutation, mutated, first))


def _written(points: FloatArray, box: Box) -> FloatArray:
    inside = np.where(box.kinds.real, np.clip(points, box.low, box.high), np.clip(points, 0.0, 1.0))
    return np.array([proposal(x, box.kinds) for x in inside]).reshape(points.shape)
