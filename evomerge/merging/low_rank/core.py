"""The space that all adapters share: where low-rank changes are small square matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# Singular values up to this share of the largest one are rounding. Far below that of fp32, so that
# an adapter a thousand times smaller than another is still whole.
_FLOOR = 1e-11


@dataclass(frozen=True, slots=True, eq=False)
class CoreDelta:
    """The change of one expert in core coordinates, flat, fp32; see `Flat`.

    Attributes:
        left: `U^T B`, `(core rows, rank)` float64.
        right: `A V`, `(rank, core columns)` float64.
    """

    left: Tensor
    right: Tensor

    def __getitem__(self, elements: slice) -> Tensor:
        n_columns = self.right.shape[1]
        rows = slice(elements.start // n_columns, -(-elements.stop // n_columns))
        made = (self.left[rows] @ self.right).float().reshape(-1)
        offset = rows.start * n_columns
        return made[elements.start - offset : elements.stop - offset]


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """`t_k = U M_k V^T` for every expert, exact but for rounding (Panariello et al. 2025).

    `V` are the right singular vectors of all `A_k` stacked, `U` the left ones of all `B_k` side by
    side, so `M_k = U^T B_k A_k V` has as many rows and columns as there are ranks in all, or fewer
    if the adapters share directions: those that are not there are left out.

    Attributes:
        left: `U^T`, `(core rows, n_rows)` fp32.
        right: `V^T`, `(core columns, n_columns)` fp32.
        deltas: `M_k` of every expert; None for who changes nothing.
    """

    left: Tensor
    right: Tensor
    deltas: tuple[CoreDelta | None, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Of every `M_k`."""
        return len(self.left), len(self.right)

    @classmethod
    def of(cls, pairs: Sequence[tuple[Tensor, Tensor] | None]) -> Self:
        """From each expert's `B` transposed and `A`, one below the other; decomposed in float64."""
        found = [pair for pair in pairs if pair is not None]
        U = _directions(torch.cat([left for left, _ in found]))
        V = _directions(torch.cat([right for _, right in found]))
        deltas = tuple(
            None if pair is None else CoreDelta(U @ pair[0].double().T, pair[1].double() @ V.T)
            for pair in pairs
        )
        return cls(U.float(), V.float(), deltas)


def _directions(factors: Tensor) -> Tensor:
    """Orthonormal rows that span those of the factors, by falling singular value, float64.

    Each points to where its largest entry is positive.
    """
    _, S, Vt = torch.linalg.svd(factors.double(), full_matrices=False)
    Vt = Vt[: int((S / S[:1] > _FLOOR).sum())]
    largest = Vt.gather(1, Vt.abs().argmax(1, keepdim=True))
    pointing: Tensor = Vt * torch.where(largest < 0, -1.0, 1.0)
    return pointing
