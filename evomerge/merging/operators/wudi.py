"""WUDI: the merge whose rows interfere least with each expert's inputs, in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece
from evomerge.merging.spectral import (
    alone,
    flat_bases,
    matrices,
    mean_bases,
    positive_eigenpairs,
    thin_svd,
)


@alone
def _wudi(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """The bases of WUDI (Cheng et al. 2025, Whoever Started the Interference, arXiv:2503.08099).

    The rows of a delta stand for the inputs that it was trained on: the merge is to act on each
    expert's rows as that expert does. The loss is quadratic, and its least-norm minimum::

        L(M) = sum_i |(M - t_i) t_i^T|^2 / |t_i|^2      G_i = t_i^T t_i / |t_i|^2
        D_i = t_i G_i (sum_j G_j)^+                     M = sum_i D_i

    Frozen at equal coefficients: `c` rescales what was matched. The authors stop Adam after a few
    hundred steps from `sum_i t_i`, and so keep the sum where `G` is small: see `swudi`. Directions
    in which all deltas together are below the floor (see `spectral`) are left out; nearly parallel
    experts may get bases longer than their deltas. Vectors, embeddings and heads get the mean.
    """
    experts = matrices(piece, context)
    if experts is None:
        return mean_bases(piece)
    norms, units = _normalised(experts)
    X = torch.cat(units)
    m, n = units[0].shape
    if len(X) < n:  # (X^T X)^+ = X^T ((X X^T)^+)^2 X, and unit i is block i of the rows of X
        inverted = (_pseudo_inverse(X @ X.T)[i * m : (i + 1) * m] for i in range(len(units)))
        matched = (block @ X for block in inverted)
    else:
        inverse = _pseudo_inverse(X.T @ X)
        matched = (unit @ inverse for unit in units)
    return flat_bases(
        norm * torch.linalg.multi_dot([unit, unit.T, unit_inverted])
        for norm, unit, unit_inverted in zip(norms, units, matched, strict=True)
    )


@alone
def _swudi(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """WUDI's loss descended from `sum_i t_i` for a while only, in the directions that matter.

    The spectral form of WUDI in the code of OptMerge (Wei et al. 2025, arXiv:2505.19892): gradient
    flow for the time `K`, solved in closed form::

        sum_i G_i = V diag(l) V^T       the leading l, up to the share `energy` of their sum
        f = 1 - exp(-l K)
        D_i = t_i (I - V diag(f) V^T + G_i V diag(f / l) V^T)

    All other directions keep the plain sum. `G_i` has the trace 1, so `K` does not depend on the
    size of deltas. Frozen at equal coefficients; a single expert keeps its delta. The authors then
    scale by .1 to .2 for multimodal models: that is a coefficient here.
    """
    experts = matrices(piece, context)
    if experts is None:
        return mean_bases(piece)
    norms, units = _normalised(experts)
    _, S, V = thin_svd(torch.cat(units))
    energies = S.square().cumsum(0)
    within = energies < context.number("energy") * energies[-1:]
    r = min(len(S), int(within.sum()) + 1)
    L, V = S[:r].square(), V[:, :r]
    f = -torch.expm1(-context.number("time") * L)

    def basis(norm: float, unit: Tensor) -> Tensor:
        inner = unit @ V
        matched: Tensor = torch.linalg.multi_dot([unit, unit.T, inner])  # t_i G_i V / |t_i|
        return norm * (unit + (matched * (f / L) - inner * f) @ V.T)

    return flat_bases(basis(*each) for each in zip(norms, units, strict=True))


def _normalised(experts: Sequence[Tensor]) -> tuple[list[float], list[Tensor]]:
    """Frobenius norms, and the deltas divided by them; float64, zero stays zero."""
    units = [t.double() for t in experts]
    norms = [float(torch.linalg.norm(t)) for t in units]
    for unit, norm in zip(units, norms, strict=True):
        unit.div_(norm or 1.0)
    return norms, units


def _pseudo_inverse(gram: Tensor) -> Tensor:
    values, vectors = positive_eigenpairs(gram)
    return (vectors / values) @ vectors.T


OPERATORS = (
    Operator("wudi", _wudi, whole=True),
    Operator(
        "swudi",
        _swudi,
        knobs=(KnobFacts("time", 500.0, 1.0, 10_000.0), KnobFacts("energy", 0.85, 0.05, 1.0)),
        whole=True,
    ),
)
ALIASES = {"optmerge": "swudi"}
