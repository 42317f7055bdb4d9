"""Products of factors in blocks of rows: the same bytes for any number of threads."""

import torch
from torch import Tensor

from evomerge.merging.low_rank.stack import LowRank

# Elements of a product that are made at once: they stay in a core's L2 cache.
_BLOCK = 1 << 18
# Fewer rows would spend the time on reading the right factor again and again.
_FEWEST_ROWS = 64


def add_product(
    base: Tensor, change: LowRank | None, target: Tensor, *, base_weight: float = 1.0
) -> None:
    """`target = round(base_weight * base + left.T @ right)`, summed in fp32 (fp64 for fp64).

    The last bits of a matrix product depend on its shape, on where its factors lie in memory and
    on how many threads share it. So rows are multiplied in blocks that begin at fixed places, each
    from copies, and whoever wants the same bytes calls this where torch computes alone (see
    `serial_threads`). Without a change and at a weight of 1 the base comes back bit for bit.

    Args:
        base: `(n_rows, n_columns)`.
        change: None is zero.
        target: Like the base, on the device where it is computed; written to.
        base_weight: What the base is multiplied with.
    """
    dtype = torch.promote_types(target.dtype, torch.float32)
    if change is None:
        target.copy_(base if base_weight == 1.0 else base_weight * base.to(dtype))
        return
    n_rows, n_columns = target.shape
    n_block = block_rows(n_columns)
    right = copy_of(change.right, target.device, dtype)
    left = change.left.to(target.device, dtype)
    room = torch.empty(min(n_block, n_rows), n_columns, dtype=dtype, device=target.device)
    for start in range(0, n_rows, n_block):
        rows = slice(start, min(start + n_block, n_rows))
        total = room[: rows.stop - rows.start]
        torch.mm(copy_of(left[:, rows].T, target.device, dtype), right, out=total)
        W0 = base[rows].to(target.device)
        total.add_(W0.to(dtype), alpha=base_weight)
        target[rows].copy_(total)


def block_rows(n_columns: int) -> int:
    """How many rows of a product of so many columns are made at once."""
    return max(_FEWEST_ROWS, _BLOCK // n_columns)


def copy_of(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """On the device, in the dtype, row by row and at an address of torch's choice."""
    return torch.empty(tensor.shape, device=device, dtype=dtype).copy_(tensor)
