"""How sure a comparison is: who may be on the front, and whether a gain is more than noise.

Everywhere less is better. `losses[o]` has shape `(n_models, n_items_o)`: what each model answered
to the items of objective `o`, which are the same for all models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evomerge.datatypes import FloatArray

N_ERRORS = 2.0
"""Standard errors that a gain must exceed: pure noise does in about 2 % of runs."""

COMPARISONS_AT_ONCE = 2_000_000
"""Pairs of models compared in one array operation; bounds the memory, not the result."""


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much a model is better (in weighted loss; above 0 is better), and how sure that is."""

    difference: float
    standard_error: float
    is_beyond_noise: bool


def front_probability(
    losses: Sequence[FloatArray],
    n_resamples: int = 1000,
    seed: int = 0,
    pools: Sequence[int] | None = None,
) -> FloatArray:
    """How often each model is non-dominated when the items are drawn again.

    The paired bootstrap over items (Efron 1979): all models are scored on the same draws. Models
    that tie in every objective do not dominate each other. There is no prior: where models differ
    by no more than the noise, the shares are too far from one half.

    Args:
        losses: `(n_models, n_items_o)` losses per objective, at least one objective and item.
        n_resamples: Draws.
        seed: Of the draws.
        pools: For each objective the number of its pool: objectives of one pool share their items
            and are drawn together. By default each has a pool of its own.

    Returns:
        `(n_models,)` shares of draws in which the model is on the front.

    Raises:
        ValueError: shapes do not fit or something is not finite.
    """
    matrices = _checked(losses)
    pools = list(range(len(matrices))) if pools is None else list(pools)
    if len(pools) != len(matrices):
        raise ValueError(f"pools needs one number per objective ({len(matrices)}), got {pools}")
    # Equal models are scored once: a sum's last digit may differ between columns of a product.
    _, first, back = np.unique(
        np.concatenate(matrices, axis=1), axis=0, return_index=True, return_inverse=True
    )
    drawn: dict[int, FloatArray] = {}
    scores = np.empty((n_resamples, len(first), len(matrices)))
    for o, (matrix, pool) in enumerate(zip(matrices, pools, strict=True)):
        n_items = matrix.shape[1]
        if pool not in drawn:
            rng = np.random.default_rng([seed, 0xF207, pool])
            # whole counts: with answers of 0 and 1 all sums are exact, and ties stay ties
            counts = rng.multinomial(n_items, np.full(n_items, 1 / n_items), size=n_resamples)
            drawn[pool] = counts.astype(np.float64)
        if drawn[pool].shape[1] != n_items:
            raise ValueError(f"objectives of pool {pool} must have the same number of items")
        scores[:, :, o] = drawn[pool] @ matrix[first].T
    return _share_non_dominated(scores)[back.ravel()]


def front_probability_normal(
    means: ArrayLike, standard_errors: ArrayLike, n_resamples: int = 1000, seed: int = 0
) -> FloatArray:
    """How often each model is non-dominated under independent normal errors.

    For estimates from different items; `front_probability` is sharper where items are shared.

    Args:
        means: `(n_models, n_objectives)` losses.
        standard_errors: The same shape, not negative.
        n_resamples: Draws.
        seed: Of the draws.

    Returns:
        `(n_models,)` shares of draws in which the model is on the front.

    Raises:
        ValueError: shapes do not fit, something is not finite or an error is negative.
    """
    m, s = np.asarray(means, dtype=np.float64), np.asarray(standard_errors, dtype=np.float64)
    if m.ndim != 2 or m.shape[1] == 0 or s.shape != m.shape:
        raise ValueError(f"means and errors must be matrices of one shape: {m.shape}, {s.shape}")
    if not (np.isfinite(m).all() and np.isfinite(s).all() and (s >= 0).all()):
        raise ValueError("means must be finite and standard errors finite and not negative")
    z = np.random.default_rng([seed, 0xF208]).standard_normal((n_resamples, *m.shape))
    return _share_non_dominated(m + s * z)


