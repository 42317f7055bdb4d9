"""RAM: what one expert alone changes is added, what several change is averaged."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece, Pieces


def _prepare(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """`D_i = t_i [|t_i| > epsilon] / n` where n experts change a place by more than epsilon.

    As mergekit's `ram` (its table gives the formula; we know of no paper). Epsilon is in the units
    of the weights, so the merge of deltas of another scale is not the scaled merge.
    """
    changed, n = _changes(piece.deltas, context.number("epsilon"))
    n.clamp_(min=1.0)
    return [mask.mul_(t).div_(n) for mask, t in zip(changed, piece.deltas, strict=True)]


def _scan_overlap(pieces: Pieces, context: TensorContext) -> Statistics:
    """How many changes of each expert are its own and how many shared, `(n_experts, 2)`."""
    total = torch.zeros(0, 2, dtype=torch.int64)
    for piece in pieces():
        changed, n = _changes(piece.deltas, context.number("epsilon"))
        alone = n == 1.0
        own = [int(torch.count_nonzero(mask[alone])) for mask in changed]
        both = [int(torch.count_nonzero(mask)) for mask in changed]
        counts = torch.tensor([[a, b - a] for a, b in zip(own, both, strict=True)])
        total = counts if len(total) == 0 else total + counts
    return {"own_and_shared": total}


def _prepare_rescaled(
    piece: Piece,
    statistics: Statistics,
    context: TensorContext,
) -> list[Tensor]:
    """As RAM, but an expert's own part is times `1 + r clamp(shared / own, 0, alpha)`.

    As mergekit's `ramplus_tl`: what averaging takes from an expert in the places that it shares is
    given back in those that it has alone. The counts are per tensor.
    """
    changed, n = _changes(piece.deltas, context.number("epsilon"))
    alone = n == 1.0
    n.clamp_(min=1.0)
    r, alpha = context.number("r"), context.number("alpha")
    bases = []
    counts = statistics["own_and_shared"].tolist()
    for mask, t, (own, shared) in zip(changed, piece.deltas, counts, strict=True):
        factor = 1.0 + r * min(shared / max(own, 1), alpha)
        D = mask.mul_(t).div_(n)
        bases.append(torch.where(alone, D * factor, D))
    return bases


def _changes(deltas: Sequence[Tensor], epsilon: float) -> tuple[list[Tensor], Tensor]:
    """For each delta 1 where it exceeds epsilon, else 0; and how many do so. All fp32."""
    changed = [(t.abs() > epsilon).float() for t in deltas]
    n = changed[0].clone()
    for mask in changed[1:]:
        n += mask
    return changed, n


OPERATORS = (
    Operator("ram", _prepare, knobs=(KnobFacts("epsilon", 1e-5, 0.0, 1.0, "runtime"),)),
    Operator(
        "ram_plus",
        _prepare_rescaled,
        _scan_overlap,
        knobs=(
            KnobFacts("epsilon", 1e-5),
            KnobFacts("r", 0.1, 0.0, 10.0, "runtime"),
            KnobFacts("alpha", 0.2, 0.0, 10.0, "runtime"),
        ),
    ),
)
ALIASES = {"ramplus_tl": "ram_plus"}
