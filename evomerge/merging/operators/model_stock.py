"""Model Stock: how far towards the experts' mean the angle between them says to go."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.inner_product import inner_product
from evomerge.merging.operators.operator import Operator, TensorContext


def _prepare(
    base: Tensor,  # noqa: ARG001 (the operators' common signature)
    deltas: Sequence[Tensor],
    knobs: Mapping[str, Knob],  # noqa: ARG001
    context: TensorContext,  # noqa: ARG001
) -> list[Tensor]:
    """Bases whose plain sum is the merge of Jang et al. 2024 (arXiv:2403.19522), per tensor.

    With N deltas `t_i` and `cos` the mean of their pairwise cosines::

        r = N cos / (1 + (N - 1) cos)      W = r mean_i(W0 + t_i) + (1 - r) W0

    so `D_i = r / N t_i`. A negative `cos` gives r = 0 (the formula diverges at -1 / (N - 1)), a
    delta of zero has the cosine 0 to the others, and for a single delta r = 1.
    """
    N = len(deltas)
    squares = [inner_product(t, t) for t in deltas]
    cosines = [
        inner_product(deltas[i], deltas[j]) / (squares[i] * squares[j]) ** 0.5
        if squares[i] and squares[j]
        else 0.0
        for i, j in combinations(range(N), 2)
    ]
    cos = max(0.0, sum(cosines) / len(cosines)) if cosines else 1.0
    r = N * cos / (1 + (N - 1) * cos)
    return [t * (r / N) for t in deltas]


model_stock = Operator("model_stock", _prepare)
