"""The page about operators says what the code has."""

from pathlib import Path

import pytest

from evomerge.merging.operators import ALIASES, OPERATORS, WRAPPERS, KnobFacts
from evomerge.merging.operators.operator import plain

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")


def written(knob: KnobFacts) -> str:
    """As the tables have it."""
    if knob.choices:
        return f"`{knob.name}` {knob.default} ({', '.join(knob.choices)})"
    text = f"`{knob.name}` {knob.default:g} ({knob.low:g} to {knob.high:g}"
    text += ", gene" if knob.scope == "runtime" else ""
    return text + (", per expert)" if knob.per_expert else ")")


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_its_row(name: str):
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    operator = OPERATORS[name]
    _, _, _, knobs, tier, _, _ = (cell.strip() for cell in row.split("|"))
    assert knobs == ("; ".join(map(written, operator.knobs)) or "none")
    live = "P2" if operator.select else "P3"
    assert tier == ("P0" if operator.prepare is plain else live if operator.early else "P1")


def test_wrappers_and_aliases_are_there():
    for name in (*ALIASES, *(f"{wrapper}(x)" for wrapper in WRAPPERS)):
        assert f"`{name}`" in PAGE
