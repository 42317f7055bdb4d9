"""Fisher-weighted averaging: every parameter nearest to the expert that it matters to."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.least_squares import (
    FISHER,
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
    """Sum and sum of squares of each expert's information, `(n_experts,)`."""
    if not has(FISHER, context):
        return NOTHING
    sums = torch.zeros(len(context.aids), dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for block in blocks(FISHER, context):
        for k, F in enumerate(block):
            sums[k] += total(F)
            squares[k] += total(F * F)
    return {"sums": sums, "squares": squares}


def _gather(found: Sequence[Statistics], knobs: Mapping[str, Knob]) -> Statistics:
    """What each expert's information is multiplied by, `(n_experts,)`: 1 / its norm, or 1.

    An expert without any information has 0.
    """
    squares = [statistics["squares"] for statistics in found if "squares" in statistics]
    if not squares:
        return NOTHING
    if knobs["scale"] == "none":
        return {"scales": torch.ones_like(squares[0])}
    norms = torch.zeros_like(squares[0])
    for of_tensor in squares:  # in the order of the tensors
        norms += of_tensor
    norms.sqrt_()
    return {"scales": torch.where(norms > 0.0, 1.0 / norms, 0.0)}


def _prepare(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:
    """Fisher-weighted averaging (Matena and Raffel 2022, arXiv:2111.09832, eq. 4) of deltas.

    With the diagonal F_i of the Fisher information of expert i, element by element::

        f_i = max(F_i / |F_i|, floor)
        D_i = t_i f_i / sum_j |c_j| f_j               W = W0 + sum_i c_i D_i

    `fisher` is frozen at c = 1 in the denominator, `fisher_exact` has the searched coefficients
    there (see `least_squares`). `scale` divides by the Euclidean norm over the whole model
    (`norm`), or not (`none`): an expert whom the texts surprise more has larger gradients
    everywhere. `floor` is a fraction of the tensor's mean f, 1e-6, where the authors have 1e-6
    itself: it then means the same in all models. Where no expert has information the merge is the
    mean of the deltas, as in tensors for which none was collected.
    """
    weights = inner_weights(piece, context)
    if not has(FISHER, context):
        return mean(piece, weights)
    scales = context.model["scales"].tolist()
    importances = [F * scale for F, scale in zip(part(FISHER, piece, context), scales, strict=True)]
    of_all = sum(s * scale for s, scale in zip(statistics["sums"].tolist(), scales, strict=True))
    floor = context.number("floor") * of_all / (context.n_elements * len(piece.deltas))
    return weighted(piece, importances, floor, weights)


_KNOBS = (
    KnobFacts("floor", 1e-6),
    KnobFacts("scale", "norm", choices=("norm", "none")),
)

OPERATORS = (
    Operator("fisher", _prepare, _scan, _gather, knobs=_KNOBS, needs=(FISHER,)),
    Operator("fisher_exact", _prepare, _scan, _gather, knobs=_KNOBS, early=True, needs=(FISHER,)),
)
