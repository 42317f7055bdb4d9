"""One loss out of several, for samplers that minimise one."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.options import is_number

Kind = Literal["weighted", "tchebycheff", "percentile"]

AUGMENTATION = 1e-3
"""rho of the augmented Tchebycheff function: small, so that only ties are decided by the sum."""


class Scalarizer:
    """Makes one loss of several, less being better; made by `scalarizer`."""

    def __init__(self, weights: FloatArray, kind: Kind) -> None:
        """Keep `(n_objectives,)` weights that sum to one."""
        self.weights = weights
        self.kind = kind

    def losses(self, L: FloatArray, history: FloatArray | None = None) -> FloatArray:
        """Scalarize rows.

        `weighted` is the weighted mean of the losses as they come, whatever else is known. The
        others compare with what was told, so that a row's value changes as the history grows:

        - `tchebycheff` is max(w z) + rho sum(z) (Steuer and Choo 1983), w scaled to a largest
          weight of 1, of losses z that go from 0 at the history's best to 1 at the worst of its
          non-dominated rows: any part of a front can be the minimum of it, convex or not.
        - `percentile` is the weighted mean of the shares of the history that are better, ties
          counting half: no scale matters (three such ranks are averaged in DeMix).

        Args:
            L: `(n_rows, n_objectives)` finite losses.
            history: `(n_told, n_objectives)` losses to compare with; `L` itself if left out.

        Returns:
            `(n_rows,)` losses.
        """
        if self.kind == "weighted":
            # in this order whatever the processor: a product of matrices may be reordered
            return np.asarray((L * self.weights).sum(axis=1))
        told = L if history is None or len(history) == 0 else history
        if self.kind == "percentile":
            return np.asarray((_ranks(L, told) * self.weights).sum(axis=1))
        z = _normalised(L, told)
        w = self.weights / self.weights.max()
        return np.asarray((w * z).max(axis=1, initial=-np.inf) + AUGMENTATION * z.sum(axis=1))


def scalarizer(
    problem: Problem,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    kind: str = "weighted",
    *,
    sampler: str = "the sampler",
) -> Scalarizer:
    """Check what a user asks for.

    Args:
        problem: Number and names of the objectives.
        weights: One per objective, in the problem's order or by its name; only their ratios matter.
            Where a problem has no names, the values of a mapping count in their order.
        kind: `weighted`, `tchebycheff` or `percentile`, as `Scalarizer.losses` explains.
        sampler: Who asks, for messages.

    Raises:
        ConfigError: the kind is unknown, weights do not fit, or there are several objectives and no
            weights.
    """
    kinds: tuple[Kind, ...] = get_args(Kind)
    known = next((one for one in kinds if one == kind), None)
    if known is None:
        raise ConfigError(
            f"a scalarization is one of {', '.join(kinds)}, but got {kind!r}: choose one of them"
        )
    return Scalarizer(checked_weights(problem, weights, sampler=sampler), known)


def checked_weights(
    problem: Problem,
    weights: Sequence[float] | Mapping[str, float] | None,
    *,
    sampler: str = "the sampler",
) -> FloatArray:
    """Weights of the objectives, in their order, that sum to one.

    Raises:
        ConfigError: they do not fit, or there are several objectives and no weights.
    """
    n = problem.n_objectives
    if weights is None:
        if n > 1:
            raise ConfigError(
                f"{sampler} minimises one loss, but there are {n} objectives: give "
                f"sampler.weights, one number per objective, or use nsga2"
            )
        return np.ones(1)
    numbers = _in_order(problem, weights)
    fits = len(numbers) == n and all(is_number(w) and 0 <= w < math.inf for w in numbers)
    if not fits or max(numbers) == 0:
        raise ConfigError(
            f"weights must be one number >= 0 per objective ({n}), one of them above 0, "
            f"but got {numbers}: give one for each objective in order"
        )
    w = np.array(numbers, dtype=np.float64)
    w = w / w.max()  # the sum of large ones may overflow
    return np.asarray(w / w.sum())


def _in_order(problem: Problem, weights: Sequence[float] | Mapping[str, float]) -> Sequence[float]:
    """Numbers in the order of the objectives, not yet checked."""
    if not isinstance(weights, Mapping):
        if not isinstance(weights, list | tuple):
            raise ConfigError(
                f"weights must be a list of numbers or a mapping from objectives to numbers, but "
                f"got {weights!r}: write weights: [1, 1]"
            )
        return list(weights)
    if not problem.names:
        return list(weights.values())
    if set(weights) != set(problem.names):
        raise ConfigError(
            f"weights must name every objective ({', '.join(problem.names)}) and no other, but "
            f"name {', '.join(map(str, weights)) or 'none'}: give one weight for each"
        )
    return [weights[name] for name in problem.names]


def _ranks(L: FloatArray, told: FloatArray) -> FloatArray:
    """Share of what was told that is better, ties counting half, by objective; shape of `L`."""
    ranks = np.empty(L.shape)
    for i, column in enumerate(L.T):
        ordered = np.sort(told[:, i])
        below = np.searchsorted(ordered, column, side="left")
        up_to = np.searchsorted(ordered, column, side="right")
        ranks[:, i] = (below + up_to) / (2 * len(ordered))
    return ranks


def _normalised(L: FloatArray, told: FloatArray) -> FloatArray:
    """Losses from 0 at the ideal to 1 at the nadir point of what was told; constant ones to 0.

    The nadir is that of the non-dominated rows: one collapsed merge would squeeze all others
    together. Objectives in which these agree take all rows.
    """
    if len(told) == 0:
        return np.zeros(L.shape)
    from moocore import is_nondominated

    size = np.abs(told).max(axis=0)
    size = np.where(size > 0.0, size, 1.0)  # differences of huge losses must not overflow
    fractions, L = told / size, L / size
    front = fractions[np.asarray(is_nondominated(np.ascontiguousarray(fractions)), dtype=np.bool_)]
    ideal = front.min(axis=0)
    span = front.max(axis=0) - ideal
    span = np.where(span > 0.0, span, fractions.max(axis=0) - ideal)
    return np.asarray((L - ideal) / np.where(span > 0.0, span, 1.0))
