"""TSV-Merge: the leading singular vectors of all experts, made orthogonal to each other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece
from evomerge.merging.spectral import alone, flat_bases, matrices, mean_bases, polar, thin_svd


@alone
def _prepare(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """The bases of TSV-Merge (Gargiulo et al. 2025, Task Singular Vectors, arXiv:2412.00081).

    With the deltas `t_i`, `(m, n)` each, and `r = rank_fraction (min(m, n) // N)`::

        t_i = U_i S_i V_i^T                 the r leading triplets, at least one
        U = polar([U_1 | .. | U_N])   V = polar([V_1 | .. | V_N])
        D_i = U[:, block i] S_i V[:, block i]^T

    Nothing is frozen: coefficients, as long as they are positive, could as well be applied before
    the decomposition. The scale `alpha` of the paper is one more factor of all of them. A single
    expert keeps its delta whole. Vectors, embeddings and heads get the mean of the deltas, as in
    the authors' code, whose rank, though, is computed in floats and then one too small for N = 49
    and the like. Directions that several experts share exactly are shared out among them.
    """
    experts = matrices(piece, context)
    if experts is None:
        return mean_bases(piece)
    share = min(experts[0].shape) // len(experts)
    return flat_bases(
        _orthogonalised(experts, max(1, int(context.number("rank_fraction") * share)))
    )


def _orthogonalised(experts: Sequence[Tensor], rank: int) -> list[Tensor]:
    parts = [thin_svd(t, rank) for t in experts]
    ranks = [len(part.S) for part in parts]  # zero for a delta of zero
    U = polar(torch.cat([part.U for part in parts], 1)).split_with_sizes(ranks, 1)
    V = polar(torch.cat([part.V for part in parts], 1)).split_with_sizes(ranks, 1)
    return [u * part.S @ v.T for u, part, v in zip(U, parts, V, strict=True)]


OPERATORS = (
    Operator(
        "tsv_merge",
        _prepare,
        knobs=(KnobFacts("rank_fraction", 1.0, 0.05, 4.0),),
        whole=True,
    ),
)
