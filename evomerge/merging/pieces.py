"""A weight and its changes a piece at a time: what is computed on the way has a piece's size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Pieces start at multiples of this. Whatever depends on an order (sums, random numbers) goes by
# blocks, so that the same comes out however long the pieces are.
BLOCK = 1 << 15
# Of all deltas together. With what operators make of it, a piece takes about 32 bytes for each:
# at most 16 MB per thread (from 17 experts on, 1 MB per expert).
_MOST_ELEMENTS = 1 << 19
_LONGEST = 1 << 16


class Flat(Protocol):
    """Numbers in a row that are read when a slice of them is asked for; a flat tensor is one."""

    def __getitem__(self, elements: slice, /) -> Tensor:
        """A flat tensor; `elements` has a start and a stop within the length, and no step."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive elements of one tensor, flat, and the experts' changes of them.

    Attributes:
        start: Where it begins in the flattened tensor, a multiple of `BLOCK`.
        base: In the base's own dtype.
        deltas: One per expert, fp32, with values that the base's dtype holds exactly.
    """

    start: int
    base: Tensor
    deltas: Sequence[Tensor]

    @property
    def elements(self) -> slice:
        """Where it lies in the flattened tensor."""
        return slice(self.start, self.start + self.base.numel())


# A tensor in pieces, in order; every call reads it anew.
Pieces = Callable[[], Iterator[Piece]]


def piece_length(n_experts: int) -> int:
    """How many elements a piece of so many deltas has."""
    return max(BLOCK, min(_LONGEST, _MOST_ELEMENTS // max(1, n_experts)) // BLOCK * BLOCK)


def spans(n_elements: int, length: int) -> Iterator[slice]:
    """A flattened tensor cut into pieces of this length; the last may be shorter."""
    for start in range(0, n_elements, length):
        yield slice(start, min(start + length, n_elements))


def in_pieces(base: Tensor, deltas: Sequence[Flat | None], length: int) -> Pieces:
    """The pieces of a tensor; `base` is flat, a delta of None is zero."""

    def read(delta: Flat | None, span: slice) -> Tensor:
        if delta is None:
            return torch.zeros(span.stop - span.start)
        return delta[span].to(torch.float32)

    def pieces() -> Iterator[Piece]:
        for span in spans(base.numel(), length):
            yield Piece(span.start, base[span], [read(delta, span) for delta in deltas])

    return pieces
