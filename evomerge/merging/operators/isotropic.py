"""Isotropic merging: the sum of the deltas with its singular values made equal."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece
from evomerge.merging.spectral import (
    FLOOR,
    Svd,
    alone,
    flat_bases,
    largest_norm,
    matrices,
    mean_bases,
    polar,
    positive_eigenpairs,
    thin_svd,
)


@alone
def _iso_c(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """The bases of Iso-C (Marczak et al. 2025, No Task Left Behind, arXiv:2502.04959).

    The paper's merge is `mean(S) U V^T` of the `(m, n)` matrix `T = sum_i c_i t_i = U S V^T`, the
    mean being one of `min(m, n)` values. It is linear in what it is applied to::

        D_i = mean(S) (T T^T)^(-1/2) t_i      if m <= n
        D_i = mean(S) t_i (T^T T)^(-1/2)      else

    Frozen (`iso_c`), `T` is the plain sum: at equal coefficients it is the paper's merge exactly,
    their common value being its `lambda`; 20 % apart they differ by about a fifth. Exact
    (`iso_c_exact`), it is the merge of the scaled deltas for every candidate. Where deltas cancel
    in the sum a basis may be longer than its delta. Vectors, embeddings and heads get the mean of
    the deltas, as in the authors' code.
    """
    experts = matrices(piece, context)
    if experts is None:
        return mean_bases(piece)
    T, scale = _weighted_sum(experts, _weights(piece, context))
    is_wide = T.shape[0] <= T.shape[1]
    values, vectors = positive_eigenpairs(T @ T.T if is_wide else T.T @ T, scale)
    S = values.sqrt()
    flatten = float(S.sum()) / min(T.shape) * (vectors / S) @ vectors.T
    return flat_bases(flatten @ t.double() if is_wide else t.double() @ flatten for t in experts)


@alone
def _iso_cts(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """The bases of Iso-CTS (Marczak et al. 2025, arXiv:2502.04959), common and task-specific.

    With `T = sum_i c_i t_i`, of which `k` directions are common and `d` are left to each expert::

        T = U_c S_c V_c^T                               the k leading triplets
        c_i (t_i - U_c U_c^T t_i) = U_i S_i V_i^T       the d leading triplets
        U = polar([U_1 | .. | U_N | U_c])   V = polar([V_1 | .. | V_N | V_c])
        M = mean(S_1, .., S_N, S_c) U V^T               the mean of all N d + k values

    Expert i gets its own block of `M`, divided by `c_i`, and a share of the common block: an equal
    one if the coefficients are equal, else in proportion to them, so that `sum_i c_i D_i = M`. An
    expert without a delta, or with less than a hundred-thousandth of the greatest coefficient,
    gets nothing. Frozen (`iso_cts`) all `c_i` are 1; exact (`iso_cts_exact`) they are the
    candidate's. Vectors, embeddings and heads get the mean of the deltas, as in the authors' code.
    """
    experts = matrices(piece, context)
    if experts is None:
        return mean_bases(piece)
    k, d = ranks(min(experts[0].shape), len(experts), context.number("common_fraction"))
    c = _weights(piece, context)
    least = FLOOR * max(map(abs, c))
    active = [i for i, t in enumerate(experts) if abs(c[i]) > least and t.any()]
    bases = [torch.zeros_like(t) for t in experts]
    if not active:
        return flat_bases(bases)

    T, scale = _weighted_sum(experts, c)
    common = thin_svd(T, k, scale)
    parts = [_specific(experts[i], common.U, d) for i in active]
    widths = [len(part.S) for part in (*parts, common)]
    *U, U_c = polar(torch.cat([part.U for part in (*parts, common)], 1)).split_with_sizes(widths, 1)
    *V, V_c = polar(torch.cat([part.V for part in (*parts, common)], 1)).split_with_sizes(widths, 1)

    # The triplets of c t are those of t, with |c| S and the sign in the vectors.
    total = sum(abs(c[i]) * float(part.S.sum()) for i, part in zip(active, parts, strict=True))
    mean = (total + float(common.S.sum())) / (len(experts) * d + k)
    M_c = mean * U_c @ V_c.T
    square = sum(c[i] ** 2 for i in active)
    for i, U_i, V_i in zip(active, U, V, strict=True):
        bases[i] = mean / abs(c[i]) * U_i @ V_i.T + c[i] / square * M_c
    return flat_bases(bases)


def ranks(size: int, n_experts: int, common_fraction: float) -> tuple[int, int]:
    """How many of `size` directions are common, and how many belong to each expert.

    As the authors' code has it: as many as can be shared out evenly, rounded half to even.
    """
    common = int(common_fraction * size + 1e-9)  # .29 * 100 is 29, not 28
    each = round((size - common) / n_experts)
    return max(0, size - n_experts * each), each


def _weights(piece: Piece, context: TensorContext) -> tuple[float, ...]:
    return (1.0,) * len(piece.deltas) if context.weights is None else context.weights


def _weighted_sum(experts: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, float]:
    """The sum, `(m, n)` float64, and the norm of its largest term."""
    total = torch.zeros_like(experts[0], dtype=torch.float64)
    for t, c in zip(experts, weights, strict=True):
        total.add_(t.double(), alpha=c)
    return total, max(abs(c) * largest_norm([t]) for t, c in zip(experts, weights, strict=True))


def _specific(t: Tensor, U: Tensor, rank: int) -> Svd:
    """The leading triplets of what a delta has beyond the columns of `U`."""
    t = t.double()
    return thin_svd(t - U @ (U.T @ t), rank, largest_norm([t]))


_COMMON_FRACTION = KnobFacts("common_fraction", 0.8, 0.0, 1.0)

OPERATORS = (
    Operator("iso_c", _iso_c, whole=True),
    Operator("iso_c_exact", _iso_c, whole=True, early=True),
    Operator("iso_cts", _iso_cts, knobs=(_COMMON_FRACTION,), whole=True),
    Operator("iso_cts_exact", _iso_cts, knobs=(_COMMON_FRACTION,), whole=True, early=True),
)
