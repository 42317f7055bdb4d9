"""What every search space promises, whatever it varies."""

import itertools
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.datatypes import Group, Recipe
from evomerge.loading import resolve
from search_spaces import SPACES

EXPERTS = ("chat", "math", "code")


def groups_of(n_layers: int) -> tuple[Group, ...]:
    """A llama-like model: embedding, layers of attention, mlp and norm, final norm, head."""
    inside = tuple(
        Group(layer, kind, layer / max(n_layers - 1, 1), 10)
        for layer in range(n_layers)
        for kind in ("attn.q", "attn.o", "mlp.up", "norm")
    )
    outside = (Group(None, "norm", 1.0, 10), Group(None, "head", 1.0, 10))
    return (Group(None, "embed", 0.0, 10), *inside, *outside)


MAPS: list[dict[str, Any]] = [
    {},
    {"map": "global"},
    {"map": "depth_bins", "bins": 3},
    {"map": "depth_spline", "knots": 2},
    {"map": "depth_spline", "knots": 5, "low": -1.0, "high": 2.0},
    {"map": "kind_depth"},
    {"map": "per_layer", "low": 0.0, "high": 1.0},
    {"map": "per_tensor"},
]
GATES: list[dict[str, Any] | None] = [
    None,
    {"per": ["expert"]},
    {"per": ["expert", "layer"]},
    {"per": ["expert", "kind"]},
]
SETTINGS: dict[str, tuple[str, int, dict[str, Any]]] = {
    f"layerwise {i}.{j}, {n_layers} layers": (
        "layerwise",
        n_layers,
        {"coefficients": c, "gates": g},
    )
    for (i, c), (j, g), n_layers in itertools.product(enumerate(MAPS), enumerate(GATES), (1, 6))
}


METRICS = {"chat": 0.4, "math": 0.7, "code": 0.6}
DENSITY = {"low": 0.05, "high": 1.0, "start": 0.3}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lines": ("layerwise", {"coefficients": {"map": "lines"}}),
    "split": ("layerwise", {"coefficients": {"map": "split_point"}}),
    "free split": ("layerwise", {"coefficients": {"map": "split_point", "after": "free"}}),
    "simplex": ("layerwise", {"coefficients": {"map": "simplex"}, "gates": {"per": "expert"}}),
    "softmax": ("layerwise", {"coefficients": {"map": "simplex", "weights": "softmax"}}),
    "swap": ("layerwise", {"coefficients": {"map": "layer_swap", "outer": "code"}}),
    "mwa": ("layerwise", {"coefficients": {"map": "metric_weighted", "metrics": METRICS}}),
    "decay": ("layerwise", {"coefficients": {"map": "decay"}}),
    "multipliers": (
        "layerwise",
        {"coefficients": {"multipliers": {"low": 0.5, "high": 2.0}}, "gates": {"per": "expert"}},
    ),
    "knobs": (
        "layerwise",
        {
            "operator": "della",
            "genes": {
                "density": {**DENSITY, "per_expert": True},
                "epsilon": {"low": 1e-4, "high": 0.5, "scale": "log"},
                "strength": {"low": 0.5, "high": 2.0, "start": 1.0},
                "shuffle": {"low": 0, "high": 3, "whole": True},
            },
        },
    ),
    "ta-depth preset": ("merge", {"preset": "ta-depth"}),
    "variants preset": ("merge", {"preset": "variants"}),
    "conditional genes": (
        "merge",
        {
            "coefficients": {"map": "global"},
            "gates": {"per": ["expert", "kind"]},
            "variants": [
                {"operator": "task_arithmetic"},
                {"operator": "ties", "genes": {"density": DENSITY}},
                {"operator": "dare", "genes": {"drop_rate": {"low": 0.1, "high": 0.95}}},
                {"operator": "ties", "coefficients": {"map": "decay"}},
            ],
        },
    ),
}
OWNED = list(SETTINGS)
"""Spaces of which every dimension belongs to one expert and the default anchors are promised."""
SETTINGS |= {name: (short, 6, options) for name, (short, options) in OTHERS.items()}


def build(name: str) -> Any:
    short, n_layers, options = SETTINGS[name]
    return resolve(SPACES[short])(experts=EXPERTS, groups=groups_of(n_layers), **options)


def points_of(space: Any) -> st.SearchStrategy[list[float]]:
    n = len(space.dimensions)
    return st.lists(st.floats(0.0, 1.0), min_size=n, max_size=n)


