"""The problems of the bench by name."""

from .classic import Classic
from .merge_like import MergeLike
from .surface import Surface
from .t0 import T0
from .tables import LOGS, SWEEPS, Log, Sweep

MERGE_LIKE = ("well_specified", "rugged", "plateau", "cliff")


def surface_of(name: str, instance: int) -> Surface:
    """The problem that a name like `rugged-24-3` or `zdt1-8-2` stands for: kind, dimensions, goals.

    `instance` numbers the draws of a merge-like family; every other problem has one, and only the
    noise and the sampler's seed differ.
    """
    kind, dimensions, objectives = name.split("-")
    if kind == "t0":
        return T0()
    if kind in LOGS:
        return Log(kind, int(objectives))
    if kind in SWEEPS:
        return Sweep(kind, int(objectives))
    if kind in MERGE_LIKE:
        return MergeLike(kind, int(dimensions), int(objectives), instance)
    return Classic(kind, int(dimensions), int(objectives))


def has_instances(name: str) -> bool:
    """Whether each seed is another draw of the problem."""
    return name.split("-")[0] in MERGE_LIKE
