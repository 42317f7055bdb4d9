"""What an operator on LoRA factors is: from all experts' factors of a weight to one pair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from evomerge.errors import IncompatibleError
from evomerge.merging.low_rank.stack import LowRank, Stack
from evomerge.merging.operators.operator import NOTHING, Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece

# From the searched coefficients of a weight to what is added to the base; None is nothing.
Merge = Callable[[Sequence[float]], LowRank | None]
Bind = Callable[[Stack, Statistics, TensorContext], Merge]
LookAt = Callable[[Stack, TensorContext], Statistics]


def look_at_nothing(stack: Stack, context: TensorContext) -> Statistics:  # noqa: ARG001
    """There is nothing to know of the factors."""
    return NOTHING


def concatenate(stack: Stack, statistics: Statistics, context: TensorContext) -> Merge:  # noqa: ARG001
    """The exact weighted sum of the adapters."""
    return stack.concatenated


def mean(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:  # noqa: ARG001
    """`D_k = t_k / N`."""
    return [t / len(piece.deltas) for t in piece.deltas]


@dataclass(frozen=True, slots=True)
class FactorOperator(Operator):
    """An operator that takes adapters only, and merges every weight that they change in factors.

    Weights that an adapter changes as a whole (biases, `modules_to_save`) are merged by `prepare`
    like those of any operator. Coefficients of 0 give the base bit for bit.

    Attributes:
        look_at: As `scan`, of factors; `gather` gets the statistics of both.
        bind: What can be prepared once is prepared, on the calling thread, where torch should
            compute alone; the rest for every candidate. It answers the same whatever the threads.
        linear: Whether what comes out is linear in the coefficients.
    """

    look_at: LookAt = field(default=look_at_nothing)
    bind: Bind = field(default=concatenate)
    linear: bool = True

    @property
    def is_plain(self) -> bool:
        """What it makes of factors has no bases at all."""
        return False


def on_the_left(left: Tensor, right: Tensor, rows: Tensor, stack: Stack) -> Merge:
    """A merge whose coefficients stand at the left factors only, over a shared right one.

    That keeps it linear: `D_k = B^_k @ right`, where row j of expert k's `left` is added to row
    `rows[j]` of the sum.

    Args:
        left: Laid out as the stack's, fp32.
        right: `(rank, n_columns)` fp32.
        rows: `(sum of ranks,)` int64.
        stack: Tells whose rows are whose.
    """
    return partial(_merge_on_the_left, left, right, rows, stack)


def _merge_on_the_left(
    left: Tensor, right: Tensor, rows: Tensor, stack: Stack, weights: Sequence[float]
) -> LowRank | None:
    total: Tensor | None = None
    for k, rank in enumerate(stack.ranks):
        if rank and weights[k] != 0.0:
            if total is None:
                total = torch.zeros(len(right), left.shape[1])
            mine = stack.rows(k)
            total.index_add_(0, rows[mine], left[mine], alpha=weights[k])
    return None if total is None else LowRank(total, right)


def equal_ranks(stack: Stack, operator: str, context: TensorContext) -> int:
    """The rank of all adapters that change a weight.

    Raises:
        IncompatibleError: They differ.
    """
    names = context.experts or [f"adapter {k}" for k in range(len(stack.ranks))]
    ranks = {name: rank for name, rank in zip(names, stack.ranks, strict=True) if rank}
    if len(set(ranks.values())) > 1:
        found = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
        raise IncompatibleError(
            f"{operator} adds factors to factors and needs adapters of one rank, but for "
            f"{context.name} {found}: use task_arithmetic, which takes any ranks"
        )
    return max(ranks.values())
