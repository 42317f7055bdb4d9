import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Group
from evomerge.errors import ConfigError
from search_spaces.layerwise import LayerwiseSpace

N_LAYERS = 4
KINDS = ("attn.q", "mlp.up", "norm")
GROUPS = (
    Group(None, "embed", 0.0, 10),
    *(
        Group(layer, kind, layer / (N_LAYERS - 1), 10)
        for layer in range(N_LAYERS)
        for kind in KINDS
    ),
    Group(None, "norm", 1.0, 10),
    Group(None, "head", 1.0, 10),
)


def space_of(experts: tuple[str, ...] = ("math",), **options: Any) -> LayerwiseSpace:
    return LayerwiseSpace(experts, GROUPS, **options)


def labels_of(space: LayerwiseSpace) -> list[str]:
    return [dimension.label for dimension in space.dimensions]


def moved_groups(space: LayerwiseSpace, i: int) -> list[str]:
    """The groups whose coefficient changes with dimension i."""
    u = [0.6] * len(space.dimensions)
    before = space.decode(u)
    u[i] = 0.3
    changed = (space.decode(u).matrix() != before.matrix()).any(axis=0)
    return [group for group, moved in zip(before.groups, changed, strict=True) if moved]


def test_the_default_is_a_spline_of_three_knots_from_minus_a_fifth_to_one_and_a_half() -> None:
    space = space_of()
    assert labels_of(space) == ["math @ depth 0.00", "math @ depth 0.50", "math @ depth 1.00"]
    assert set(space.decode([0.0] * 3).coefficients[0]) == {-0.2}
    assert set(space.decode([1.0] * 3).coefficients[0]) == {1.5}


def test_global_has_one_coefficient_per_expert() -> None:
    space = space_of(("math", "chat"), coefficients={"map": "global", "low": 0.0, "high": 1.0})
    assert labels_of(space) == ["math", "chat"]
    assert space.decode([0.25, 0.75]).matrix().tolist() == [[0.25] * 15, [0.75] * 15]


def test_depth_bins_take_the_embedding_first_and_the_head_last() -> None:
    space = space_of(coefficients={"map": "depth_bins", "bins": 2})
    assert labels_of(space) == ["math @ depth 1/2", "math @ depth 2/2"]
    assert moved_groups(space, 0) == ["embed", *(f"{i}.{k}" for i in (0, 1) for k in KINDS)]
    assert moved_groups(space, 1) == [*(f"{i}.{k}" for i in (2, 3) for k in KINDS), "norm", "head"]


def test_bins_without_layers_have_no_dimension() -> None:
    space = space_of(coefficients={"map": "depth_bins", "bins": 7})
    assert all(moved_groups(space, i) for i in range(len(space.dimensions)))
    assert len(space.dimensions) == 5  # four layers in four bins, the head in the last one


def test_a_spline_is_exact_at_its_knots_and_stays_between_them() -> None:
    groups = [Group(layer, "mlp.up", layer / 40, 1) for layer in range(41)]
    space = LayerwiseSpace(["math"], groups, coefficients={"knots": 5, "low": -1.0, "high": 1.0})
    u = [0.9, 0.1, 0.1, 1.0, 0.0]
    curve = space.decode(u).matrix()[0]
    np.testing.assert_allclose(curve[::10], 2 * np.array(u) - 1, atol=1e-6)
    for i in range(4):
        low, high = sorted((curve[10 * i], curve[10 * i + 10]))
        piece = curve[10 * i : 10 * i + 11]
        assert ((piece >= low) & (piece <= high)).all()
    assert (curve[10:21] == curve[10]).all()  # equal knots give a flat piece


@pytest.mark.parametrize(("n_layers", "n_knots"), [(1, 2), (2, 2), (3, 3), (6, 5)])
def test_a_shallow_model_gets_no_knots_that_move_nothing(n_layers: int, n_knots: int) -> None:
    inside = [Group(i, "mlp.up", i / max(n_layers - 1, 1), 1) for i in range(n_layers)]
    groups = [*inside, Group(None, "head", 1.0, 1)]
    space = LayerwiseSpace(["math"], groups, coefficients={"knots": 5})
    assert len(space.dimensions) == n_knots
    assert all(moved_groups(space, i) for i in range(n_knots))


def test_groups_of_one_depth_share_one_coefficient() -> None:
    assert labels_of(LayerwiseSpace(["math"], [Group(0, "mlp.up", 0.0, 1)])) == ["math"]


def test_two_knots_are_a_straight_line() -> None:
    space = space_of(coefficients={"knots": 2, "low": 0.0, "high": 3.0})
    line = dict(zip(space.decode([0, 1]).groups, space.decode([0, 1]).coefficients[0], strict=True))
    assert [line[f"{i}.mlp.up"] for i in range(4)] == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert (line["embed"], line["head"]) == (0.0, 3.0)


