"""DC-Merge: few entries of each delta, in one orthogonal basis made of all of theirs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.joint_space import disjoint_mean
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece
from evomerge.merging.spectral import alone, flat_bases, matrices, mean_bases, polar, thin_svd

_RHO = 5.0
"""Of linear smoothing: the most that the first singular value is of the last."""


@alone
def _prepare(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """The bases of DC-Merge (Zhang et al. 2026, Directional Consistency, CVPR).

    With the deltas `t_i`, `(m, n)` each, and `r = rank_fraction (min(m, n) // N)`::

        truncate  t_i = U_i S_i V_i^T              the r leading triplets, at least one
        smooth    S_i                              `smoothing`, the sum of the values kept
        cover     U = polar([U_1 | .. | U_N])   V = polar([V_1 | .. | V_N])
        project   M_i = U^T (U_i S_i V_i^T) V
        trim      the fraction `keep` of largest |M_i|, at least one entry
        merge     g = sign(sum_i M_i)   C_i = [sign(M_i) = g] M_i / #{j: sign(M_j) = g}
        mask      C_i is zeroed outside of N blocks on the diagonal, one per expert
        D_i = U C_i V^T

    `keep` is 1e-3. `smoothing` is none (the authors' code for whole fine-tunes), mean (all values
    the same) or linear (falling in equal steps, the first being min(5, S_1 / S_r) times the last);
    their code for LoRA has the latter two. Signs are elected at coefficients of one:
    `W0 + alpha sum_i D_i` is the paper's merge, with alpha from .1 to 3. Vectors, embeddings and
    heads get the mean of the deltas.

    Deviations from the authors' code: the rank is computed in whole numbers, and the core has only
    the `r N` directions that the experts have (there: padded to `min(m, n)` with directions of no
    expert, which counts for `keep` if N does not divide it). Directions that several experts share
    exactly are one, where an SVD would add arbitrary ones: n identical experts give t / n.
    """
    experts = matrices(piece, context)
    if experts is None:
        return mean_bases(piece)
    share = min(experts[0].shape) // len(experts)
    rank = max(1, int(context.number("rank_fraction") * share))
    parts = [thin_svd(t, rank) for t in experts]
    ranks = [len(part.S) for part in parts]  # zero for a delta of zero
    U = polar(torch.cat([part.U for part in parts], 1))
    V = polar(torch.cat([part.V for part in parts], 1))
    smoothing = str(context.knobs["smoothing"])
    cores = [
        _top((U.T @ u) * _smooth(s, smoothing) @ (V.T @ v).T, context.number("keep"))
        for u, s, v in parts
    ]
    return flat_bases([_block_diagonal(U, C, V, ranks) for C in disjoint_mean(cores)])


def _smooth(S: Tensor, smoothing: str) -> Tensor:
    """Singular values `(r,)` of the same sum."""
    if smoothing == "none" or not len(S):
        return S
    rho = min(_RHO, float(S[0] / S[-1])) if smoothing == "linear" else 1.0
    shares = torch.linspace(rho, 1.0, len(S), dtype=S.dtype)
    return S.sum() * shares / shares.sum()


def _top(M: Tensor, keep: float) -> Tensor:
    """The fraction `keep` of a core's largest entries, at least one, and all equal to the last."""
    if not M.any():
        return M
    n_dropped = M.numel() - max(1, int(keep * M.numel()))
    limit = M.abs().reshape(-1).kthvalue(n_dropped + 1).values
    return torch.where(M.abs() >= limit, M, 0.0)


def _block_diagonal(U: Tensor, C: Tensor, V: Tensor, ranks: Sequence[int]) -> Tensor:
    """`U C V^T` of the blocks of these sizes on the diagonal of `C`."""
    D = U.new_zeros(len(U), len(V))
    end = 0
    for rank in ranks:
        block = slice(end, end := end + rank)
        if C[block, block].any():
            D += U[:, block] @ C[block, block] @ V[:, block].T
    return D


OPERATORS = (
    Operator(
        "dc_merge",
        _prepare,
        knobs=(
            KnobFacts("rank_fraction", 1.0, 0.05, 4.0),
            KnobFacts("smoothing", "none", choices=("none", "mean", "linear")),
            KnobFacts("keep", 1e-3, 1e-5, 1.0),
        ),
        whole=True,
    ),
)
