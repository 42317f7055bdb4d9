"""Core Space: any operator, run on adapters in the small space that they share."""

import functools
from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from evomerge.errors import ConfigError
from evomerge.merging.low_rank.stack import LowRank, Stack
from evomerge.merging.operators.factor_operator import FactorOperator, Merge
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Pieces, in_pieces, piece_length

# Prepared bases are kept for the next candidate if they take at most this many times the memory of
# the factors, else made anew: with many adapters they would be as large as dense deltas.
_MOST = 4


def core_space(inner: Operator) -> Operator:
    """`core_space(ties)`: the operator on the cores, of Panariello et al. 2025.

    With the singular vectors `U` of all `B_k` side by side and `V` of all `A_k` stacked, adapters
    are `t_k = U M_k V^T` without loss, and the merge is `W0 + U (sum_k c_k D_k) V^T` with the bases
    `D_k` that the operator makes of the `M_k`. What an operator does linearly is what it does to
    the deltas themselves. What goes by entries (trimming, signs, random masks) goes by rotated
    ones, and is another merge than that of the whole weights. The core has no base: an operator
    that looks at the weights of the base sees zeros, and one that scales them is not heard.

    The scale of each adapter is in its factors, half of it in each. Weights that adapters change
    as a whole are merged by the operator as usual.

    Raises:
        ConfigError: The operator works on factors itself, or needs what is not in the weights.
    """
    if isinstance(inner, FactorOperator):
        raise ConfigError(
            f"core_space runs an operator on deltas, but {inner.name} works on factors itself: "
            f"use {inner.name} alone"
        )
    if inner.needs:
        raise ConfigError(
            f"core_space runs an operator that needs the weights only, but {inner.name} needs "
            f"{' and '.join(inner.needs)}: use {inner.name} alone"
        )
    same = {f.name: getattr(inner, f.name) for f in fields(inner) if f.name != "name"}
    return FactorOperator(
        f"core_space({inner.name})",
        **same,
        look_at=functools.partial(_look_at, inner),
        bind=functools.partial(_bind, inner),
    )


def _look_at(inner: Operator, stack: Stack, context: TensorContext) -> Statistics:
    return inner.look(_pieces(inner, stack), replace(context, shape=stack.core.shape))


def _bind(inner: Operator, stack: Stack, statistics: Statistics, context: TensorContext) -> Merge:
    context = replace(context, shape=stack.core.shape)
    kept: list[Tensor] | None = None
    n_most = _MOST * (stack.left.numel() + stack.right.numel())
    if not inner.early and len(stack.ranks) * context.n_elements <= n_most:
        made = [bases for _, bases in inner.bases(_pieces(inner, stack), context, statistics)]
        kept = [torch.cat(parts) for parts in zip(*made, strict=True)]
    return functools.partial(_merge, inner, stack, statistics, context, kept)


def _merge(
    inner: Operator,
    stack: Stack,
    statistics: Statistics,
    context: TensorContext,
    kept: list[Tensor] | None,
    weights: Sequence[float],
) -> LowRank | None:
    """The bases of the cores, weighted and summed, then out of the core again."""
    if inner.early:
        context = replace(context, weights=tuple(weights))
    c = list(weights)
    if inner.weigh is not None:
        _, c = inner.weigh(weights, statistics, context)
    if not any(c):
        return None
    core, total = stack.core, torch.zeros(context.n_elements)
    if kept is not None:
        _add(total, kept, c)
    else:
        for piece, bases in inner.bases(_pieces(inner, stack), context, statistics):
            _add(total[piece.elements], bases, c)
    return LowRank(total.view(core.shape).T @ core.left, core.right)


def _add(total: Tensor, bases: Sequence[Tensor], c: Sequence[float]) -> None:
    for weight, basis in zip(c, bases, strict=True):
        if weight != 0.0:
            total.add_(basis, alpha=weight)


def _pieces(inner: Operator, stack: Stack) -> Pieces:
    """The core as a weight of its own."""
    n_rows, n_columns = stack.core.shape
    n_elements = n_rows * n_columns
    length = n_elements if inner.whole else piece_length(len(stack.ranks))
    return in_pieces(torch.zeros(n_elements), stack.core.deltas, length)


WRAPPERS = {"core_space": core_space}
