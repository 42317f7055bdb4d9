"""A control: random directions with the experts' norms, to which every merge is compared."""

from collections import defaultdict
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.inner_product import inner_product
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import BLOCK, Piece, Pieces


def _scan(
    pieces: Pieces,
    context: TensorContext,  # noqa: ARG001 (the operators' common signature)
) -> Statistics:
    """The norm of every delta."""
    squares: dict[int, float] = defaultdict(float)
    for piece in pieces():
        for k, t in enumerate(piece.deltas):
            squares[k] = inner_product(t, t, squares[k])
    norms = [square**0.5 for square in squares.values()]
    return {"norms": torch.tensor(norms, dtype=torch.float64)}


def _prepare(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:
    """`D_k = |t_k| z` with `z` of length 1, Gaussian in direction.

    Every block of `z` is Gaussian, keyed by seed, tensor name, expert index and block index, and
    scaled to its share of the length, which of so many numbers is all but certain anyway.
    """
    norms = statistics["norms"].tolist()
    bases = [torch.zeros_like(piece.base, dtype=torch.float32) for _ in norms]
    for k, norm in enumerate(norms):
        if norm == 0.0:
            continue
        for start in range(0, piece.base.numel(), BLOCK):
            D = bases[k][start : start + BLOCK]
            block = (piece.start + start) // BLOCK
            rng = np.random.default_rng([context.seed, crc32(context.name.encode()), k, block])
            rng.standard_normal(out=D.numpy(), dtype=np.float32)
            share = (D.numel() / context.n_elements) ** 0.5
            D.mul_(norm * share / inner_product(D, D) ** 0.5)
    return bases


OPERATORS = (Operator("random_delta", _prepare, _scan, seeded=True),)
