"""DRM: TIES in the singular space that all experts share, with rows of equal length."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.joint_space import disjoint_mean, joint_directions
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece
from evomerge.merging.spectral import alone, flat_bases, matrices, mean_bases

# Of the largest singular value: directions below it are not merged (authors' code).
_RANK = 1e-2
# An expert whose part of a direction is shorter than this (all together have the length 1) is not
# in it: its row would be rounding, blown up to the length of the others' rows.
_ABSENT = 1e-6


@alone
def _prepare(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """The bases of Decom-Renorm-Merge (Chaichana et al. 2025, arXiv:2505.23117).

    With the deltas `t_i`, `(m, n)` each, side by side (`direction: horizontal`, DRM-H)::

        decompose    [t_1 | .. | t_N] = U S [V_1 | .. | V_N]     singular values above 1e-2 S_1
        renormalise  V^_i = V_i / q_i                            q_i the lengths of its rows
        trim         the fraction `drop` of smallest |V^_i|, one threshold for all experts
        recompose    B_i = diag(S q_i) V^_i
        merge        g = sign(sum_i B_i)   D_i = U ([sign(B_i) = g] B_i / #{j: sign(B_j) = g})

    `vertical` (DRM-V) stacks them on top of each other instead, and trims U. `drop` is .8 in the
    paper. Signs are elected at coefficients of one: `W0 + lambda sum_i D_i` is the paper's merge.
    The decomposition takes the cube of `m` (horizontal) or `n` (vertical), if `N` times the other
    is not less.

    Vectors are trimmed by `vector_drop` (each expert by its own threshold; 0 in the authors'
    code), elected and averaged. Embeddings and heads, which the authors leave alone, get the mean.

    Deviations from the authors' code: it counts after the coefficients, so that one of 0 lessens
    the others' denominators; with drop = 0 it does without the decomposition altogether; where the
    experts' entries cancel it elects the sign of the majority of entries, which is arbitrary here,
    and this elects none; an expert that has no part in a direction is not among those compared
    (there: 0/0, or its rounding counts).
    """
    if len(context.shape) < 2:
        trimmed = [_top(t.double(), context.number("vector_drop")) for t in piece.deltas]
        return flat_bases(disjoint_mean(trimmed))
    experts = matrices(piece, context)
    if experts is None:
        return mean_bases(piece)
    vertical = context.knobs["direction"] == "vertical"
    turned = [(t.T if vertical else t).double() for t in experts]
    bases = _merge_horizontally(turned, context.number("drop"))
    return flat_bases([D.T if vertical else D for D in bases])


def _merge_horizontally(deltas: Sequence[Tensor], drop: float) -> list[Tensor]:
    """The bases of the deltas side by side, all `(m, n)` float64."""
    U, S = joint_directions(deltas, _RANK)
    B = [U.T @ t for t in deltas]  # diag(S) V_i
    lengths = [b.norm(dim=1, keepdim=True) for b in B]  # S q_i
    # |V^_i|, and below any threshold where there is nothing to compare.
    renormalised = [
        torch.where(length > _ABSENT * S[:, None], b.abs() / length, -1.0)
        for b, length in zip(B, lengths, strict=True)
    ]
    threshold = _threshold(torch.cat([v[v >= 0.0] for v in renormalised]), drop)
    trimmed = [torch.where(v >= threshold, b, 0.0) for b, v in zip(B, renormalised, strict=True)]
    return [U @ share for share in disjoint_mean(trimmed)]


def _top(t: Tensor, drop: float) -> Tensor:
    """The delta without the fraction `drop` of its smallest entries."""
    return torch.where(t.abs() >= _threshold(t.abs().reshape(-1), drop), t, 0.0)


def _threshold(magnitudes: Tensor, drop: float) -> float:
    """The least of those that stay if the fraction `drop` of smallest ones goes; one stays."""
    n = magnitudes.numel()
    if not n:
        return 0.0
    n_kept = max(1, n - round(drop * n))
    return float(magnitudes.kthvalue(n - n_kept + 1).values)


OPERATORS = (
    Operator(
        "drm",
        _prepare,
        knobs=(
            KnobFacts("drop", 0.8),
            KnobFacts("direction", "horizontal", choices=("horizontal", "vertical")),
            KnobFacts("vector_drop", 0.0),
        ),
        whole=True,
    ),
)
