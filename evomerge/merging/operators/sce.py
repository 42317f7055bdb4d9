"""SCE: select where experts differ, calculate their weights there, erase minorities of sign."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.inner_product import inner_product
from evomerge.merging.magnitudes import N_CODES, code_of_top, codes_of, counts_from_above
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece, Pieces


def _scan(pieces: Pieces, context: TensorContext) -> Statistics:
    """The least code of a selected variance, and the experts' weights."""
    lowest = _lowest_code(pieces, context.number("density"))
    squares: list[float] = []
    for piece in pieces():
        squares = squares or [0.0] * len(piece.deltas)
        selected = _is_selected(piece.deltas, lowest)
        for k, t in enumerate(piece.deltas):
            kept = t * selected
            squares[k] = inner_product(kept, kept, squares[k])
    total = sum(squares)
    # Against zero and nothing else: squares of fine-tunings are of the order of 1e-7.
    weights = [square / total if total > 0.0 else 1.0 / len(squares) for square in squares]
    return {"lowest": torch.tensor(lowest), "weights": torch.tensor(weights, dtype=torch.float64)}


def _prepare(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:
    """Wan et al. 2024, FuseChat: Knowledge Fusion of Chat Models.

    Its merge of deltas, per tensor::

        select     S = the top `density` of the places by the variance of t_i over experts
        calculate  w_i = mean of t_i^2 in S, divided by their sum over experts
        erase      D_i = w_i t_i [sign(t_i) = g] / sum_j w_j [sign(t_j) = g],   g = sign(sum_j t_j)

    with g = + where the sum is zero. Places without variance are never selected, but a density of
    1 selects all, and so does any density if there is no variance anywhere. There are two versions:
    with `unselected` `zero` only S is merged (mergekit's `sce`), with `keep` S decides on the
    weights alone (the authors' code). The default density is the paper's; both codes have 1. Their
    weights become equal below an absolute guard, which deltas of language models are under; here
    they never do. Thresholds are found on variances rounded to bfloat16: those that equal the last
    are selected too. Frozen: all of it is found on unscaled deltas; the paper's merge has ones.
    """
    weights = statistics["weights"].tolist()
    deltas = piece.deltas
    if context.knobs["unselected"] == "zero":
        selected = _is_selected(deltas, int(statistics["lowest"]))
        deltas = [t * selected for t in deltas]
    # In float64, where the order of experts does not tell who is elected.
    g = torch.where(_total([t.double() for t in deltas]) < 0.0, -1.0, 1.0)
    agreeing = [torch.where(t * g > 0.0, w, 0.0) for w, t in zip(weights, deltas, strict=True)]
    divisor = _total(agreeing)
    divisor.masked_fill_(divisor == 0.0, 1.0)
    return [share.div_(divisor).mul_(t) for share, t in zip(agreeing, deltas, strict=True)]


def _lowest_code(pieces: Pieces, density: float) -> int:
    """The least code of a variance that is selected; 0 if all are."""
    if density >= 1.0:
        return 0
    counts = torch.zeros(N_CODES, dtype=torch.int64)
    for piece in pieces():
        counts += torch.bincount(codes_of(_variance(piece.deltas)), minlength=N_CODES)
    counts[0] = 0
    return code_of_top(counts_from_above(counts), density) if bool(counts.any()) else 0


def _is_selected(deltas: Sequence[Tensor], lowest: int) -> Tensor:
    return codes_of(_variance(deltas)) >= lowest


def _variance(deltas: Sequence[Tensor]) -> Tensor:
    """Of a population, over experts, fp32.

    Taken in float64, so that it is exactly zero for identical experts and the order of experts
    does not matter.
    """
    mean = torch.zeros_like(deltas[0], dtype=torch.float64)
    for t in deltas:
        mean += t
    mean /= len(deltas)
    variance = torch.zeros_like(mean)
    for t in deltas:
        variance += (t - mean).square_()
    return variance.div_(len(deltas)).float()


def _total(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


OPERATORS = (
    Operator(
        "sce",
        _prepare,
        _scan,
        knobs=(
            KnobFacts("density", 0.1),
            KnobFacts("unselected", "zero", choices=("zero", "keep")),
        ),
    ),
)
