"""Task arithmetic, weighted averages, interpolation: the deltas as they are."""

from torch import Tensor

from evomerge.merging.operators.operator import Operator, TensorContext
from evomerge.merging.pieces import Piece


def _prepare(
    piece: Piece,
    statistics: None,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,  # noqa: ARG001
) -> list[Tensor]:
    """`D_k = t_k` (Ilharco et al. 2023, Editing models with task arithmetic)."""
    return list(piece.deltas)


# Also known as `linear`: an average is task arithmetic whose coefficients sum to 1.
task_arithmetic = Operator("task_arithmetic", _prepare)
