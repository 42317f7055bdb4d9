"""Adapters summed factor by factor: what LoRA composition often is, and no sum of deltas."""

from collections.abc import Sequence
from functools import partial

import torch

from evomerge.merging.low_rank.stack import LowRank, Stack
from evomerge.merging.operators.factor_operator import FactorOperator, Merge, equal_ranks
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Statistics, TensorContext


def _bind(
    stack: Stack,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> Merge:
    """`W = W0 + (sum_i w_i B_i)(sum_i w_i A_i)`, of LoraHub (Huang et al. 2023, arXiv:2307.13269).

    GENOME and Evo-Merging compose adapters like this too. Quadratic in the weights, with the cross
    terms `w_i w_j B_i A_j` of experts that have nothing to do with each other; doubling all weights
    quadruples the change, and all weights at 0 are a saddle. With `weights: roots` the factors get
    `sqrt|w_i|` and `sign(w_i) sqrt|w_i|` instead, as PEFT's `linear` combination does: a lone
    adapter is then linear in its weight, the cross terms stay.

    The scale of each adapter is in its factors, half of it in each. Weights that adapters change
    as a whole are summed as they are, `w_i t_i`.
    """
    equal_ranks(stack, "factor_sum", context)
    return partial(_merge, stack, roots=context.knobs["weights"] == "roots")


def _merge(stack: Stack, weights: Sequence[float], *, roots: bool) -> LowRank | None:
    total: LowRank | None = None
    for k, pair in stack.pairs():
        w = weights[k]
        if w == 0.0:
            continue
        w_left = w_right = w
        if roots:
            w_left = abs(w) ** 0.5
            w_right = w_left if w > 0 else -w_left
        if total is None:
            total = LowRank(torch.zeros_like(pair.left), torch.zeros_like(pair.right))
        total.left.add_(pair.left, alpha=w_left)
        total.right.add_(pair.right, alpha=w_right)
    return total


OPERATORS = (
    FactorOperator(
        "factor_sum",
        knobs=(KnobFacts("weights", "both", choices=("both", "roots")),),
        bind=_bind,
        linear=False,
    ),
)
