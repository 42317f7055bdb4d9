"""The operators by name. A new one is a file here and a line in `OPERATORS`."""

import difflib

from evomerge.errors import ConfigError
from evomerge.merging.operators.linear import task_arithmetic
from evomerge.merging.operators.model_stock import model_stock
from evomerge.merging.operators.operator import KnobFacts, Operator, TensorContext
from evomerge.merging.operators.random_delta import random_delta
from evomerge.merging.operators.ties import ties

__all__ = ["OPERATORS", "KnobFacts", "Operator", "TensorContext", "get_operator"]

OPERATORS: dict[str, Operator] = {
    "task_arithmetic": task_arithmetic,
    "linear": task_arithmetic,
    "ties": ties,
    "model_stock": model_stock,
    "random_delta": random_delta,
}


def get_operator(name: str) -> Operator:
    """The operator of this name; an alias gives the operator it stands for.

    Raises:
        ConfigError: There is none.
    """
    if name in OPERATORS:
        return OPERATORS[name]
    near = difflib.get_close_matches(name, OPERATORS, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(OPERATORS)}"
    raise ConfigError(f"there is no operator {name!r}: {remedy}")