def test_kind_depth_divides_attention_mlp_and_rest_by_depth() -> None:
    space = space_of(coefficients={"map": "kind_depth", "bins": 4})
    assert labels_of(space)[0] == "math @ attention, depth 1/4"
    assert len(space.dimensions) == 12
    assert moved_groups(space, labels_of(space).index("math @ mlp, depth 3/4")) == ["2.mlp.up"]
    rest = labels_of(space).index("math @ rest, depth 4/4")
    assert moved_groups(space, rest) == ["3.norm", "norm", "head"]


def test_per_layer_has_one_coefficient_per_layer_and_kind_outside() -> None:
    space = space_of(coefficients={"map": "per_layer"})
    places = ["layer 0", "layer 1", "layer 2", "layer 3", "embed", "head", "norm"]
    assert labels_of(space) == [f"math @ {place}" for place in places]
    assert moved_groups(space, 2) == ["2.attn.q", "2.mlp.up", "2.norm"]
    assert moved_groups(space, 6) == ["norm"]


@pytest.mark.parametrize(
    ("per", "labels", "last"),
    [
        (["expert"], ["gate math"], [group.label for group in GROUPS]),
        ("expert", ["gate math"], [group.label for group in GROUPS]),
        (
            ["expert", "layer"],
            [*(f"gate math @ layer {i}" for i in range(4)), "gate math @ outside the layers"],
            ["embed", "norm", "head"],
        ),
        (
            ["kind", "expert"],
            ["gate math @ attention", "gate math @ mlp", "gate math @ rest"],
            ["embed", "0.norm", "1.norm", "2.norm", "3.norm", "norm", "head"],
        ),
    ],
)
def test_gates_are_binary_and_silence_their_groups(
    per: object, labels: list[str], last: list[str]
) -> None:
    space = space_of(coefficients={"map": "global"}, gates={"per": per})
    assert labels_of(space) == ["math", *labels]
    assert [d.kind for d in space.dimensions] == ["real"] + ["binary"] * len(labels)
    recipe = space.decode([0.0] + [1.0] * (len(labels) - 1) + [0.0])
    silent = [g for g, c in zip(recipe.groups, recipe.coefficients[0], strict=True) if c == 0]
    assert silent == last
    assert "-0.0" not in str(recipe.to_json())  # -0.2 * 0 would be one


def test_anchors_outside_the_range_move_to_its_nearest_end() -> None:
    space = space_of(("a", "b"), coefficients={"map": "global", "low": 0.35, "high": 0.45})
    decoded = [space.decode(anchor).coefficients[0][0] for anchor in space.anchors]
    assert decoded == [0.45, 0.35, 0.4]
    narrow = space_of(("a", "b"), coefficients={"map": "global", "low": -1.0, "high": 0.1})
    assert [narrow.decode(anchor).coefficients[0][0] for anchor in narrow.anchors] == [0.1]


def test_the_recipe_carries_operator_knobs_and_seed() -> None:
    space = space_of(operator="ties", prepare={"density": 0.3}, seed=5)
    recipe = space.decode(space.anchors[0])
    assert (recipe.operator, recipe.prepare, recipe.seed) == ("ties", {"density": 0.3}, 5)
    assert recipe.digest != space_of(operator="ties").decode(space.anchors[0]).digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficients": {"map": "depth_splin"}}, "did you mean 'depth_spline'"),
        ({"coefficients": {"map": "zebra"}}, "choose one of these"),
        ({"coefficients": {"map": ["global"]}}, "the map of coefficients must be one of"),
        ({"coefficients": {"knotts": 3}}, "did you mean 'knots'"),
        ({"coefficients": {"map": "global", "knots": 3}}, "key of coefficients with map global"),
        ({"coefficients": {"knots": 1}}, "knots must be a whole number of at least 2"),
        ({"coefficients": {"knots": 2.5}}, "knots must be a whole number"),
        ({"coefficients": {"knots": True}}, "knots must be a whole number"),
        ({"coefficients": {"map": "depth_bins", "bins": 0}}, "bins must be a whole number"),
        ({"coefficients": {"low": 1.0, "high": 1.0}}, r"low must be below high, but low=1\.0"),
        ({"coefficients": {"low": 2}}, "low must be below high"),
        ({"coefficients": {"high": float("inf")}}, "high must be a number"),
        ({"coefficients": {"low": float("nan")}}, "low must be a number"),
        ({"coefficients": {"low": "0"}}, "low must be a number"),
        ({"gates": {"per": ["expert", "lajer"]}}, "did you mean 'layer'"),
        ({"gates": {"per": ["layer"]}}, r"gates\.per must be \[expert\]"),
        ({"gates": {"per": []}}, r"gates\.per must be \[expert\]"),
        ({"gates": {}}, "gates need per"),
        ({"gates": {"each": ["expert"]}}, "a key of gates must be one of per"),
        ({"experts": ()}, "at least one expert"),
        ({"experts": ("a", "a")}, "distinct names"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(**options)


def test_groups_that_cannot_be_told_apart_are_refused() -> None:
    for groups in ((), (GROUPS[0], GROUPS[0])):
        with pytest.raises(ValueError, match="distinct labels"):
            LayerwiseSpace(["math"], groups)


def test_importing_the_space_is_cheap() -> None:
    code = (
        "import sys, search_spaces.layerwise\n"
        "assert not {'scipy', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
