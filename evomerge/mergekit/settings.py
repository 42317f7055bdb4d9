"""What a parameter in mergekit's YAML is worth for one tensor: numbers, gradients, filters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError

Scalar = bool | int | float | str
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor, and where in its slice it is: `t` from 0 (first layer) to 1 (last), if known."""

    name: str
    t: float | None = 0.0


def lookup(scopes: Iterable[Settings | None], parameter: str, place: Place) -> Scalar | None:
    """The value of the first scope that has one for this tensor; None if none has.

    Scopes come from the narrowest (a model's own parameters) to the widest (those of the file). A
    scope whose filters all miss the tensor is passed over.

    Raises:
        ConfigError: A value is of a form that the grammar does not have.
    """
    for scope in scopes:
        if scope is not None and parameter in scope:
            value = _evaluate(scope[parameter], parameter, place)
            if value is not None:
                return value
    return None


def number(value: Scalar, parameter: str) -> float:
    """A number, also where YAML 1.1 has read one as text (`1e-3`) or as a truth value.

    Raises:
        ConfigError: It is none.
    """
    try:
        return float(value)
    except ValueError as error:
        raise ConfigError(
            f"{parameter} in a mergekit file must be a number, but got {value!r}: write it in "
            "decimals"
        ) from error


def truth(value: Scalar, parameter: str) -> bool:
    """A truth value; mergekit 0.1.4 writes its own as 1.0.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise ConfigError(
        f"{parameter} in a mergekit file must be true or false, but got {value!r}: write one of "
        "them"
    )


def _evaluate(setting: Any, parameter: str, place: Place) -> Scalar | None:
    """A scalar; a gradient (a list of scalars over `t`); or the first filter that matches."""
    if isinstance(setting, bool | int | float | str):
        return setting
    cases = [setting] if isinstance(setting, dict) else setting
    if isinstance(cases, list) and all(isinstance(c, bool | int | float | str) for c in cases):
        return _on_gradient(cases, parameter, place.t) if cases else None
    if not isinstance(cases, list) or not all(
        isinstance(case, dict) and "value" in case for case in cases
    ):
        raise ConfigError(
            f"a parameter in a mergekit file is a scalar, a list of scalars or a list of "
            f"{{filter, value}}, but {parameter} is {setting!r}: write one of these"
        )
    for case in cases:
        fragment = case.get("filter")
        if fragment in (None, "*") or str(fragment) in place.name:
            return _evaluate(case["value"], parameter, place)
    return None


def _on_gradient(values: list[Scalar], parameter: str, t: float | None) -> Scalar:
    """Numbers are interpolated, truth values (and words) are picked by rounding down."""
    if t is None:
        raise ConfigError(
            f"a gradient runs over the layers of the models, but for that of {parameter} their "
            "number is not known: give the base as a folder that is there"
        )
    at = t * (len(values) - 1)
    i = int(at)
    try:
        ends = [float(v) for v in values if not isinstance(v, bool)]
    except ValueError:
        return values[i]
    if len(ends) < len(values):
        return values[i]
    j, share = min(i + 1, len(values) - 1), at - i
    return (1.0 - share) * number(values[i], parameter) + share * number(values[j], parameter)
