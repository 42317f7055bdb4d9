"""Masks, owners and scores entry by entry; arcs, whose bases are the deltas as they are."""

from tests.support.promises import Promise


def one(_n):
    return 1.0


ARC = Promise(identical=float)  # of the bases; the coefficients are those of an arc

PROMISES = {
    # The score is a tanh of products: not homogeneous.
    "pcb": Promise({"r": 1.0, "clip": 0.0}, identical=one, scales=False),
    "consensus": Promise({"k": 0}, identical=float),
    "localize_and_stitch": Promise({"density": 1.0}, identical=one),
    # Earlier experts choose first.
    "cabs": Promise({"n": 256}, identical=one, permutes=False),
    # Of equal magnitudes the later expert's wins.
    "magmax": Promise(identical=one, permutes=False),
    "emr_uni": Promise(identical=one, permutes=False),
    "negmerge": Promise(identical=one),
    "sce": Promise({"density": 1.0}, identical=one),
    # Thresholds in the units of the weights.
    "nearswap": Promise({"strength": 1.0}, identical=one, scales=False),
    "ram": Promise({"epsilon": 0.0}, identical=one, scales=False),
    "ram_plus": Promise({"epsilon": 0.0}, identical=one, scales=False, bounded=1.021),
    "slerp": ARC,
    "nuslerp": ARC,
    "multislerp": ARC,
    "karcher": ARC,
}
