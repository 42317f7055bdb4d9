"""The page about samplers says what the code has."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from evomerge.datatypes import Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.loading import resolve
from evomerge.samplers import MODELLED_DIMENSIONS, MODELLED_UP_TO, SAMPLERS
from evomerge.samplers.surrogate.models import FORMS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "samplers.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("| sampler | what it does |")[2].partition("\n\n")[0]


def written(name: str, default: Any) -> str:
    """An option as the table has it: with its default where that is one for all problems."""
    if default is None:
        return f"`{name}`"
    if default == FORMS:
        return f"`{name}` all"
    if isinstance(default, bool):
        return f"`{name}` {str(default).lower()}"
    if isinstance(default, tuple):
        return f"`{name}` {list(default)}"
    return f"`{name}` {default:g}" if isinstance(default, float) else f"`{name}` {default}"


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_has_its_row(name: str) -> None:
    (row,) = (line for line in TABLE.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, _, options, objectives, _, _ = (cell.strip() for cell in row.split("|"))
    parameters = inspect.signature(resolve(SAMPLERS[name])).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "seed"]
    assert options == ", ".join(written(p.name, p.default) for p in own)
    assert (objectives == "1, or weights") == ("scalarization" in [p.name for p in own])
    assert (objectives == "2 or more") == refuses_one_objective(name)


def refuses_one_objective(name: str) -> bool:
    """Whether a problem of one loss is refused."""
    dimensions = tuple(Dimension(str(i)) for i in range(6))
    problem = Problem(
        dimensions,
        n_objectives=1,
        anchors=((0.4,) * 6,),
        budget=100,
        origin=(0.0,) * 6,
        experts=(
            (1.0, 1.0, 0.0, 0.0, 0.0, 0.0),
            (0.0, 0.0, 1.0, 1.0, 0.0, 0.0),
            (0.0,) * 4 + (1.0, 1.0),
        ),
        owners=(0, 0, 1, 1, 2, 2),
    )
    try:
        resolve(SAMPLERS[name])(problem, seed=1)
    except ConfigError:
        return True
    return False


def test_the_rules_of_auto_are_the_pages() -> None:
    rule = f"`auto` takes `surrogate` up to {MODELLED_UP_TO} evaluations and {MODELLED_DIMENSIONS}"
    assert rule in PAGE


def test_no_other_sampler_is_promised() -> None:
    named = [line.split("`")[1] for line in TABLE.splitlines() if line.startswith("| `")]
    assert sorted(named) == sorted(SAMPLERS)
