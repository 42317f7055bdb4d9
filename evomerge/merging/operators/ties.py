"""Frozen TIES: trim, elect signs, average what agrees; coefficients come afterwards."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from evomerge.merging.operators.operator import KnobFacts, Operator, TensorContext
from evomerge.merging.pieces import Piece, Pieces

_HALF = 16  # bits


@dataclass(frozen=True, slots=True)
class _Statistics:
    """What must be known of a whole tensor.

    Attributes:
        limits: Of every delta the fp32 number below the least magnitude that is kept.
        default_sign: What is elected where the trimmed deltas cancel.
    """

    limits: list[float]
    default_sign: float


def _scan(pieces: Pieces, context: TensorContext) -> _Statistics:
    """Find the thresholds, then count the elected signs."""
    n_kept = max(1, round(float(context.knobs["density"]) * context.n_elements))
    thresholds = np.array(_magnitudes_of_rank(n_kept, pieces), dtype=np.float32)
    limits = np.nextafter(thresholds, np.float32(-1.0)).tolist()
    # Of whole numbers, so exact in any order.
    balance = sum(int(_total(_trimmed(piece, limits)).sign_().sum()) for piece in pieces())
    return _Statistics(limits, -1.0 if balance < 0 else 1.0)


def _prepare(
    piece: Piece,
    statistics: _Statistics,
    context: TensorContext,  # noqa: ARG001 (the operators' common signature)
) -> list[Tensor]:
    """Bases whose plain sum is the TIES merge of Yadav et al. 2023, in its mean variant.

    With the deltas `t_i` and the density `d`, per tensor::

        trim   t^_i = keep_top(t_i, d)         at least one entry, and all that equal the last
        sign   g = sign(sum_i t^_i)      where 0: the sign of the total of g, + if that is 0 too
        merge  D_i = [sign(t^_i) = g] t^_i / max(1, #{i: sign(t^_i) = g and t^_i != 0})

    Signs are elected on unscaled deltas, so that `W0 + lambda sum_i D_i` is the paper's merge and
    every other coefficient stays exactly linear; TIES with weights inside its election is another
    operator. The threshold is per tensor, where the paper has one per expert over the whole model.
    """
    trimmed = _trimmed(piece, statistics.limits)
    g = _total(trimmed).sign_()
    g.mul_(2.0).add_(statistics.default_sign).sign_()
    # 1 where an entry agrees, else 0: in floats, which is several times faster than in booleans.
    agreeing = [t.mul_(g).sign_().clamp_(min=0.0) for t in trimmed]
    count = _total(agreeing).clamp_(min=1.0)
    return [agrees.mul_(t).div_(count) for agrees, t in zip(agreeing, piece.deltas, strict=True)]


def _trimmed(piece: Piece, limits: list[float]) -> list[Tensor]:
    """The entries whose magnitude is above the limit; zero elsewhere."""
    return [hardshrink(t, limit) for t, limit in zip(piece.deltas, limits, strict=True)]


def _total(tensors: list[Tensor]) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def _magnitudes_of_rank(rank: int, pieces: Pieces) -> list[float]:
    """Of every delta the magnitude that has this rank, counted from the largest.

    Bit patterns of positive floats have the order of their values: one pass counts the upper
    halves of the patterns, a second one the lower halves of those whose upper half decides.
    """
    upper: dict[int, Tensor] = defaultdict(lambda: torch.zeros(1 << _HALF - 1, dtype=torch.int64))
    lower: dict[int, Tensor] = defaultdict(lambda: torch.zeros(1 << _HALF, dtype=torch.int64))
    is_short = False
    for piece in pieces():
        is_short = piece.base.dtype == torch.bfloat16  # lower halves are zero
        for k, t in enumerate(piece.deltas):
            upper[k] += torch.bincount(_magnitude_bits(t) >> _HALF, minlength=len(upper[k]))
    found = [_place_of_rank(histogram, rank) for histogram in upper.values()]
    for piece in () if is_short else pieces():
        for k, t in enumerate(piece.deltas):
            bits = _magnitude_bits(t)
            bits = bits[bits >> _HALF == found[k][0]] & (1 << _HALF) - 1
            lower[k] += torch.bincount(bits, minlength=len(lower[k]))
    patterns = [place << _HALF for place, _ in found]
    for k, histogram in lower.items():
        patterns[k] |= _place_of_rank(histogram, found[k][1])[0]
    return torch.tensor(patterns, dtype=torch.int32).view(torch.float32).tolist()


def _magnitude_bits(delta: Tensor) -> Tensor:
    return delta.abs().view(torch.int32)


def _place_of_rank(histogram: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the entry of this rank from above, and its rank within the bin."""
    from_above = histogram.flip(0).cumsum(0)
    i = int(torch.searchsorted(from_above, rank))
    within = rank - (int(from_above[i - 1]) if i else 0)
    return len(histogram) - 1 - i, within


ties = Operator("ties", _prepare, _scan, knobs=(KnobFacts("density", 0.2, 0.01, 1.0, "prepare"),))
