"""KnOTS: any operator, in the singular space that all experts share."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evomerge.errors import ConfigError
from evomerge.merging.joint_space import joint_directions
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece, Pieces, in_pieces, piece_length
from evomerge.merging.spectral import alone, flat_bases, matrices


@functools.cache  # so that variants of it are equal
def knots(inner: Operator) -> Operator:
    """`knots(inner)`, after KnOTS (Stoica et al. 2024, arXiv:2410.19735).

    With the deltas `t_i`, `(m, n)` each::

        [t_1 | .. | t_N] = U S [V_1 | .. | V_N]      singular values above 1e-5 S_1
        D^_1 .. D^_N = bases of `inner` for the deltas S V_1 .. S V_N, `(r, n)` each
        D_i = U D^_i

    It is lossless: `knots(task_arithmetic)` is task arithmetic. An operator that selects entries
    (TIES, DARE, ...) selects rotated ones, in which the experts are aligned. What `inner` knows of
    the base is its part in the same space, `U^T W0`. Knobs are those of `inner`; all that decide
    about bases are `prepare` knobs here, where a value of its own has a bank of its own. An `early`
    operator stays early, at the cost of a decomposition for every candidate: the cube of
    `min(m, n N)`. Vectors, embeddings and heads have no such space: `inner` merges them as it does.

    The authors cut singular values at 1e-5 absolute, which takes away most of what small deltas
    have; here it is relative to the largest.

    Raises:
        ConfigError: `inner` needs aids, which belong to the entries of the weights themselves.
    """
    if inner.needs:
        raise ConfigError(
            f"knots wraps operators that need only weights, but {inner.name} needs "
            f"{', '.join(inner.needs)}: use {inner.name} without knots"
        )

    @alone
    def scan(pieces: Pieces, context: TensorContext) -> Statistics:
        _, shared, inside = _shared_space(inner, next(iter(pieces())), context)
        return inner.look(shared, inside)

    @alone
    def prepare(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:
        U, shared, inside = _shared_space(inner, piece, context)
        made = inner.bases(shared, inside, statistics if must_scan else None)
        bases = [torch.cat(parts) for parts in zip(*(found for _, found in made), strict=True)]
        if U is None:
            return bases
        return [basis for D in bases for basis in flat_bases([U @ D.double().view(inside.shape)])]

    # Else it is done within `prepare`, which spares a decomposition.
    must_scan = inner.scan is not None and (inner.gather is not None or inner.weigh is not None)
    frozen = tuple(replace(knob, scope="prepare") for knob in inner.knobs)
    return Operator(
        f"knots({inner.name})",
        prepare,
        scan if must_scan else None,
        inner.gather,
        weigh=inner.weigh,
        knobs=inner.knobs if inner.weigh else frozen,
        seeded=inner.seeded,
        whole=True,
        early=inner.early,
        n_experts=inner.n_experts,
    )


def _shared_space(
    inner: Operator, piece: Piece, context: TensorContext
) -> tuple[Tensor | None, Pieces, TensorContext]:
    """The common directions `(m, r)`, and the tensor in them; None and the tensor as it is."""
    U, deltas = _aligned(matrices(piece, context))
    if U is None:
        base, deltas, inside = piece.base, piece.deltas, context
    else:
        W0 = piece.base.reshape(context.shape[0], -1).double()
        base = (U.T @ W0).float().reshape(-1)
        inside = replace(context, shape=(U.shape[1], W0.shape[1]))
    length = max(1, base.numel()) if inner.whole else piece_length(len(deltas))
    return U, in_pieces(base, deltas, length), inside


def _aligned(deltas: Sequence[Tensor] | None) -> tuple[Tensor | None, Sequence[Tensor]]:
    """`U` and the flattened fp32 `U^T t_i`; None if there are no directions."""
    if deltas is None:
        return None, ()
    U, _ = joint_directions([t.double() for t in deltas])
    if not U.numel():
        return None, ()
    return U, [(U.T @ t.double()).float().reshape(-1) for t in deltas]


WRAPPERS = {"knots": knots}
