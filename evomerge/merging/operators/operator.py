"""What an operator is: a name, knobs, and functions from deltas to bases."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.errors import ConfigError
from evomerge.merging.pieces import Piece, Pieces

Scope = Literal["prepare", "runtime"]


@dataclass(frozen=True, slots=True)
class KnobFacts:
    """A number that a user may turn. `prepare` knobs select a bank, `runtime` ones are free."""

    name: str
    default: float
    low: float
    high: float
    scope: Scope


@dataclass(frozen=True, slots=True)
class TensorContext:
    """What is known of a tensor before its values: its place, shape, the knobs and the seed."""

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    knobs: Mapping[str, Knob]
    seed: int

    @property
    def n_elements(self) -> int:
        """How many numbers it holds."""
        n = 1
        for size in self.shape:
            n *= size
        return n


# What a `scan` found out and its `prepare` needs: numbers and histograms, never tensors' values.
Statistics = Any
Scan = Callable[[Pieces, TensorContext], Statistics]
Prepare = Callable[[Piece, Statistics, TensorContext], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Operator:
    """A family of merges `W(c) = W0 + sum_k c_k D_k` of one tensor.

    `scan(pieces, context)` looks at the whole tensor first, in as many passes as it likes, and
    answers with what `prepare` must know of it. `prepare(piece, statistics, context)` then gives
    the bases `D_k` of a piece, one for each delta, fp32 and flat. Both see one tensor only, change
    none of their inputs, and answer the same whatever the number of threads and the length of the
    pieces (sums: `inner_product`; random numbers: by block). A delta of zero has a basis of zero.
    The coefficients come after the selection ("late"): they never change what is trimmed or
    elected.

    Attributes:
        name: As recipes spell it.
        prepare: Makes the bases.
        scan: Makes the statistics; None if there is nothing to know (then they are None).
        knobs: What a user may turn; those of `prepare` are in the context.
        seeded: Whether the bases depend on the recipe's seed.
        whole: Whether the only piece must be the whole tensor (to be viewed as `context.shape`);
            it costs the memory of that.
    """

    name: str
    prepare: Prepare
    scan: Scan | None = None
    knobs: tuple[KnobFacts, ...] = ()
    seeded: bool = False
    whole: bool = False

    def bases(self, pieces: Pieces, context: TensorContext) -> Iterator[tuple[Piece, list[Tensor]]]:
        """Every piece of a tensor and its bases; the first comes after the scan."""
        statistics = None if self.scan is None else self.scan(pieces, context)
        for piece in pieces():
            yield piece, self.prepare(piece, statistics, context)

    def complete(self, given: Mapping[str, Knob], scope: Scope) -> dict[str, float]:
        """All knobs of a scope: the given ones, else the defaults.

        Raises:
            ConfigError: There is no such knob, or it is out of its range.
        """
        known = {knob.name: knob for knob in self.knobs if knob.scope == scope}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(
                    f"{self.name} has no {scope} knob {name!r}: "
                    + (f"it has {', '.join(known)}" if known else "remove it, there are none")
                )
            knob = known[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and knob.low <= float(value) <= knob.high):
                raise ConfigError(
                    f"{name} of {self.name} must be a number from {knob.low:g} to {knob.high:g}, "
                    f"but got {value!r}"
                )
        return {name: float(given.get(name, knob.default)) for name, knob in known.items()}
