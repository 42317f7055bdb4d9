"""Operators that weigh by activations, Fisher information or second moments."""

from tests.support.promises import Promise

PROMISES = {
    # D_i = t_i A_i (sum A_j)^-1: the product of the two matrices may lengthen a delta.
    "regmean": Promise(identical=lambda _: 1.0, bounded=3.0),
    "regmean_exact": Promise(identical=lambda _: 1.0, bounded=3.0),
    "fisher": Promise(identical=lambda _: 1.0),
    "fisher_exact": Promise(identical=lambda _: 1.0),
    "ota": Promise(identical=lambda _: 1.0),
}
