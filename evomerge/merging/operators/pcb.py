"""PCB: entries compete within an expert and between experts; the winners are averaged by score."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.magnitudes import N_CODES, codes_of
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece, Pieces

# Below it a sum of scores counts as nothing; scores are in [0, 1].
_LEAST_TOTAL = 1e-12


def _scan(pieces: Pieces, context: TensorContext) -> Statistics:
    """Where magnitudes are clipped and where scores begin to count, `(n_experts, 2)` fp32 each.

    `clip` holds the least and the greatest magnitude, `cut` the score that becomes 0 and the one
    that becomes 1.
    """
    clip = _clip(pieces, context.number("clip"))
    counts = torch.zeros(len(clip), 2 * N_CODES, dtype=torch.int64)
    top = torch.full((len(clip),), -torch.inf)
    for piece in pieces():
        for k, score in enumerate(_scores(piece, clip)):
            counts[k] += torch.bincount(_signed_codes(score), minlength=2 * N_CODES)
            top[k] = torch.maximum(top[k], score.max())
    n_kept = max(1, round(context.number("r") * context.n_elements))
    floor = torch.tensor([_lower_edge(_code_of_rank(of_expert, n_kept)) for of_expert in counts])
    return {"clip": clip, "cut": torch.stack([floor, top], dim=1)}


def _prepare(
    piece: Piece,
    statistics: Statistics,
    context: TensorContext,  # noqa: ARG001 (the operators' common signature)
) -> list[Tensor]:
    """Du et al. 2024, Parameter Competition Balancing for Model Merging.

    With N experts, per tensor::

        t~_i    = sign(t_i) clamp(|t_i|, quantile_clip, quantile_(1 - clip) of |t_i|)
        intra_i = exp(N minmax(|t~_i|)^2)
        inter_i = tanh(t_i sum_j t_j)
        score_i = intra_i inter_i
        s_i     = minmax(max(score_i, quantile_(1 - r)(score_i)))
        D_i     = t~_i s_i / max(sum_j s_j, 1e-12)

    The paper's merge is `W0 + lambda sum_i D_i` with lambda 1.2, and its authors search one lambda
    for each expert in [.8, 1.3]: coefficients are late by design. Quantiles are per tensor, where
    the authors flatten the model, and known to a bfloat16: a few more than the fraction r may
    count. A minmax of equal numbers is 0. The tanh makes scores of deltas of another scale other
    scores, so the merge of scaled deltas is not the scaled merge.
    """
    shares = [
        (score - floor).clamp_(min=0.0).div_(top - floor)
        if top > floor
        else torch.zeros_like(score)
        for score, (floor, top) in zip(
            _scores(piece, statistics["clip"]), statistics["cut"].tolist(), strict=True
        )
    ]
    total = shares[0].clone()
    for s in shares[1:]:
        total += s
    total.clamp_(min=_LEAST_TOTAL)
    clipped = _clipped(piece, statistics["clip"])
    return [
        s.div_(total).mul_(size).mul_(t.sign())
        for s, size, t in zip(shares, clipped, piece.deltas, strict=True)
    ]


def _clip(pieces: Pieces, fraction: float) -> Tensor:
    """Of every expert the quantiles of magnitudes at `fraction` from below and from above."""
    counts = torch.zeros(0, N_CODES, dtype=torch.int64)
    ends = torch.zeros(0, 2)
    for piece in pieces():
        if len(counts) == 0:
            counts = torch.zeros(len(piece.deltas), N_CODES, dtype=torch.int64)
            ends = torch.tensor([[torch.inf, -torch.inf]]).repeat(len(piece.deltas), 1)
        for k, t in enumerate(piece.deltas):
            counts[k] += torch.bincount(codes_of(t), minlength=N_CODES)
            least, greatest = t.abs().aminmax()
            ends[k, 0] = torch.minimum(ends[k, 0], least)
            ends[k, 1] = torch.maximum(ends[k, 1], greatest)
    n_beyond = int(fraction * int(counts[0].sum()))
    if n_beyond == 0:
        return ends  # exactly, whatever the dtype
    low = [_magnitude(int(torch.searchsorted(c.cumsum(0), n_beyond + 1))) for c in counts]
    high = [_magnitude(_code_of_rank(c, n_beyond + 1)) for c in counts]
    return torch.tensor([low, high]).T.contiguous()


def _clipped(piece: Piece, clip: Tensor) -> Iterator[Tensor]:
    """`|t~_i|`."""
    for t, (low, high) in zip(piece.deltas, clip.tolist(), strict=True):
        yield t.abs().clamp_(low, high)


def _scores(piece: Piece, clip: Tensor) -> Iterator[Tensor]:
    """The scores of every expert, divided by `exp(N)`, so that many experts are no overflow.

    In fp32: products of deltas are about 1e-7, where a tanh in half precision would be too coarse.
    By NumPy, which gives the same bits wherever in a piece an entry lies.
    """
    N = len(piece.deltas)
    T = piece.deltas[0].clone()
    for t in piece.deltas[1:]:
        T += t
    for t, size, (low, high) in zip(
        piece.deltas, _clipped(piece, clip), clip.tolist(), strict=True
    ):
        spread = high - low
        share = size.sub_(low).div_(spread) if spread > 0.0 else size.zero_()
        intra = np.exp(share.square_().sub_(1.0).mul_(N).numpy())
        yield torch.from_numpy(intra * np.tanh((t * T).numpy()))


def _signed_codes(score: Tensor) -> Tensor:
    """Like codes, but of either sign, from 1 to 2 N_CODES - 1; N_CODES is zero."""
    return torch.where(score < 0.0, -codes_of(score), codes_of(score)) + N_CODES


def _code_of_rank(counts: Tensor, rank: int) -> int:
    """The code of the entry of this rank, counted from the largest, from 1."""
    from_above = counts.flip(0).cumsum(0)
    return len(counts) - 1 - int(torch.searchsorted(from_above, rank))


def _lower_edge(signed_code: int) -> float:
    """A number below all that have this code (of bfloat16: its midpoint with the next lower one).

    For the code of zero it is zero, so that what is zero never counts.
    """
    code = signed_code - N_CODES
    half_way = 0x8001
    if code > 0:
        return _from_bits((code << 16) - half_way)
    return -_from_bits((-code << 16) + half_way) if code < 0 else 0.0


def _magnitude(code: int) -> float:
    return _from_bits(code << 16)


def _from_bits(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


OPERATORS = (
    Operator(
        "pcb",
        _prepare,
        _scan,
        knobs=(KnobFacts("r", 0.1), KnobFacts("clip", 0.0001, 0.0, 0.25)),
    ),
)
