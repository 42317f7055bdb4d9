"""The settings of an operator that a user may turn, and their check."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evomerge.datatypes import Knob
from evomerge.errors import ConfigError

Scope = Literal["prepare", "runtime"]


@dataclass(frozen=True, slots=True)
class KnobFacts:
    """A number in `[low, high]`, or one of `choices` if there are any.

    A `prepare` knob selects a bank: every value has one of its own. A `runtime` knob can be set in
    a recipe's `prepare` too (then the bases are frozen at its value, in a bank), or in its
    `runtime` (then it may differ from candidate to candidate at no cost). One that is `per_expert`
    may be set for a single expert: `density@math`.
    """

    name: str
    default: Knob
    low: float = 0.0
    high: float = 1.0
    scope: Scope = "prepare"
    choices: tuple[str, ...] = ()
    is_whole: bool = False
    per_expert: bool = False

    def check(self, operator: str, value: Knob) -> Knob:
        """The value in its own type: float, int for whole numbers, or a choice.

        Raises:
            ConfigError: It is out of range or no choice.
        """
        if self.choices:
            if value in self.choices:
                return value
            allowed = f"one of {', '.join(self.choices)}"
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and self.low <= float(value) <= self.high:
                if not self.is_whole:
                    return float(value)
                if float(value).is_integer():
                    return int(value)
            kind = "whole number" if self.is_whole else "number"
            allowed = f"a {kind} from {self.low:g} to {self.high:g}"
        raise ConfigError(f"{self.name} of {operator} must be {allowed}, but got {value!r}")


def complete(
    operator: str, facts: tuple[KnobFacts, ...], given: Mapping[str, Knob], scope: Scope
) -> dict[str, Knob]:
    """In `prepare` all knobs, the given ones or their defaults; in `runtime` the given ones only.

    Raises:
        ConfigError: There is no such knob in that scope, or a value is out of its range.
    """
    known = {f.name: f for f in facts if scope == "prepare" or f.scope == "runtime"}
    for name in given:
        stem, at, _ = name.partition("@")
        if stem not in known or (at and not known[stem].per_expert):
            has = f"it has {', '.join(known)}" if known else "remove it, there are none"
            raise ConfigError(f"{operator} has no {scope} knob {name!r}: {has}")
    chosen = {name: f.default for name, f in known.items()} if scope == "prepare" else {}
    chosen.update(given)
    return {
        name: known[name.partition("@")[0]].check(operator, value) for name, value in chosen.items()
    }
