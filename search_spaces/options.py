"""Checks of the options that a user writes under `space:`, with near misses named."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from evomerge.errors import ConfigError


def known(what: str, name: object, names: Iterable[str]) -> str:
    """Return `name` if it is one of `names`.

    Raises:
        ConfigError: it is not; the message names the nearest one.
    """
    allowed = sorted(names)
    if isinstance(name, str) and name in allowed:
        return name
    near = get_close_matches(str(name), allowed, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
    raise ConfigError(f"{what} must be one of {', '.join(allowed)}, but got {name!r}: {hint}")


def count(what: str, value: object, at_least: int) -> int:
    """Return a whole number that is large enough.

    Raises:
        ConfigError: it is not whole or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(
            f"{what} must be a whole number of at least {at_least}, but got {value!r}: "
            f"write {at_least} or more"
        )
    return value


def interval(options: Mapping[str, object], low: float, high: float) -> tuple[float, float]:
    """Return `low` and `high` of the options, or the defaults given.

    Raises:
        ConfigError: one is not a finite number, or they do not rise.
    """
    bounds = []
    for key, default in (("low", low), ("high", high)):
        value = options.get(key, default)
        # comparing refuses NaN and infinity at once
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
            raise ConfigError(
                f"{key} must be a number between -1e6 and 1e6, but got {value!r}: write a "
                f"coefficient such as {default}"
            )
        bounds.append(float(value))
    if not bounds[0] < bounds[1]:
        raise ConfigError(
            f"low must be below high, but low={bounds[0]} and high={bounds[1]}: "
            f"the default is low={low} and high={high}"
        )
    return bounds[0], bounds[1]
