"""The change that one adapter makes to a weight, multiplied out where it is looked at."""

from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.low_rank.product import copy_of
from evomerge.merging.low_rank.stack import Stack
from evomerge.merging.pieces import BLOCK


@dataclass(frozen=True, slots=True, eq=False)
class DenseDelta:
    """`scale * B_k @ A_k` of expert k, flat and rounded to the base's dtype; see `Flat`."""

    stack: Stack
    k: int
    dtype: torch.dtype

    def __getitem__(self, elements: slice) -> Tensor:
        """Those elements: rows are multiplied in blocks that begin at fixed places, each alone.

        A delta that is too large for the dtype comes out infinite.
        """
        n_rows, n_columns = self.stack.shape
        block = max(1, BLOCK // n_columns)
        first = elements.start // (block * n_columns) * block
        rows = self.stack.rows(self.k)
        cpu = self.stack.left.device
        A = copy_of(self.stack.right[rows], cpu, torch.float32)
        last = min(n_rows, -(-elements.stop // n_columns))
        made = []
        for start in range(first, last, block):
            B = copy_of(self.stack.left[rows, start : start + block].T, cpu, torch.float32)
            made.append((self.stack.scales[self.k] * (B @ A)).to(self.dtype).reshape(-1))
        offset = first * n_columns
        return torch.cat(made)[elements.start - offset : elements.stop - offset]


def dense_deltas(stack: Stack, dtype: torch.dtype) -> list[DenseDelta | None]:
    """The change of every expert; None if it makes none."""
    return [DenseDelta(stack, k, dtype) if rank else None for k, rank in enumerate(stack.ranks)]
