"""The page about preferences and starts says what is read."""

import re
from pathlib import Path

import pytest
import yaml

from evomerge.config import FinalConfig, StartConfig, parse
from evomerge.datatypes import Dimension, Direction, Objective, Problem
from evomerge.preferences import check_preference, parse_preference
from evomerge.samplers.scalarization import scalarizer

PAGE = (Path(__file__).parents[2] / "docs" / "preferences_and_starts.md").read_text(
    encoding="utf-8"
)
EXAMPLES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]
TABLE = re.findall(r"^\| `([^`]+)` \|", PAGE, re.M)
OBJECTIVES = [
    *(Objective(name) for name in ("math", "chat", "code")),
    Objective("length", Direction.MINIMIZE),
]


@pytest.mark.parametrize("text", TABLE)
def test_every_form_of_a_preference_is_read(text):
    preference = parse_preference(text)
    check_preference(preference, OBJECTIVES)
    assert parse_preference(preference.text) == preference


def test_sections_and_whole_configurations_are_read(tmp_path):
    assert len(TABLE) == 6
    for example in EXAMPLES:
        if "base" in example:
            config = parse(yaml.safe_dump(example), folder=tmp_path)
            assert config.start is None or config.start.run == str(tmp_path / "runs" / "cheap")
    sections = [example for example in EXAMPLES if "base" not in example]
    assert [list(section) for section in sections] == [["final"], ["start"]]
    assert FinalConfig(**sections[0]["final"]).prefer == "math>=0.6, chat"
    assert set(sections[1]["start"]) == set(StartConfig.model_fields)


def test_scalarizations_are_those_that_exist():
    problem = Problem((Dimension("x"),), 1, ((0.5,),), 1)
    for kind in ("weighted", "tchebycheff", "percentile"):
        assert f"`{kind}`" in PAGE
        scalarizer(problem, kind=kind)
