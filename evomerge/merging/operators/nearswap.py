"""NearSwap: the expert where it is near the base, at most a given step elsewhere."""

from torch import Tensor

from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece


def _prepare(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """`D = w t` with `w = clamp(s / |t|, 0, 1)`, which is `clamp(t, -s, s)`, for one expert.

    The strength `s` is in the units of the weights: 0 gives the base, and from the largest change
    on the whole expert. A method of the community without a paper, in mergekit as `nearswap`; it
    divides by at least 1e-6 there, so that strengths below that fade small changes further.
    The default of s is our choice (there it must be given).
    """
    s = context.number("strength")
    return [t.clamp(-s, s) for t in piece.deltas]


OPERATORS = (
    Operator(
        "nearswap",
        _prepare,
        knobs=(KnobFacts("strength", 0.001, 0.0, 1.0, "runtime"),),
        n_experts=(1, 1),
    ),
)
