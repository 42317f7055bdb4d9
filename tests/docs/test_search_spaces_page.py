"""The page about search spaces says what the code has, and its examples work."""

import re
from pathlib import Path

import pytest
import yaml

from evomerge.config import SpaceConfig
from evomerge.datatypes import Group
from evomerge.loading import build
from evomerge.merging.variant import Variant
from search_spaces.maps import MAPS
from search_spaces.presets import PRESETS

PAGE = (Path(__file__).parents[2] / "docs" / "search_spaces.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(text)["space"] for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]
GROUPS = tuple(Group(i, kind, i / 7, 10) for i in range(8) for kind in ("attn.q", "mlp.up"))
EXPERTS = ("math", "chat", "code")
NEEDS = {
    "swap": {"coefficients": {"map": "layer_swap", "outer": "chat", "inner": "math"}},
    "mwa": {
        "coefficients": {
            "map": "metric_weighted",
            "metrics": {"math": 0.5, "chat": 0.6, "code": 0.7},
        }
    },
}


def variants_of(options):
    space = build(SpaceConfig(**options).spec(0), experts=EXPERTS, groups=GROUPS)
    return [Variant.of_recipe(space.decode(u)) for u in space.anchors]


@pytest.mark.parametrize("options", EXAMPLES)
def test_examples_are_spaces_of_known_operators(options):
    assert variants_of(options)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_operators_and_knobs_that_exist(preset):
    assert variants_of({"preset": preset, **NEEDS.get(preset, {})})
    assert f"`{preset}`" in PAGE


def test_every_map_is_there():
    for name in MAPS:
        assert f"`{name}`" in PAGE
