"""Consensus: only the places that several experts use."""

from torch import Tensor

from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece


def _prepare(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """Consensus task arithmetic of Wang et al. 2024 (arXiv:2405.07813), on TALL masks.

    With `T = sum_i t_i`::

        m_i = [|t_i| > l |T - t_i|]       expert i uses the place
        D_i = t_i [sum_i m_i >= k]        at least k experts do

    k = 2 drops what one expert alone wants and what nobody does, k = 1 only the latter, k = 0 is
    task arithmetic, and a k above the number of experts is the base. The authors choose l from
    .2 to .6 for each task on validation data (so it may be set for one expert); the default is
    MergeBench's. Frozen: masks are made of unscaled deltas.
    """
    k = context.number("k")
    # In float64, where sums of a few fp32 numbers come out the same in any order of experts.
    deltas = [t.double() for t in piece.deltas]
    T = deltas[0].clone()
    for t in deltas[1:]:
        T += t
    n_users = piece.deltas[0].new_zeros(piece.deltas[0].shape)
    for t, tall_lambda in zip(deltas, _tall_lambdas(context, len(deltas)), strict=True):
        n_users += t.abs() > (T - t).abs_().mul_(tall_lambda)
    consensus = n_users >= k
    return [t * consensus for t in piece.deltas]


def _tall_lambdas(context: TensorContext, n_experts: int) -> list[float]:
    return context.numbers("l") or [context.number("l")] * n_experts


OPERATORS = (
    Operator(
        "consensus",
        _prepare,
        knobs=(
            KnobFacts("l", 0.2, 0.0, 10.0, "runtime", per_expert=True),
            KnobFacts("k", 2, 0, 1000, "runtime", is_whole=True),
        ),
    ),
)
