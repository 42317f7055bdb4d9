"""Operators of the least-squares family on one tensor, with the aids that a test makes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.operators import OPERATORS, Statistics, TensorContext
from evomerge.merging.operators.operator import NOTHING
from evomerge.merging.pieces import BLOCK, in_pieces

Array = NDArray[np.float64]


def bases_of(
    name: str,
    deltas: Sequence[Tensor],
    aids: Sequence[Mapping[str, Tensor]],
    *,
    weights: Sequence[float] | None = None,
    length: int = BLOCK,
    others: Sequence[Statistics] = (),
    **knobs: Knob,
) -> list[Tensor]:
    """The bases, in the tensor's shape.

    Args:
        name: Of the operator.
        deltas: One per expert.
        aids: One mapping per expert.
        weights: Coefficients of an early operator.
        length: Of the pieces.
        others: What was scanned in the model's other tensors.
        **knobs: The rest are defaults.
    """
    operator, shape = OPERATORS[name], tuple(deltas[0].shape)
    context = TensorContext(
        "model.layers.0.mlp.up_proj.weight",
        "mlp.up",
        0,
        shape,
        operator.complete(knobs, "prepare"),
        0,
        experts=tuple(f"expert{k}" for k in range(len(deltas))),
        weights=None if weights is None else tuple(weights),
        aids=tuple(aids),
    )
    base = torch.ones(deltas[0].numel())
    flat = [delta.reshape(-1) for delta in deltas]
    pieces = in_pieces(base, flat, base.numel() if operator.whole else length)
    statistics = operator.look(pieces, context)
    if operator.gather is not None:
        gathered = operator.gather([statistics, *others], context.knobs)
        context = replace(context, model=gathered)
    else:
        context = replace(context, model=NOTHING)
    made = [bases for _, bases in operator.bases(pieces, context, statistics)]
    return [torch.cat(parts).reshape(shape) for parts in zip(*made, strict=True)]


def array(tensor: Tensor) -> Array:
    """In float64."""
    return tensor.double().numpy()


def normal(shape: Sequence[int], seed: int, scale: float = 1.0) -> Tensor:
    """Of the seed."""
    return scale * torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
