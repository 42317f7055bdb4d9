"""An operator run on one tensor as the engine runs it, and deltas to run it on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.operators import TensorContext, get_operator
from evomerge.merging.operators.operator import Statistics
from evomerge.merging.pieces import BLOCK, in_pieces

Array = NDArray[np.float64]


def random(*shape: int, seed: int = 0, scale: float = 0.01) -> Tensor:
    """Values that bf16 holds exactly, as operators get them."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).bfloat16().float()


def low_rank(m: int, n: int, rank: int, seed: int = 0) -> Tensor:
    """Of this rank, with whole numbers as entries: products of them are exact."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(-3, 4, (m, rank), generator=generator)
    return (left @ torch.randint(-3, 4, (rank, n), generator=generator)).float() / 256


def scanned(
    name: str,
    deltas: Sequence[Tensor],
    *,
    base: Tensor | None = None,
    kind: str = "mlp.up",
    **knobs: Knob,
) -> Statistics:
    """The operator's statistics of a tensor, for `others` of another one."""
    operator = get_operator(name)
    pieces, context = _tensor(name, deltas, base, kind, BLOCK, 5, None, knobs)
    return operator.look(pieces, context)


def bases_of(
    name: str,
    deltas: Sequence[Tensor],
    *,
    base: Tensor | None = None,
    kind: str = "mlp.up",
    length: int = BLOCK,
    seed: int = 5,
    weights: Sequence[float] | None = None,
    others: Sequence[Statistics] = (),
    **knobs: Knob,
) -> list[Tensor]:
    """The bases, in the tensor's shape.

    Args:
        name: Of the operator.
        deltas: One per expert.
        base: Random if not given.
        kind: Of the tensor.
        length: Of the pieces, unless the operator wants it whole.
        seed: Of the recipe.
        weights: Coefficients of an early operator.
        others: What was scanned in the model's other tensors.
        **knobs: The rest are defaults.
    """
    operator = get_operator(name)
    pieces, context = _tensor(name, deltas, base, kind, length, seed, weights, knobs)
    statistics = operator.look(pieces, context)
    if operator.gather is not None:
        context = replace(context, model=operator.gather([statistics, *others], context.knobs))
    made = [bases for _, bases in operator.bases(pieces, context, statistics)]
    return [torch.cat(parts).reshape(context.shape) for parts in zip(*made, strict=True)]


def _tensor(name, deltas, base, kind, length, seed, weights, knobs):  # type: ignore[no-untyped-def]
    operator, shape = get_operator(name), tuple(deltas[0].shape)
    base = random(*shape, seed=99, scale=1.0) if base is None else base
    context = TensorContext(
        "model.layers.0.mlp.up_proj.weight",
        kind,
        0,
        shape,
        operator.complete(knobs, "prepare"),
        seed,
        experts=tuple(f"expert{k}" for k in range(len(deltas))),
        weights=None if weights is None else tuple(weights),
    )
    length = base.numel() if operator.whole else length
    return in_pieces(base.reshape(-1), [d.reshape(-1) for d in deltas], length), context


def arrays(tensors: Sequence[Tensor]) -> list[Array]:
    """In float64."""
    return [tensor.double().numpy() for tensor in tensors]


def elected_mean(B: Array) -> Array:
    """Shares `(N, ...)` of the mean over what has the sign of the sum, written as in TIES."""
    agree = (np.sign(B) == np.sign(B.sum(0))) & (B != 0)
    return np.where(agree, B, 0.0) / np.maximum(1, agree.sum(0))


def assert_same(bases: Sequence[Tensor], expected: Sequence[Array], rtol: float = 1e-6) -> None:
    """Up to a share of the largest entry."""
    largest = max(float(np.abs(e).max()) for e in expected)
    for basis, e in zip(bases, expected, strict=True):
        np.testing.assert_allclose(basis.numpy(), e, rtol=0, atol=rtol * largest)


def assert_same_with_any_number_of_threads(
    name: str, deltas: Sequence[Tensor], **knobs: Knob
) -> None:
    """Bit for bit."""
    before = torch.get_num_threads()
    answers = []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            answers.append(bases_of(name, deltas, **knobs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
