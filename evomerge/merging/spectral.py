"""Linear algebra of the operators that take a weight for a matrix: float64, rank-revealing.

Every decomposition goes by the eigenvalues of the smaller Gram matrix. In float64 that costs, of a
1024 x 4096 matrix, a third of an SVD in fp32 and is more exact than it down to directions of
`FLOOR` times the largest; those below are rounding, and are left out, never blown up.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from evomerge.merging.operators.operator import TensorContext
from evomerge.merging.pieces import Piece
from evomerge.merging.serial_threads import serial_threads

FLOOR = 1e-5
"""Singular values up to this share of the largest one are taken for zero."""

# Looked up, not transformed: what a direction means there is a token, not a feature.
_TABLES = ("embed", "head")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Svd(NamedTuple):
    """`X = U diag(S) V^T` of an `(m, n)` matrix of numerical rank r, float64.

    Attributes:
        U: `(m, r)`, orthonormal columns.
        S: `(r,)`, positive, descending.
        V: `(n, r)`, orthonormal columns.
    """

    U: Tensor
    S: Tensor
    V: Tensor


def alone(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, run where torch has one thread: BLAS and LAPACK then round in one way only."""

    @functools.wraps(function)
    def on_one_thread(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.get_num_threads() == 1:
            return function(*args, **kwargs)
        return serial_threads(1).submit(function, *args, **kwargs).result()

    return on_one_thread


def matrices(piece: Piece, context: TensorContext) -> list[Tensor] | None:
    """Views of the deltas as `(rows, all the rest)`, fp32; None for what is no linear map.

    That is a tensor of less than two dimensions, an embedding, or an output head: there spectral
    operators take `mean_bases`.
    """
    if len(context.shape) < 2 or context.kind in _TABLES or not context.n_elements:
        return None
    return [delta.reshape(context.shape[0], -1) for delta in piece.deltas]


def mean_bases(piece: Piece) -> list[Tensor]:
    """`D_k = t_k / N`, whose sum is the mean of the deltas."""
    return [delta / len(piece.deltas) for delta in piece.deltas]


def flat_bases(bases: Iterable[Tensor]) -> list[Tensor]:
    """Matrices as the engine takes them: flat, contiguous and fp32."""
    return [basis.to(torch.float32).reshape(-1).contiguous() for basis in bases]


def largest_norm(matrices: Iterable[Tensor]) -> float:
    """The largest Frobenius norm: what is small against it in a difference is rounding."""
    return max(float(torch.linalg.norm(X)) for X in matrices)


def positive_eigenpairs(gram: Tensor, scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """Eigenvalues `(r,)`, descending, and eigenvectors `(n, r)` of an `(n, n)` Gram matrix.

    Only those whose root is above `FLOOR` times the largest one's, and above `FLOOR scale`: the
    size of what the matrix is a sum or a difference of. Of a matrix of zeros there are none.
    """
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    r = int((values > FLOOR**2 * values[:1].clamp(min=scale**2)).sum())
    return values[:r], vectors[:, :r]


def thin_svd(X: Tensor, rank: int | None = None, scale: float = 0.0) -> Svd:
    """The singular triplets of an `(m, n)` matrix, at most `rank` of them.

    None below the floor (see `positive_eigenpairs`). The sign of a pair of vectors is LAPACK's
    choice, as is the basis among equal values.
    """
    X = X.double()
    is_wide = X.shape[0] <= X.shape[1]
    values, vectors = positive_eigenpairs(X @ X.T if is_wide else X.T @ X, scale)
    S, near = values[:rank].sqrt(), vectors[:, :rank]
    far = (X.T if is_wide else X) @ near / S
    return Svd(near, S, far) if is_wide else Svd(far, S, near)


def polar(X: Tensor) -> Tensor:
    """`U V^T` of `X = U S V^T`: the nearest matrix with singular values 1, `(m, n)` float64.

    Directions below the floor stay zero, so that equal columns share one direction.
    """
    X = X.double()
    if X.shape[0] <= X.shape[1]:
        return inverse_root(X @ X.T) @ X
    return X @ inverse_root(X.T @ X)


def inverse_root(gram: Tensor) -> Tensor:
    """`G^(-1/2)` of an `(n, n)` Gram matrix, float64; zero where `G` is zero up to the floor."""
    values, vectors = positive_eigenpairs(gram)
    return (vectors / values.sqrt()) @ vectors.T
