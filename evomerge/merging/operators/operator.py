"""What an operator is: a name, knobs, and a function from deltas to bases."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.errors import ConfigError

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
    """Where a tensor stands in the model, and the seed for whatever is random."""

    name: str
    kind: str
    layer: int | None
    seed: int


Prepare = Callable[[Tensor, Sequence[Tensor], Mapping[str, Knob], TensorContext], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Operator:
    """A family of merges `W(c) = W0 + sum_k c_k D_k` of one tensor.

    `prepare(base, deltas, knobs, context)` gives the bases `D_k`, one for each delta. It gets the
    base in its own dtype and the deltas in fp32 (values that the base's dtype holds exactly), all
    of the same shape, and every `prepare` knob; it returns fp32. It is pure, sees one tensor only,
    answers the same whatever the number of threads, changes none of its inputs, and gives zeros
    where all deltas are zero. The coefficients come after the selection ("late"): they never
    change what is trimmed or elected.

    Attributes:
        name: As recipes spell it.
        prepare: The function.
        knobs: What a user may turn.
        seeded: Whether the bases depend on the recipe's seed.
    """

    name: str
    prepare: Prepare
    knobs: tuple[KnobFacts, ...] = ()
    seeded: bool = False

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
