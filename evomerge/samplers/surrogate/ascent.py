"""Where the expected improvement is largest: a pool of candidates, then gradient ascent."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.design import FLIP_PROBABILITY, SPREAD, Kinds
from evomerge.samplers.surrogate.encoding import Encoding
from evomerge.samplers.surrogate.improvement import Improvement
from evomerge.samplers.surrogate.models import Model

POOL = 1000
"""Points at which the improvement is looked at before the ascent."""

STARTS = 8
STEPS = 100

TRUST = 0.5
"""Farther than this from every sampled point, in any coordinate, nothing is proposed."""

_APART = 0.05


def pool(
    problem: Problem, kinds: Kinds, parents: FloatArray, n: int, rng: np.random.Generator
) -> FloatArray:
    """Points around the start's centre, around good points, and between and beyond them.

    Args:
        problem: Where the centre is.
        kinds: Of the dimensions.
        parents: `(n_parents, n_dimensions)` good points.
        n: How many points, about.
        rng: What is random.
    """
    d, quarter = len(kinds.binary), n // 4
    centre = np.array(problem.anchors[0])
    around = centre + SPREAD * rng.normal(size=(quarter, d))
    own = parents[rng.integers(len(parents), size=2 * quarter)]
    scale = 10.0 ** rng.uniform(-2.3, -0.5, (2 * quarter, 1))
    part = rng.random((2 * quarter, d)) < rng.choice([1.0, 0.3], (2 * quarter, 1))
    near = own + scale * rng.normal(size=own.shape) * part
    first = parents[rng.integers(len(parents), size=quarter)]
    second = parents[rng.integers(len(parents), size=quarter)]
    between = first + rng.uniform(-0.3, 1.3, (quarter, 1)) * (second - first)
    between = between + 0.02 * rng.normal(size=between.shape)
    bases = np.vstack([np.tile(centre, (quarter, 1)), own, first])
    points = np.clip(np.vstack([around, near, between]), 0.0, 1.0)
    discrete = ~kinds.real
    if discrete.any():  # crossed with another good point, and turned now and then
        other = parents[rng.integers(len(parents), size=len(points))]
        crossed = np.where(rng.random(points.shape) < 0.3, other, bases)
        turned = rng.random(points.shape) < min(FLIP_PROBABILITY, 2.0 / discrete.sum())
        crossed = np.where(turned, rng.random(points.shape), crossed)
        points = np.where(discrete, crossed, points)
    return np.asarray(points)


def best_point(
    models: Sequence[Model],
    encoding: Encoding,
    kinds: Kinds,
    improvement: Improvement,
    points: FloatArray,
    sampled: FloatArray,
) -> FloatArray:
    """The point `(n_dimensions,)` of the largest expected improvement that an ascent finds.

    Args:
        models: One per objective.
        encoding: Of points.
        kinds: Only real dimensions are climbed in.
        improvement: Over the present front.
        points: `(n, n_dimensions)` to start from.
        sampled: `(n, n_dimensions)` points near which the models can be trusted.
    """
    moments = [model.moments(encoding.encode(points)) for model in models]
    means = np.stack([mean for mean, _ in moments], axis=1)
    variances = np.stack([variance for _, variance in moments], axis=1)
    values = improvement.value(means, variances)
    order = np.argsort(-values, kind="stable")
    best: FloatArray = points[order[0]]
    best_value = -math.inf
    for start in _apart(points, order):
        x, value = _climb(models, encoding, kinds, improvement, points[start], sampled)
        if value > best_value:
            best, best_value = x, value
    return best


def _apart(points: FloatArray, order: NDArray[np.int64]) -> list[int]:
    """The best few that are no neighbours of each other."""
    chosen: list[int] = []
    least = _APART * math.sqrt(points.shape[1])
    for row in order:
        if all(np.linalg.norm(points[row] - points[other]) > least for other in chosen):
            chosen.append(int(row))
        if len(chosen) == STARTS:
            break
    return chosen


def _climb(
    models: Sequence[Model],
    encoding: Encoding,
    kinds: Kinds,
    improvement: Improvement,
    start: FloatArray,
    sampled: FloatArray,
) -> tuple[FloatArray, float]:
    """Ascent of the logarithm, which has a slope where the improvement is almost 0 too."""
    nearest = sampled[np.argmin(((sampled - start) ** 2).sum(axis=1))]
    lower = np.minimum(np.maximum(nearest - TRUST, 0.0), start)
    upper = np.maximum(np.minimum(nearest + TRUST, 1.0), start)
    lower, upper = np.where(kinds.real, lower, start), np.where(kinds.real, upper, start)

    def descent(x: FloatArray) -> tuple[float, FloatArray]:
        place = encoding.encode(x[None])[0]
        at = [model.moments_with_gradient(place) for model in models]
        value, by_mean, by_variance = improvement.gradient(
            np.array([a[0] for a in at]), np.array([a[1] for a in at])
        )
        value = max(value, 1e-290)
        slope = sum(by_mean[i] * at[i][2] + by_variance[i] * at[i][3] for i in range(len(models)))
        return -math.log(value), -encoding.gradient(np.asarray(slope)) / value

    found = minimize(
        descent,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(lower, upper, strict=True)),
        options={"maxiter": STEPS},
    )
    return np.clip(found.x, lower, upper), -float(found.fun)
