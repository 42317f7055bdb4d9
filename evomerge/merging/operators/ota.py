"""OTA: averaging weighted by the second moments that the experts' own optimizers left behind."""

import torch
from torch import Tensor

from evomerge.merging.least_squares import (
    SECOND_MOMENT,
    blocks,
    has,
    inner_weights,
    mean,
    part,
    total,
    weighted,
)
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import NOTHING, Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece, Pieces


def _scan(
    pieces: Pieces,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> Statistics:
    """The sum of all experts' importances."""
    if not has(SECOND_MOMENT, context):
        return NOTHING
    p = context.number("p")
    found = 0.0
    for block in blocks(SECOND_MOMENT, context):
        for v in block:
            found += total(v.pow(p))
    return {"sum": torch.tensor(found, dtype=torch.float64)}


def _prepare(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:
    """OTA merging (optimization trajectory aware), its average, of deltas.

    With the running mean v_i of the squared gradients in expert i's Adam (`exp_avg_sq`), element
    by element::

        f_i = max(v_i^p, floor)
        D_i = t_i f_i / sum_j f_j                     W = W0 + sum_i c_i D_i

    frozen at c = 1 in the denominator. `p` is .5 (a root mean square), 0 gives the mean. `floor`
    is a fraction of the tensor's mean of v^p, 1e-6, for parameters that no gradient reached; there
    and in tensors without moments the merge is the mean of the deltas. The authors also graft:
    they reset entries of low saliency to the base before averaging, which is left out here.
    """
    weights = inner_weights(piece, context)
    if not has(SECOND_MOMENT, context):
        return mean(piece, weights)
    p = context.number("p")
    n_values = context.n_elements * len(piece.deltas)
    floor = context.number("floor") * float(statistics["sum"]) / n_values
    importances = [v.pow(p) for v in part(SECOND_MOMENT, piece, context)]
    return weighted(piece, importances, floor, weights)


OPERATORS = (
    Operator(
        "ota",
        _prepare,
        _scan,
        knobs=(KnobFacts("p", 0.5, 0.0, 2.0), KnobFacts("floor", 1e-6)),
        needs=(SECOND_MOMENT,),
    ),
)
