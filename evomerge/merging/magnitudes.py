"""Every quantile of a delta's magnitudes without a sort: they are counted by their bfloat16 bits.

A bfloat16 has 15 bits besides its sign, and the bit patterns of positive floats have the order of
their values. So one count of the patterns, the *codes*, ranks all entries; deltas of wider dtypes
are ranked by what they round to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.pieces import Pieces

N_CODES = 1 << 15


def codes_of(delta: Tensor) -> Tensor:
    """The codes of fp32 numbers, int32, same shape: 0 is zero, larger is of larger magnitude."""
    return delta.to(torch.bfloat16).view(torch.int16).to(torch.int32) & (N_CODES - 1)


def count_codes(pieces: Pieces) -> Tensor:
    """How often each code occurs in each delta of a tensor, `(n_experts, N_CODES)` int64."""
    counts: list[Tensor] = []
    for piece in pieces():
        if not counts:
            counts = [torch.zeros(N_CODES, dtype=torch.int64) for _ in piece.deltas]
        for count, delta in zip(counts, piece.deltas, strict=True):
            count += torch.bincount(codes_of(delta), minlength=N_CODES)
    return torch.stack(counts)


def counts_from_above(counts: Tensor) -> Tensor:
    """How many entries have at least each code, along the last axis; falling."""
    return counts.flip(-1).cumsum(-1).flip(-1)


def code_of_top(from_above: Tensor, fraction: float) -> int:
    """The least code such that from it on lie so many of the entries, and all equal ones.

    At least one entry stays and zeros never do; with a fraction of 0 none stays.

    Args:
        from_above: Of one delta, `(N_CODES,)`.
        fraction: Of the entries, in [0, 1].
    """
    if fraction <= 0.0:
        return N_CODES
    n_kept = max(1, round(fraction * int(from_above[0])))
    # The last code that has at least so many entries from it on.
    return max(1, int(torch.searchsorted(-from_above, -n_kept, right=True)) - 1)


def code_beyond(from_above: Tensor, fraction: float) -> int:
    """The least code from which on lie at most so many of the entries."""
    n_dropped = round(fraction * int(from_above[0]))
    return int(torch.searchsorted(-from_above, -n_dropped))


def ranks(counts: Tensor) -> Tensor:
    """For each code the mean rank of its entries from below, from 0 (least) to 1; fp32 (N_CODES,).

    Equal entries share their mean rank. A delta of a single entry has the rank 0.5.
    """
    below = counts.cumsum(0) - counts
    n_entries = int(counts.sum())
    if n_entries < 2:
        return torch.full((N_CODES,), 0.5)
    middle = below.double() + (counts.clamp(min=1).double() - 1.0) / 2.0
    return (middle / (n_entries - 1)).clamp_(0.0, 1.0).float()


def total_counts(of_tensors: Sequence[Tensor]) -> Tensor:
    """The counts over a whole model from those of its tensors, `(n_experts, N_CODES)` each."""
    return torch.stack(list(of_tensors)).sum(0)
