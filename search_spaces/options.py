"""Checks of the options that a user writes under `space:`, with near misses named."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from evomerge.errors import ConfigError

DECIMALS = 6
"""Digits of a coefficient: points that no merge can tell apart share a recipe and its digest."""


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


def mapping(what: str, value: object, keys: Iterable[str] | None = None) -> Mapping[str, object]:
    """Return a mapping, all its keys among `keys` (None: any words).

    Raises:
        ConfigError: it is no mapping, or a key is unknown.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must be a mapping of keys, but got {value!r}: write key: value")
    allowed = None if keys is None else sorted(keys)
    for key in value:
        if allowed is not None:
            known(f"a key of {what}", key, allowed)
        elif not isinstance(key, str):
            raise ConfigError(f"the keys of {what} must be names, but one is {key!r}: quote it")
    return value


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


def number(what: str, value: object, example: float) -> float:
    """Return a finite number.

    Raises:
        ConfigError: it is something else.
    """
    # comparing refuses NaN and infinity at once
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise ConfigError(
            f"{what} must be a number between -1e6 and 1e6, but got {value!r}: write a number "
            f"such as {example:g}"
        )
    return float(value)


def interval(
    options: Mapping[str, object], low: float, high: float, *, prefix: str = "", of: str = ""
) -> tuple[float, float]:
    """Return `low` and `high` of the options, or the defaults given.

    Args:
        options: Where the user writes them.
        low: The default.
        high: The default.
        prefix: Before the two keys.
        of: Whose range it is, for the message.

    Raises:
        ConfigError: one is not a finite number, or they do not rise.
    """
    whose = f" of {of}" if of else ""
    bounds = [
        number(f"{prefix}{key}{whose}", options.get(f"{prefix}{key}", default), default)
        for key, default in (("low", low), ("high", high))
    ]
    if not bounds[0] < bounds[1]:
        raise ConfigError(
            f"{prefix}low{whose} must be below {prefix}high, but {prefix}low={bounds[0]} and "
            f"{prefix}high={bounds[1]}: the default is {prefix}low={low} and {prefix}high={high}"
        )
    return bounds[0], bounds[1]


def starts(
    what: str, value: object, low: float, high: float, n_experts: int
) -> tuple[float, ...] | None:
    """Return where a search starts: one number or several, best first; None if not said.

    The word `average` stands for one divided by the number of experts, moved to the nearest end
    of the range.

    Raises:
        ConfigError: one is no number or outside `[low, high]`, or the list is empty.
    """
    if value is None:
        return None
    wished = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not wished:
        raise ConfigError(f"{what} must be a number or a list of some, but the list is empty")
    found: list[float] = []
    for one in wished:
        if one == "average":
            found.append(min(max(1.0 / n_experts, low), high))
            continue
        start = number(what, one, (low + high) / 2)
        if not low <= start <= high:
            raise ConfigError(
                f"{what} must lie between low={low:g} and high={high:g}, but got {start:g}: move "
                f"it into the range, or widen the range"
            )
        found.append(start)
    return tuple(dict.fromkeys(found))
