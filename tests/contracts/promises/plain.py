"""Operators that take deltas as they are, and the control."""

from tests.support.promises import Promise

PROMISES = {
    "task_arithmetic": Promise(identical=float),
    "model_stock": Promise(identical=float),  # of its bases; its coefficients shrink with n
    "random_delta": Promise(single=False, permutes=False),
}
