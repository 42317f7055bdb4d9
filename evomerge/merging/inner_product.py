"""A sum of products that depends neither on the number of threads nor on the pieces."""

from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.pieces import BLOCK, Pieces


def inner_product(x: Tensor, y: Tensor, before: float = 0.0) -> float:
    """`before + sum_i x_i y_i` of two flat CPU tensors, in float64 and in a fixed order.

    A sum over a whole tensor is continued from piece to piece. BLAS and torch split their sums
    between threads, and then the last bits tell how many.
    """
    total = before
    for start in range(0, x.numel(), BLOCK):
        products = x[start : start + BLOCK].double()
        products.mul_(products if x is y else y[start : start + BLOCK].double())
        total += float(np.add.reduce(products.numpy()))
    return total


def gram_matrix(pieces: Pieces, *, with_base: bool = False) -> Tensor:
    """Inner products of a tensor's deltas, `(n_experts, n_experts)` float64.

    Args:
        pieces: The tensor.
        with_base: Whether the base comes first, as row and column 0.
    """
    products: dict[tuple[int, int], float] = {}
    n = 0
    for piece in pieces():
        vectors = [piece.base.float(), *piece.deltas] if with_base else list(piece.deltas)
        n = len(vectors)
        for i, j in combinations_with_replacement(range(n), 2):
            products[i, j] = inner_product(vectors[i], vectors[j], products.get((i, j), 0.0))
    gram = torch.zeros(n, n, dtype=torch.float64)
    for (i, j), product in products.items():
        gram[i, j] = gram[j, i] = product
    return gram
