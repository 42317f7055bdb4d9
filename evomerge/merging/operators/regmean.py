"""RegMean: the weights whose outputs are nearest to those of all experts, by least squares."""

import torch
from torch import Tensor

from evomerge.merging.least_squares import GRAM, INPUT_AXIS, has, inner_weights, mean
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece

# Of the diagonal: well above the rounding of Grams that are kept in fp32.
_RIDGE = 1e-6
# Of the mean of the diagonal: where that is zero.
_LEAST = 1e-12


def _prepare(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """RegMean (Jin et al. 2023, arXiv:2212.09849, eq. 2) of deltas, which equals that of weights.

    With the Gram `G_i = X_i^T X_i / n_i` of what the layer reads in expert i, per matrix::

        A_i = alpha G_i + (1 - alpha) diag(G_i)
        D_i = t_i A_i (sum_j |c_j| A_j)^-1           W = W0 + sum_i c_i D_i

    `regmean` is frozen at c = 1 inside the inverse: what is searched rescales each expert's
    matched delta. `regmean_exact` has the searched coefficients there (see `least_squares`).

    alpha is .9 as in the paper; language models may want less (.1 to .5 in later studies). Every
    A_i has an equal share of a ridge of 1e-6 of the sum's diagonal, where the paper inverts the sum
    as it is: directions that no expert reads get the mean of the deltas instead of noise. So do
    tensors without Grams: vectors, embeddings, heads tied to them, layers that no text reached.
    """
    weights = inner_weights(piece, context)
    if not has(GRAM, context):
        return mean(piece, weights)
    grams = [aids[GRAM].double() for aids in context.aids]
    alpha = context.number("alpha")
    total = torch.zeros_like(grams[0])
    for c, gram in zip(weights, grams, strict=True):
        total.add_(gram, alpha=c)
    size = float(total.diagonal().mean())
    if size <= 0.0:
        return mean(piece, weights)
    diagonal = total.diagonal().clone()
    total.mul_(alpha).diagonal().copy_(diagonal)
    factor, ridge = _cholesky(total, _RIDGE * diagonal + _LEAST * size)
    reads_columns = int(context.aids[0][INPUT_AXIS]) == 1

    def basis(t: Tensor, gram: Tensor) -> Tensor:
        matrix = t.view(context.shape).double()
        if not reads_columns:
            matrix = matrix.T
        rest = (1.0 - alpha) * gram.diagonal() + ridge / sum(weights)
        tA = alpha * (matrix @ gram) + matrix * rest
        D = torch.cholesky_solve(tA.T, factor)  # transposed, as the sum of the A_j is symmetric
        return (D.T if reads_columns else D).float().reshape(-1)

    return [basis(t, gram) for t, gram in zip(piece.deltas, grams, strict=True)]


def _cholesky(matrix: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """The lower factor with the `(in,)` ridge on the diagonal, and the ridge that it took.

    Rounded Grams may have eigenvalues below zero; where they exceed the ridge (thousands of inputs,
    alpha 1) ten times as much is tried.
    """
    while True:
        ridged = matrix.clone()
        ridged.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not int(failed):
            return factor, ridge
        ridge = 10.0 * ridge


_KNOBS = (KnobFacts("alpha", 0.9),)

OPERATORS = (
    Operator("regmean", _prepare, knobs=_KNOBS, whole=True, needs=(GRAM,)),
    Operator("regmean_exact", _prepare, knobs=_KNOBS, whole=True, early=True, needs=(GRAM,)),
)
