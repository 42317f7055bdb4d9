"""What merges share that weigh every expert's change by what its loss makes of it.

`W = W0 + (sum_i c_i t_i A_i) (sum_j |c_j| A_j)^-1`, where A_i is a Gram of activations (RegMean), a
diagonal of the Fisher information, or a power of Adam's second moments. It minimises
`sum_i |c_i| |W - W0 - sign(c_i) t_i|^2` in the norms of the A_i: a negative coefficient asks for
the opposite of an expert, and only the ratios of the coefficients count.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.pieces import BLOCK, Piece

if TYPE_CHECKING:  # the operators' package imports this module
    from evomerge.merging.operators.operator import TensorContext

GRAM = "gram"
"""Aid: `X^T X / n` of the inputs X of a linear layer, `(in, in)`."""
INPUT_AXIS = "input_axis"
"""Beside the Gram: which axis of the weight the inputs meet; 1 of `(out, in)`, 0 of `(in, out)`."""
FISHER = "fisher"
"""Aid: the diagonal of the Fisher information, of the weight's shape."""
SECOND_MOMENT = "second_moment"
"""Aid: Adam's running mean of squared gradients, of the weight's shape."""


def inner_weights(piece: Piece, context: "TensorContext") -> list[float]:
    """The `|c_j|` inside the inverse: ones where coefficients are frozen, or all zero."""
    weights = [abs(c) for c in context.weights or ()]
    return weights if any(weights) else [1.0] * len(piece.deltas)


def mean(piece: Piece, weights: list[float]) -> list[Tensor]:
    """The merge where nothing is known (all A_i equal): `D_i = t_i / sum_j |c_j|`."""
    return [t / sum(weights) for t in piece.deltas]


def has(aid: str, context: "TensorContext") -> bool:
    """Whether every expert has it for this tensor."""
    return bool(context.aids) and all(aid in aids for aids in context.aids)


def blocks(aid: str, context: "TensorContext") -> Iterator[list[Tensor]]:
    """The experts' values of an element-wise aid, flat and in float64, a block after the other."""
    flat = [aids[aid].reshape(-1) for aids in context.aids]
    for start in range(0, context.n_elements, BLOCK):
        yield [values[start : start + BLOCK].double() for values in flat]


def part(aid: str, piece: Piece, context: "TensorContext") -> list[Tensor]:
    """The experts' values of an element-wise aid where the piece is, flat and in float64."""
    return [aids[aid].reshape(-1)[piece.elements].double() for aids in context.aids]


def total(values: Tensor) -> float:
    """The sum of up to a block of float64 numbers, in an order that threads do not change."""
    return float(np.add.reduce(values.numpy()))


def weighted(
    piece: Piece, importances: list[Tensor], floor: float, weights: list[float]
) -> list[Tensor]:
    """Element by element, for diagonal A_i: `D_i = t_i f_i / sum_j |c_j| f_j`.

    Args:
        piece: Of the tensor.
        importances: The f_i, at least 0, in float64.
        floor: Less than this is not believed; where all are 0 the merge is the mean.
        weights: The `|c_j|`.
    """
    f = [importance.clamp(min=floor) for importance in importances]
    denominator = torch.zeros_like(f[0])
    for c, importance in zip(weights, f, strict=True):
        denominator.add_(importance, alpha=c)
    is_unknown = denominator <= 0.0
    denominator.masked_fill_(is_unknown, sum(weights))
    return [
        importance.masked_fill_(is_unknown, 1.0).div_(denominator).mul_(t).float()
        for importance, t in zip(f, piece.deltas, strict=True)
    ]