@pytest.fixture(params=list(SETTINGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def space(name: str) -> Any:
    return build(name)


@pytest.fixture(params=OWNED)
def owned_space(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def test_dimensions_have_distinct_readable_labels(space: Any) -> None:
    labels = [dimension.label for dimension in space.dimensions]
    assert labels
    assert len(set(labels)) == len(labels)
    assert all(label.strip() == label and label for label in labels)


def test_anchors_are_distinct_points_of_the_cube_with_all_gates_on(space: Any) -> None:
    assert len(set(space.anchors)) == len(space.anchors) >= 1
    for anchor in space.anchors:
        assert len(anchor) == len(space.dimensions)
        assert all(type(u) is float and 0.0 <= u <= 1.0 for u in anchor)
        bits = [u for u, d in zip(anchor, space.dimensions, strict=True) if d.kind == "binary"]
        assert set(bits) <= {1.0}
        for u, dimension in zip(anchor, space.dimensions, strict=True):
            if dimension.kind == "categorical":
                assert u == dimension.position(dimension.choice(u))


def test_anchors_decode_to_the_known_good_merges(owned_space: Any) -> None:
    promised = [1 / 3, 0.3, 0.4]
    assert len(owned_space.anchors) == 3
    for anchor, value in zip(owned_space.anchors, promised, strict=True):
        np.testing.assert_allclose(owned_space.decode(anchor).matrix(), value, atol=1e-6)


def test_no_dimension_is_wasted(space: Any) -> None:
    """Each changes the recipe of some point."""
    rng = np.random.default_rng(2)
    for i in range(len(space.dimensions)):
        for _ in range(60):
            u = rng.random(len(space.dimensions))
            before = space.decode(u)
            u[i] = (u[i] + 0.5) % 1.0
            if space.decode(u) != before:
                break
        else:
            pytest.fail(f"{space.dimensions[i].label} never changes anything")


def test_a_decoded_recipe_is_complete_plain_and_round_trips(space: Any) -> None:
    recipe = space.decode(space.anchors[0])
    assert recipe.experts == EXPERTS
    assert recipe.matrix().shape == (len(EXPERTS), len(recipe.groups))
    assert all(type(c) is float for row in recipe.coefficients for c in row)
    assert all(type(knob) in (float, int, str) for knob in recipe.runtime.values())
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert pickle.loads(pickle.dumps(recipe)).digest == recipe.digest


@settings(max_examples=25)
@given(st.data())
def test_a_point_always_decodes_to_the_same_recipe_within_the_range(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(SETTINGS)))
    space, again = build(name), build(name)
    u = data.draw(points_of(space))
    recipe = space.decode(u)
    assert recipe == space.decode(u) == again.decode(tuple(u)) == space.decode(np.array(u))
    assert recipe.digest == again.decode(u).digest
    coefficients: dict[str, Any] = SETTINGS[name][2].get("coefficients", {})
    low, high = coefficients.get("low", -0.2), coefficients.get("high", 1.5)
    for c in itertools.chain.from_iterable(recipe.coefficients):
        assert c == 0.0 or low <= c <= high or name in OTHERS
        assert c == round(c, 6)
        assert c != 0.0 or math.copysign(1.0, c) == 1.0  # no -0.0: it has another digest


def test_a_dimension_changes_its_own_expert_and_nothing_else(owned_space: Any) -> None:
    space, rng = owned_space, np.random.default_rng(3)
    u = rng.uniform(0.55, 0.7, len(space.dimensions))  # all gates on
    before = space.decode(u).matrix()
    for i, dimension in enumerate(space.dimensions):
        moved = u.copy()
        moved[i] = 0.2
        changed = space.decode(moved).matrix() != before
        (row,) = np.flatnonzero(changed.any(axis=1))
        assert EXPERTS[row] in dimension.label.split()


def test_a_gate_at_one_half_is_on_and_below_it_silences(owned_space: Any) -> None:
    space = owned_space
    u = np.full(len(space.dimensions), 0.5)
    assert (space.decode(u).matrix() != 0).all()
    for i, dimension in enumerate(space.dimensions):
        if dimension.kind == "binary":
            off = u.copy()
            off[i] = np.nextafter(0.5, 0.0)
            assert (space.decode(off).matrix() == 0).any()


def test_points_outside_the_cube_are_refused(space: Any) -> None:
    n = len(space.dimensions)
    for u in ([0.5] * (n + 1), [0.5] * (n - 1), []):
        with pytest.raises(ValueError, match="dimensions"):
            space.decode(u)
    for wrong in (-1e-9, 1.0 + 1e-9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="unit cube"):
            space.decode([wrong] + [0.5] * (n - 1))


def test_another_process_decodes_to_the_same_digests() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_space_contract as contract\n"
        "print(contract.digests())\n"
    )
    here = __file__.rpartition("/")[0]
    result = subprocess.run(
        [sys.executable, "-c", code, here],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "1", "PATH": ""},
    )
    assert result.stdout.strip() == str(digests())


def digests() -> list[str]:
    found = []
    for name in SETTINGS:
        space = build(name)
        u = np.random.default_rng(0).random(len(space.dimensions))
        found.append(space.decode(u).digest)
    return found
