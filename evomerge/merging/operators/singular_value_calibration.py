"""Singular value calibration: what several experts count over and over is counted once."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evomerge.errors import ConfigError
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece
from evomerge.merging.spectral import FLOOR, alone, flat_bases, largest_norm, matrices, thin_svd

_ALPHA = KnobFacts("svc_alpha", 0.1, 0.01, 1.0)


@functools.cache  # so that variants of it are equal
def svc(inner: Operator) -> Operator:
    """The operator with its merge calibrated (Li et al. 2026, arXiv:2602.05536).

    With its merge at ones `M = U S V^T`, per direction `u`, the i-th column of `U`::

        a_i = u^T t_i    a = u^T M    s_i = <a, a_i> / |a_i|^2
        g = N / sum_i max(alpha, s_i)
        D_k <- D_k + U diag(g - 1) U^T D_k

    At ones that is the paper's `U diag(g) S V^T`; from there on it is frozen, unless the operator
    is early: then `M` is the candidate's. What a basis has beyond the columns of `U`, which
    cancels in `M`, is kept as it is. Experts without a share in a direction have no say in it (the
    formula has 0/0 there). Vectors, embeddings and heads are left as the operator has them.

    All knobs select a bank, as the calibration depends on them.

    Raises:
        ConfigError: It is calibrated already.
    """
    if any(knob.name == _ALPHA.name for knob in inner.knobs):
        raise ConfigError(f"svc calibrates an operator once, but got {inner.name}: name it alone")

    def prepare(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:
        bases = inner.prepare(piece, statistics, context)
        experts = matrices(piece, context)
        if experts is None:
            return bases
        merge = _merge_weights(inner, len(bases), statistics, context)
        shaped = [basis.reshape(experts[0].shape) for basis in bases]
        return _calibrated(shaped, merge, experts, context.number(_ALPHA.name))

    return Operator(
        f"svc({inner.name})",
        prepare,
        scan=inner.scan,
        gather=inner.gather,
        weigh=inner.weigh,
        knobs=(*(replace(knob, scope="prepare") for knob in inner.knobs), _ALPHA),
        seeded=inner.seeded,
        whole=True,
        early=inner.early,
        n_experts=inner.n_experts,
        needs=inner.needs,
    )


def _merge_weights(
    inner: Operator, n_bases: int, statistics: Statistics, context: TensorContext
) -> Sequence[float]:
    """Which sum of the bases is calibrated.

    Raises:
        ConfigError: The operator scales the base, so that its merge is no sum of bases.
    """
    weights = (1.0,) * n_bases if context.weights is None else context.weights
    if inner.weigh is None:
        return weights
    of_base, of_bases = inner.weigh(weights, statistics, context)
    if of_base:
        raise ConfigError(
            f"svc calibrates what is added to the base, but {inner.name} scales the base itself: "
            "choose another operator"
        )
    return of_bases


@alone
def _calibrated(
    bases: Sequence[Tensor], weights: Sequence[float], experts: Sequence[Tensor], alpha: float
) -> list[Tensor]:
    """The bases, `(m, n)` each, with every direction of their weighted sum scaled."""
    M = torch.zeros_like(bases[0], dtype=torch.float64)
    for D, c in zip(bases, weights, strict=True):
        M.add_(D.double(), alpha=c)
    U, S, V = thin_svd(M, scale=largest_norm(bases))
    a = (V * S).T
    total, n_present = torch.zeros_like(S), torch.zeros_like(S)
    for t in experts:
        a_i = U.T @ t.double()
        square = a_i.square().sum(1)
        present = square > (FLOOR * S) ** 2
        s = (a * a_i).sum(1) / square.where(present, 1.0)
        total += s.clamp(min=alpha).where(present, 0.0)
        n_present += present
    g = (n_present / total).where(n_present > 0, 1.0)
    return flat_bases(D + (U * (g - 1.0)) @ (U.T @ D) for D in (D.double() for D in bases))


WRAPPERS = {"svc": svc}
