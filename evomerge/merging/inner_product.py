"""A sum of products that does not depend on the number of threads."""

import numpy as np
from torch import Tensor

_CHUNK = 1 << 20


def inner_product(x: Tensor, y: Tensor) -> float:
    """`sum_i x_i y_i` of two CPU tensors of one shape, in float64 and in a fixed order.

    BLAS and torch split their sums between threads, and then the last bits tell how many.
    """
    a, b = x.reshape(-1), y.reshape(-1)
    total = 0.0
    for start in range(0, a.numel(), _CHUNK):
        products = a[start : start + _CHUNK].double() * b[start : start + _CHUNK].double()
        total += float(np.add.reduce(products.numpy()))
    return total
