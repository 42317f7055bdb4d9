"""CABS: every expert keeps its largest entries of those that the experts before left over."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.errors import ConfigError
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import BLOCK, Piece

_Numbers = NDArray[np.float32]
_Mask = NDArray[np.bool_]


def _prepare(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """Yang et al. 2025, CABS: Conflict-Aware and Balanced Sparsification.

    In every m consecutive entries of the flat tensor, expert after expert::

        mask_i = the n largest |t_i| that are in no mask before; among equals the first places
        D_i    = t_i mask_i

    The default 64 of 256 is the paper's 25 %; its merge is `W0 + 1.2 sum_i D_i` (7 B). Experts for
    whom nothing is left (from the fifth on at 64 of 256) have a basis of zero; the authors let the
    second of two overlap when n >= m / 2, here masks are disjoint for any n. A zero takes no place
    from others. The last block is filled up with zeros (of the two released scripts one drops it,
    one refuses it). `order` is that of the experts, reversed, or `shuffled`: then `shuffle` says
    which random order; it is a number of its own, not the recipe's seed.

    Raises:
        ConfigError: n is above m, or m is not a divisor of a piece's unit.
    """
    n, m = int(context.knobs["n"]), int(context.knobs["m"])
    if n > m:
        raise ConfigError(f"n of cabs must be at most m, but {n=} and {m=}: lower n")
    if BLOCK % m:
        raise ConfigError(f"m of cabs must be a power of 2, but {m=}: choose 64 or 256")
    n_elements = piece.base.numel()
    padding = -n_elements % m
    free = np.ones((-(-n_elements // m), m), dtype=np.bool_)
    bases = [torch.zeros_like(t) for t in piece.deltas]
    for k in _order(len(bases), context):
        t = torch.nn.functional.pad(piece.deltas[k], (0, padding))
        mask = _largest(np.where(free, t.abs().numpy().reshape(free.shape), np.float32(0.0)), n)
        free &= ~mask
        kept = torch.from_numpy(mask.reshape(-1)[:n_elements])
        bases[k] = torch.where(kept, piece.deltas[k], 0.0)
    return bases


def _largest(magnitudes: _Numbers, n: int) -> _Mask:
    """The n largest of each row that are not zero; among equals the first."""
    m = magnitudes.shape[1]
    last = np.partition(magnitudes, m - n, axis=1)[:, m - n, None]
    above = magnitudes > last
    equal = (magnitudes == last) & (magnitudes > 0.0)
    n_left = n - above.sum(axis=1, keepdims=True)
    mask: _Mask = above | (equal & (equal.cumsum(axis=1) <= n_left))
    return mask


def _order(n_experts: int, context: TensorContext) -> list[int]:
    order = list(range(n_experts))
    if context.knobs["order"] == "reversed":
        order.reverse()
    elif context.knobs["order"] == "shuffled":
        order = np.random.default_rng(int(context.knobs["shuffle"])).permutation(order).tolist()
    return order


OPERATORS = (
    Operator(
        "cabs",
        _prepare,
        knobs=(
            KnobFacts("n", 64, 1, BLOCK, is_whole=True),
            KnobFacts("m", 256, 1, BLOCK, is_whole=True),
            KnobFacts("order", "given", choices=("given", "reversed", "shuffled")),
            KnobFacts("shuffle", 0, 0, 2**31 - 1, is_whole=True),
        ),
        disjoint=True,
    ),
)
