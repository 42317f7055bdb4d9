"""Deltas in NumPy's float64, and the bases that an operator makes of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.datatypes import Knob
from evomerge.merging.operators import Operator, TensorContext, get_operator
from evomerge.merging.pieces import in_pieces

Array = NDArray[np.float64]


def random_delta(shape: Sequence[int], seed: int, rank: int | None = None) -> Array:
    """Standard normal values that fp32 holds; with a rank, a product of two random factors.

    The factors are whole numbers, so that fp32 holds the product too.
    """
    rng = np.random.default_rng(seed)
    if rank is None:
        return rng.standard_normal(shape).astype(np.float32).astype(np.float64)
    m, n = shape
    return (rng.integers(-9, 10, (m, rank)) @ rng.integers(-9, 10, (rank, n))).astype(np.float64)


def bases_of(
    operator: Operator | str,
    deltas: Sequence[Array],
    *,
    weights: Sequence[float] | None = None,
    kind: str = "mlp.up",
    **knobs: Knob,
) -> list[Array]:
    """The bases of a whole tensor, in its shape."""
    operator = get_operator(operator) if isinstance(operator, str) else operator
    shape, size = deltas[0].shape, deltas[0].size
    context = TensorContext(
        "model.layers.0.mlp.up_proj.weight",
        kind,
        0,
        shape,
        operator.complete(knobs, "prepare"),
        seed=0,
        experts=tuple(f"expert{k}" for k in range(len(deltas))),
        weights=None if weights is None else tuple(weights),
    )
    flat = [torch.from_numpy(t.reshape(-1)).float() for t in deltas]
    pieces = in_pieces(torch.ones(size), flat, size)
    statistics = operator.look(pieces, context)
    if operator.gather is not None:
        context = replace(context, model=operator.gather([statistics], context.knobs))
    (made,) = [bases for _, bases in operator.bases(pieces, context, statistics)]
    return [D.double().numpy().reshape(shape) for D in made]
