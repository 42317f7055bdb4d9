"""Task arithmetic, weighted averages, interpolation: the deltas as they are."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.operators.operator import Operator, TensorContext


def _prepare(
    base: Tensor,  # noqa: ARG001 (the operators' common signature)
    deltas: Sequence[Tensor],
    knobs: Mapping[str, Knob],  # noqa: ARG001
    context: TensorContext,  # noqa: ARG001
) -> list[Tensor]:
    """`D_k = t_k` (Ilharco et al. 2023, Editing models with task arithmetic)."""
    return list(deltas)


# Also known as `linear`: an average is task arithmetic whose coefficients sum to 1.
task_arithmetic = Operator("task_arithmetic", _prepare)
