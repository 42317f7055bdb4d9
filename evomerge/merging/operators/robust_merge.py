"""RobustMerge: adapters pruned, their scale restored, and summed over a shared right factor."""

import torch
from torch import Tensor

from evomerge.merging.low_rank.stack import Stack
from evomerge.merging.operators.factor_operator import (
    FactorOperator,
    Merge,
    equal_ranks,
    mean,
    on_the_left,
)
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Statistics, TensorContext

# Of the ratios of an expert's rows: none is taken below it.
_QUANTILE = 0.8
# What the authors multiply both factors with.
_GAIN = 2.0


def _bind(
    stack: Stack,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> Merge:
    """Complementary parameter adaptation (CoPA) of RobustMerge, Zeng et al. 2025.

    Of every factor the fraction `density` with the largest magnitudes is kept (`A^`, `B^`). What
    pruning takes from row j of `A_i` gives a ratio, at least the .8 quantile of the expert's::

        s_ij = sum |A_i[j]| / sum |A^_i[j]|

        A = sum_i 2 A^_i
        D_i = 2 B^_i diag(s_i / sum_k s_k) A
        W = W0 + sum_i c_i D_i

    The authors' merge at ones. Coefficients stand at the left factors only, so that the merge
    stays linear in them. Even a lone adapter is pruned, and comes out four times as long. The
    scale of each adapter is in its factors, half of it in each. A row that loses everything gets
    the greatest ratio of the others. Weights that adapters change as a whole are averaged,
    `D_i = t_i / N`.
    """
    rank = equal_ranks(stack, "robust_merge", context)
    density = context.number("density")
    kept = {
        k: (pair, keep_top(pair.left, density), keep_top(pair.right, density))
        for k, pair in stack.pairs()
    }
    s = {k: _ratios(pair.right, A) for k, (pair, _, A) in kept.items()}
    total = torch.stack(list(s.values())).sum(0)
    right = _GAIN * torch.stack([A for _, _, A in kept.values()]).sum(0)
    left = torch.zeros(stack.left.shape)
    for k, (_, B, _) in kept.items():
        left[stack.rows(k)] = (_GAIN * s[k] / total).float()[:, None] * B
    return on_the_left(left, right, torch.arange(rank).repeat(len(kept)), stack)


def keep_top(factor: Tensor, density: float) -> Tensor:
    """The entries of largest magnitude, at least one, and all that equal the last; else zero."""
    magnitudes = factor.abs()
    n_kept = max(1, round(density * factor.numel()))
    least = magnitudes.flatten().kthvalue(factor.numel() - n_kept + 1).values
    return torch.where(magnitudes >= least, factor, 0.0)


def _ratios(A: Tensor, kept: Tensor) -> Tensor:
    """`s_i` of an expert, `(rank,)` float64."""
    before, after = A.double().abs().sum(1), kept.double().abs().sum(1)
    found = before[after > 0] / after[after > 0]
    ratios = torch.ones_like(before)
    ratios[before > 0] = found.max()
    ratios[after > 0] = found
    return ratios.clamp(min=float(found.quantile(_QUANTILE)))


OPERATORS = (
    FactorOperator(
        "robust_merge",
        mean,
        knobs=(KnobFacts("density", 0.2, 0.01, 1.0),),
        bind=_bind,
    ),
)
