"""OPCM: one expert after the other, each without what lies along those before it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import NOTHING, Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece, Pieces
from evomerge.merging.spectral import FLOOR, alone, flat_bases, matrices, thin_svd


@alone
def _scan(pieces: Pieces, context: TensorContext) -> Statistics:
    """Squared norms of the deltas `(n_experts,)` and of their merge before it is rescaled `()`."""
    if context.knobs["rescale"] != "model":
        return NOTHING
    piece = next(iter(pieces()))
    return _squares(piece.deltas, _cleaned(piece, context))


def _gather(statistics: Sequence[Statistics], knobs: Mapping[str, Knob]) -> Statistics:
    """The factor that gives the whole model's merge the mean norm of the experts' deltas."""
    if knobs["rescale"] != "model" or not statistics:
        return NOTHING
    names = ("deltas", "merged")
    return {
        "scale": _scale({name: torch.stack([s[name] for s in statistics]).sum(0) for name in names})
    }


@alone
def _prepare(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:  # noqa: ARG001
    """The bases of OPCM (Tang et al. 2025, Merging Models on the Fly, arXiv:2501.09522).

    With the deltas `t_1 .. t_N` in the order of the experts, per matrix::

        A_1 = t_1
        A_{i-1} = U diag(S) V^T                 full, U (m, m) and V (n, n)
        P = U^T t_i V                           and P_jj = 0, P[:r, :r] = 0
        D_i = U P V^T ;  A_i = A_{i-1} + D_i    r: the first so many values have a share of alpha

    and at last all are multiplied by `mean_i |t_i| / |A_N|`. The paper rescales after every expert
    and undoes it before the next: its `lambda_{t-1} M` is the `A_{t-1}` here, and neither singular
    vectors nor shares depend on the factor. So one factor is left, which is exact for any order:
    `W0 + sum_i D_i` is the paper's merge.

    `alpha` is .5. `rescale` says of which norms: of the whole `model` as in the paper, which makes
    all decompositions twice; of each `tensor`; or `none`. Permuting the experts gives another
    merge. All other tensors have `D_i = t_i`, rescaled alike.

    `P` is zeroed only along singular vectors of `A`, so that a thin SVD tells what to take away;
    the part of `t_i` outside of their span stays. Deviations from FusionBench's code: directions
    in which `A` is zero are not zeroed along the diagonal, as any basis of them would be as good;
    alpha = 1 projects off all of `A` (there: nothing).
    """
    bases = _cleaned(piece, context)
    if context.knobs["rescale"] == "tensor":
        factor = float(_scale(_squares(piece.deltas, bases)))
    else:
        factor = float(context.model["scale"]) if context.knobs["rescale"] == "model" else 1.0
    return flat_bases([D * factor for D in bases])


def _cleaned(piece: Piece, context: TensorContext) -> list[Tensor]:
    """What each delta adds to those before it, float64."""
    deltas = matrices(piece, context)
    if deltas is None:
        return [t.double() for t in piece.deltas]
    A = deltas[0].double()
    cleaned = [A.clone()]
    for delta in deltas[1:]:
        t = delta.double()
        t_outside = t - _along(A, t, context.number("alpha"))
        if float(t_outside.norm()) <= FLOOR * float(t.norm()):
            t_outside.zero_()  # nothing but rounding is left
        A += t_outside
        cleaned.append(t_outside)
    return cleaned


def _along(A: Tensor, t: Tensor, alpha: float) -> Tensor:
    """The part of `t` along the leading singular vectors of `A`, and along pairs of the others."""
    U, S, V = thin_svd(A)
    P = U.T @ t @ V
    shares = S.cumsum(0)
    r = int((shares <= alpha * shares[-1:]).sum())
    removed = P.diagonal().diag()
    removed[:r, :r] = P[:r, :r]
    return U @ removed @ V.T


def _squares(deltas: Sequence[Tensor], bases: Sequence[Tensor]) -> Statistics:
    merged = torch.zeros_like(bases[0])
    for D in bases:
        merged += D
    squares = [t.double().reshape(-1).norm().square() for t in deltas]
    return {"deltas": torch.stack(squares), "merged": merged.reshape(-1).norm().square()}


def _scale(squares: Statistics) -> Tensor:
    """1 where the deltas cancel."""
    norms, merged = squares["deltas"].sqrt(), squares["merged"].sqrt()
    if float(merged) <= FLOOR * float(norms.max()):
        return torch.ones_like(merged)
    return norms.mean() / merged


OPERATORS = (
    Operator(
        "opcm",
        _prepare,
        _scan,
        _gather,
        knobs=(
            KnobFacts("alpha", 0.5),
            KnobFacts("rescale", "model", choices=("model", "tensor", "none")),
        ),
        whole=True,
    ),
)
