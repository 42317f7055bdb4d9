"""Task arithmetic, weighted averages, interpolation: the deltas as they are."""

from evomerge.merging.operators.operator import Operator

# `W = W0 + sum_k c_k t_k` (Ilharco et al. 2023, Editing models with task arithmetic). An average
# has coefficients that sum to 1, an interpolation has one expert and a coefficient in [0, 1].
task_arithmetic = Operator("task_arithmetic")

OPERATORS = (task_arithmetic,)
ALIASES = dict.fromkeys(("linear", "average", "interpolation"), "task_arithmetic")