def paired_difference(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """The mean of `a - b` over shared items, and its standard error.

    The error counts two items more, one each way, as large as the largest difference (for yes and
    no answers: Agresti and Min 2005): three items that happen to agree are no proof. A single item
    stands for an exact score, without error.

    Args:
        a: `(n_items,)` numbers, at least one.
        b: The same of the other model.

    Raises:
        ValueError: shapes do not fit or something is not finite.
    """
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if np.shape(a) != np.shape(b) or d.ndim != 1 or d.size == 0 or not np.isfinite(d).all():
        raise ValueError(
            f"paired answers must be finite, of one shape (n_items,): {np.shape(a)}, {np.shape(b)}"
        )
    mean, n = float(d.mean()), d.size
    if n == 1:
        return mean, 0.0
    squares = float(((d - mean) ** 2).sum()) + 2 * float(np.abs(d).max()) ** 2
    return mean, math.sqrt(squares / (n - 1) / n)


def gain(
    chosen: Sequence[ArrayLike],
    baseline: Sequence[ArrayLike],
    weights: ArrayLike | None = None,
) -> Gain:
    """Whether a chosen model beats a baseline in weighted mean loss by more than noise.

    Only honest on items that had no part in the choice, of either.

    Args:
        chosen: Per objective `(n_items_o,)` losses.
        baseline: The same of the other model on the same items.
        weights: One per objective, not negative; only their ratios matter. By default equal.

    Raises:
        ValueError: shapes do not fit or something is not finite.
    """
    w = np.ones(len(chosen)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(baseline) != len(chosen) or w.shape != (len(chosen),) or len(chosen) == 0:
        raise ValueError(
            f"one entry per objective is needed: {len(chosen)}, {len(baseline)}, weights {w.shape}"
        )
    if not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise ValueError(f"weights must be finite, not negative and not all zero, got {w}")
    w = w / w.sum()
    pairs = [paired_difference(b, c) for c, b in zip(chosen, baseline, strict=True)]
    difference = float(sum(wo * d for wo, (d, _) in zip(w, pairs, strict=True)))
    error = math.sqrt(sum((wo * e) ** 2 for wo, (_, e) in zip(w, pairs, strict=True)))
    return Gain(difference, error, difference > N_ERRORS * error)


def _checked(losses: Sequence[FloatArray]) -> list[FloatArray]:
    matrices = [np.asarray(matrix, dtype=np.float64) for matrix in losses]
    if not matrices or any(m.ndim != 2 or m.shape[1] == 0 for m in matrices):
        raise ValueError("losses need a (n_models, n_items) matrix with items per objective")
    if len({len(m) for m in matrices}) != 1:
        raise ValueError(f"objectives must have the same models, got {[len(m) for m in matrices]}")
    if not all(np.isfinite(m).all() for m in matrices):
        raise ValueError("losses must be finite")
    return matrices


def _share_non_dominated(scores: FloatArray) -> FloatArray:
    """`(n_resamples, n_models, n_objectives)` losses -> `(n_models,)` shares on the front."""
    n_resamples, n_models, n_objectives = scores.shape
    if n_models == 0:
        return np.zeros(0)
    on_front = np.zeros(n_models)
    step = max(1, COMPARISONS_AT_ONCE // n_models**2)
    for start in range(0, n_resamples, step):
        part = scores[start : start + step]
        as_good = np.ones((len(part), n_models, n_models), dtype=np.bool_)  # [r, i, j]: j <= i
        for o in range(n_objectives):
            as_good &= part[:, None, :, o] <= part[:, :, None, o]
        # j dominates i: as good everywhere, and i is not as good as j everywhere
        dominated = (as_good & ~as_good.transpose(0, 2, 1)).any(axis=2)
        on_front += (~dominated).sum(axis=0)
    return np.asarray(on_front / n_resamples)
