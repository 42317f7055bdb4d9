"""One expert's entry in every place, or one sign of all: MagMax, EMR's unified delta, NegMerge."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece


def _magmax(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,  # noqa: ARG001
) -> list[Tensor]:
    """`M = t_{argmax_i |t_i|}` in every place, a tie goes to the later expert, as in its code.

    Marczak et al. 2024, MagMax: Leveraging Model Merging for Seamless Continual Learning. The
    paper's coefficient is .5 for all. Frozen: who owns a place is decided on unscaled deltas.
    """
    return _owned(piece.deltas, [t.abs() for t in piece.deltas])


def _emr_uni(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,  # noqa: ARG001
) -> list[Tensor]:
    """`g = sign(sum_i t_i)`, `M = g max {|t_i| : t_i g > 0}`: the unified delta of EMR-Merging.

    Huang et al. 2024, EMR-Merging: Tuning-Free High-Performance Model Merging; without its masks
    and rescalers, which need to know the task of each input. Among equals the later expert owns
    the place. Frozen: signs and owners are found on unscaled deltas.
    """
    # In float64, where the order of experts does not tell which sign wins.
    g = _total([t.double() for t in piece.deltas]).sign_().float()
    # Of the elected sign: its magnitude; of the other: negative, so never the greatest above zero.
    return _owned(piece.deltas, [t * g for t in piece.deltas])


def _negmerge(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,  # noqa: ARG001
) -> list[Tensor]:
    """`D_i = t_i / N` where the signs of all N experts agree and none is zero; else 0.

    Kim et al. 2024, NegMerge: Consensual Weight Negation for Strong Machine Unlearning, from the
    abstract: it subtracts what fine-tunings of one task agree on, `W = W0 - lambda M`, which is a
    coefficient of -lambda for every expert. The mean of the agreeing entries is our choice. An
    expert that leaves a tensor alone agrees with nobody: then no expert changes it.
    """
    N = len(piece.deltas)
    balance = _total([t.sign() for t in piece.deltas])
    unanimous = balance.abs_() == N
    return [torch.where(unanimous, t / N, 0.0) for t in piece.deltas]


def _owned(deltas: Sequence[Tensor], scores: list[Tensor]) -> list[Tensor]:
    """Each delta where its score is the greatest and positive; zero elsewhere."""
    best = torch.zeros_like(scores[0])
    owner = torch.full(best.shape, -1, dtype=torch.int32)
    for k, score in enumerate(scores):
        owner.masked_fill_((score >= best) & (score > 0.0), k)
        torch.maximum(best, score, out=best)
    return [torch.where(owner == k, t, 0.0) for k, t in enumerate(deltas)]


def _total(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


OPERATORS = (
    Operator("magmax", _magmax, disjoint=True),
    Operator("emr_uni", _emr_uni, disjoint=True),
    Operator("negmerge", _negmerge),
)
