"""Operators of common spaces, of the experts' order, and of columns."""

from tests.support.promises import Promise

PROMISES = {
    # Elects per entry of the common space, from which directions below 1e-2 are left out.
    "drm": Promise(plain_knobs={"drop": 0.0}, identical=lambda _: 1.0),
    # n identical experts have one direction where the formula has n orthogonal ones.
    "dc_merge": Promise(plain_knobs={"keep": 1.0}),
    # The order is part of the method; identical experts add nothing to the first.
    "opcm": Promise(identical=lambda _: 1.0, permutes=False),
    # Ranks are of whole weights: how they change with the deltas' scale depends on the base.
    "widen": Promise(scales=False),
}
