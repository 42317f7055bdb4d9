"""A control: random directions with the experts' norms, to which every merge is compared."""

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.inner_product import inner_product
from evomerge.merging.operators.operator import Operator, TensorContext


def _prepare(
    base: Tensor,  # noqa: ARG001 (the operators' common signature)
    deltas: Sequence[Tensor],
    knobs: Mapping[str, Knob],  # noqa: ARG001
    context: TensorContext,
) -> list[Tensor]:
    """`D_k = |t_k| z / |z|` with `z` Gaussian, keyed by seed, tensor name and expert index."""
    return [
        _direction(t, [context.seed, crc32(context.name.encode()), k]) for k, t in enumerate(deltas)
    ]


def _direction(delta: Tensor, key: list[int]) -> Tensor:
    norm = inner_product(delta, delta) ** 0.5
    if norm == 0.0:
        return torch.zeros_like(delta)
    rng = np.random.default_rng(np.random.SeedSequence(key))
    z = torch.from_numpy(rng.standard_normal(tuple(delta.shape), dtype=np.float32))
    return z.mul_(norm / inner_product(z, z) ** 0.5)


random_delta = Operator("random_delta", _prepare, seeded=True)
