"""What a calibration collects for one tensor, made up: for operators that need it."""

from collections.abc import Sequence

import torch

from evomerge.merging.least_squares import FISHER, GRAM, INPUT_AXIS, SECOND_MOMENT
from evomerge.merging.operators import Statistics


def aids_for(
    shape: Sequence[int], n_experts: int, seed: int = 0, order: Sequence[int] | None = None
) -> tuple[Statistics, ...]:
    """All aids of a tensor of this shape; a Gram for matrices only, of their shorter side.

    Args:
        shape: Of the tensor.
        n_experts: How many mappings.
        seed: Of the values.
        order: Which expert comes where: permuted with the deltas, the same bases come permuted.
    """
    return tuple(_aids_of(shape, seed, k) for k in order or range(n_experts))


def _aids_of(shape: Sequence[int], seed: int, k: int) -> Statistics:
    generator = torch.Generator().manual_seed(1000 * seed + k)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator)

    aids = {FISHER: 1e-6 * random(*shape) ** 2, SECOND_MOMENT: 1e-8 * random(*shape) ** 2}
    if len(shape) == 2:
        axis = int(shape[1] <= shape[0])
        size = shape[axis]
        X = random(3 * size, size) * torch.linspace(0.1, 2.0, size) + 0.5
        aids |= {GRAM: X.T @ X / len(X), INPUT_AXIS: torch.tensor(axis)}
    return aids
