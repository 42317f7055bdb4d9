"""A sum of products that depends neither on the number of threads nor on the pieces."""

import numpy as np
from torch import Tensor

from evomerge.merging.pieces import BLOCK


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
