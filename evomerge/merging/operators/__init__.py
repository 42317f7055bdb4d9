"""The operators by name. A new one is a file here that lists what it has in `OPERATORS`."""

import difflib
import functools
import importlib
import pkgutil
import re
from collections.abc import Callable

from evomerge.errors import ConfigError
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext

__all__ = [
    "ALIASES",
    "OPERATORS",
    "WRAPPERS",
    "KnobFacts",
    "Operator",
    "Statistics",
    "TensorContext",
    "get_operator",
]

OPERATORS: dict[str, Operator] = {}
"""By their own names."""
ALIASES: dict[str, str] = {}
"""Other names that users know them by."""
WRAPPERS: dict[str, Callable[[Operator], Operator]] = {}
"""What makes an operator of another one, written `wrapper(operator)`."""

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    _found = importlib.import_module(f"{__name__}.{_module}")
    OPERATORS.update({operator.name: operator for operator in getattr(_found, "OPERATORS", ())})
    ALIASES.update(getattr(_found, "ALIASES", {}))
    WRAPPERS.update(getattr(_found, "WRAPPERS", {}))


@functools.cache
def get_operator(name: str) -> Operator:
    """The operator of this name; an alias gives the operator it stands for.

    `wrapper(name)` is the wrapped operator, and its name in recipes.

    Raises:
        ConfigError: There is none.
    """
    wrapped = re.fullmatch(r"(\w+)\((.+)\)", name.replace(" ", ""))
    if wrapped and wrapped[1] in WRAPPERS:
        return WRAPPERS[wrapped[1]](get_operator(wrapped[2]))
    known = ALIASES.get(name, name)
    if known in OPERATORS:
        return OPERATORS[known]
    names = sorted([*OPERATORS, *ALIASES, *(f"{wrapper}(...)" for wrapper in WRAPPERS)])
    near = difflib.get_close_matches(name, names, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
    raise ConfigError(f"there is no operator {name!r}: {remedy}")
