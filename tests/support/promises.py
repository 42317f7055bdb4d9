"""How an operator departs from what all operators promise (see test_operator_contract.py)."""

import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.datatypes import Knob


@dataclass(frozen=True)
class Promise:
    """What holds for one operator.

    Attributes:
        plain_knobs: The ends of the ranges at which it selects everything.
        identical: With these, n identical deltas t sum to `identical(n) t`; None: not promised.
        single: With these, a single delta t gives the basis t.
        permutes: Permuting experts permutes bases.
        scales: Scaling all deltas scales all bases.
        bounded: No basis is longer than this many times the longest delta.
        rtol: To which relative precision (of the largest entry) the above hold.
    """

    plain_knobs: Mapping[str, Knob] = field(default_factory=dict)
    identical: Callable[[int], float] | None = None
    single: bool = True
    permutes: bool = True
    scales: bool = True
    bounded: float = 1.00001
    rtol: float = 1e-6


def _collect() -> dict[str, Promise]:
    found: dict[str, Promise] = {}
    for path in sorted((Path(__file__).parents[1] / "contracts" / "promises").glob("*.py")):
        found.update(runpy.run_path(str(path))["PROMISES"])
    return found


PROMISES = _collect()
