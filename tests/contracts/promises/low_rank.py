"""Operators on factors, where adapters change a weight as a whole; factors: test_low_rank.py."""

from tests.support.promises import Promise


def one(_n):
    return 1.0


PROMISES = {
    "factor_sum": Promise(identical=float),
    "lora_lego": Promise(identical=one),
    "robust_merge": Promise(identical=one),
}
