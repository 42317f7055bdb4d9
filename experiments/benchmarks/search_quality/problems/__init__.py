"""The problems of the bench by name."""

from problems.classic import Classic
from problems.merge_like import MergeLike
from problems.surface import Surface

MERGE_LIKE = ("well_specified", "rugged", "plateau", "cliff")


def surface_of(name: str, instance: int) -> Surface:
    """The problem that a name like `rugged-24-3` or `zdt1-8-2` stands for: kind, dimensions, goals.

    `instance` numbers the draws of a family; textbook problems have one.
    """
    if name == "t0":
        from problems.t0 import T0

        return T0()
    if name.startswith("table"):
        from problems.tables import Table

        return Table(name)
    kind, dimensions, objectives = name.split("-")
    if kind in MERGE_LIKE:
        return MergeLike(kind, int(dimensions), int(objectives), instance)
    return Classic(kind, int(dimensions), int(objectives))
