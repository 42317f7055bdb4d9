"""What each coefficient map promises, by numbers worked out by hand or by other code."""

from typing import Any

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from evomerge.datatypes import FloatArray, Group
from evomerge.errors import ConfigError
from search_spaces.layerwise import LayerwiseSpace
from search_spaces.value_maps import depth_spline

N_LAYERS = 8
GROUPS = (
    Group(None, "embed", 0.0, 400),
    *(
        Group(layer, kind, layer / (N_LAYERS - 1), n)
        for layer in range(N_LAYERS)
        for kind, n in (("attn.q", 30), ("mlp.up", 60), ("norm", 10))
    ),
    Group(None, "norm", 1.0, 10),
    Group(None, "head", 1.0, 390),
)
LABELS = [group.label for group in GROUPS]


def space_of(experts: tuple[str, ...], map_name: str, **options: Any) -> LayerwiseSpace:
    return LayerwiseSpace(experts, GROUPS, coefficients={"map": map_name, **options})


def labels_of(space: LayerwiseSpace) -> list[str]:
    return [dimension.label for dimension in space.dimensions]


def per_layer(space: LayerwiseSpace, u: Any) -> FloatArray:
    """`(n_experts, n_layers)` coefficients of the layers' mlp."""
    columns = [LABELS.index(f"{layer}.mlp.up") for layer in range(N_LAYERS)]
    return space.decode(u).matrix()[:, columns]


def at(space: LayerwiseSpace, u: Any, label: str) -> list[float]:
    column: list[float] = space.decode(u).matrix()[:, LABELS.index(label)].tolist()
    return column


@pytest.mark.parametrize("knots", [2, 3, 4, 7])
def test_the_spline_is_the_pchip_of_scipy(knots: int) -> None:
    groups = [Group(layer, "mlp.up", layer / 52, 1) for layer in range(53)]
    rng = np.random.default_rng(knots)
    places = np.linspace(0.0, 1.0, knots)
    for scale in (1.0, 1e-9, 1e5):
        v = scale * rng.normal(size=(knots, 40)).round(1)  # some neighbours are equal
        expected = PchipInterpolator(places, v, axis=0)(np.arange(53) / 52)
        found = depth_spline(groups, knots).values(v)
        np.testing.assert_allclose(found, expected, atol=1e-12 * scale)


def test_lines_rise_over_the_layers_and_are_alpha_elsewhere() -> None:
    space = space_of(("a",), "lines", low=0.0, high=2.0, slope_low=-1.0, slope_high=1.0)
    assert labels_of(space) == ["a @ first layer", "a @ slope"]
    u = [0.25, 0.75]  # alpha .5, beta .5
    np.testing.assert_allclose(per_layer(space, u)[0], 0.5 + 0.5 * np.arange(8) / 7, atol=1e-6)
    assert [at(space, u, label) for label in ("embed", "norm", "head")] == [[0.5]] * 3
    steep = per_layer(space, [1.0, 1.0])[0]
    assert (steep == 2.0).all()  # kept in the range


def test_lines_start_flat_and_with_the_slope_of_the_method() -> None:
    space = space_of(("a", "b"), "lines", start=0.5)
    flat, rising = (per_layer(space, u) for u in space.anchors)
    assert (flat == 0.5).all()
    np.testing.assert_allclose(rising[:, [0, -1]], [[0.5, 0.9]] * 2, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_simplex_weights_are_not_negative_and_sum_to_one_from_corner_to_corner(n: int) -> None:
    experts = tuple(f"e{i}" for i in range(n))
    rng = np.random.default_rng(n)
    for weights, n_genes in (("stick_breaking", n - 1), ("softmax", n)):
        space = space_of(experts, "simplex", weights=weights)
        assert len(space.dimensions) == n_genes
        for u in [*rng.random((50, n_genes)), np.zeros(n_genes), np.ones(n_genes)]:
            C = space.decode(u).matrix()
            assert (C >= 0).all()
            np.testing.assert_allclose(C.sum(axis=0), 1.0, atol=1e-6 * n)
        (anchor,) = space.anchors
        np.testing.assert_allclose(space.decode(anchor).matrix(), 1 / n, atol=1e-6)


def test_a_uniform_point_of_the_cube_is_a_uniform_point_of_the_simplex() -> None:
    """Each weight has the mean 1/4 and the variance 3/80 of a flat Dirichlet distribution."""
    space = space_of(("a", "b", "c", "d"), "simplex")
    rng = np.random.default_rng(0)
    w = np.array([space.decode(u).matrix()[:, 0] for u in rng.random((4000, 3))])
    np.testing.assert_allclose(w.mean(axis=0), 1 / 4, atol=0.01)
    np.testing.assert_allclose(w.var(axis=0), 3 / 80, atol=0.004)


def test_a_simplex_of_two_is_one_share_and_the_rest() -> None:
    space = space_of(("a", "b"), "simplex")
    assert at(space, [0.3], "embed") == [0.3, 0.7]
    assert at(space, [1.0], "embed") == [1.0, 0.0]


def test_the_total_of_a_simplex_is_the_strength() -> None:
    space = LayerwiseSpace(
        ("a", "b"),
        GROUPS,
        coefficients={"map": "simplex"},
        genes={"strength": {"low": 0.5, "high": 1.5, "start": 1.0}},
    )
    assert labels_of(space) == ["share of a", "strength"]
    assert at(space, [0.3, 1.0], "embed") == [0.45, 1.05]
    assert at(space, space.anchors[0], "embed") == [0.5, 0.5]
    fixed = LayerwiseSpace(("a", "b"), GROUPS, coefficients={"map": "simplex"}, strength=2)
    assert at(fixed, [0.3], "embed") == [0.6, 1.4]


def test_layer_swap_takes_the_ends_from_one_expert_and_the_middle_from_another() -> None:
    space = space_of(("math", "thai"), "layer_swap", outer="thai", inner="math")
    a, b, width, blend = (dimension.label for dimension in space.dimensions)
    assert (a, b) == ("first layers of the outer expert", "last layers of the outer expert")
    assert (width, blend) == ("width of the transition", "blend of the inner expert")
    sharp = per_layer(space, [2.5 / 5, 1.5 / 5, 0.0, 1.0])  # a = 2 of 0..4, b = 1
    assert sharp[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0]
    assert sharp[1].tolist() == [1, 1, 0, 0, 0, 0, 0, 1]
    soft = per_layer(space, [1.5 / 5, 0.0, 0.5, 0.8])  # a = 1, b = 0, width 1 of 0..2
    np.testing.assert_allclose(soft[0], [0, 0.4, 0.8, 0.8, 0.8, 0.8, 0.8, 0.4], atol=1e-6)
    np.testing.assert_allclose(soft.sum(axis=0), 1.0, atol=1e-6)
    assert at(space, [0.0, 0.0, 0.0, 1.0], "embed") == [0.0, 1.0]
    assert at(space, [0.0, 0.0, 0.0, 1.0], "head") == [0.0, 1.0]
    no_middle = per_layer(space, [1.0, 1.0, 0.0, 1.0])
    assert no_middle.tolist() == [[0.0] * 8, [1.0] * 8]


def test_layer_swap_starts_with_a_quarter_of_the_layers_outside_and_others_silent() -> None:
    space = space_of(("x", "y", "z"), "layer_swap")
    first = per_layer(space, space.anchors[0])
    assert first[0].tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert first[1].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert (first[2] == 0).all()


@pytest.mark.parametrize("n_layers", [2, 3, 4, 5, 40])
def test_layer_swap_fits_models_of_any_depth(n_layers: int) -> None:
    groups = [Group(i, "mlp.up", i / (n_layers - 1), 1) for i in range(n_layers)]
    space = LayerwiseSpace(("x", "y"), groups, coefficients={"map": "layer_swap"})
    for anchor in space.anchors:
        C = space.decode(anchor).matrix()
        assert 0 < C[0].sum() < n_layers


def test_a_split_of_two_experts_gives_the_other_the_rest_after_the_cut_as_in_m2n2() -> None:
    space = space_of(("a", "b"), "split_point", low=0.0, high=1.0)
    assert labels_of(space) == ["a @ before the cut", "b @ before the cut", "cut"]
    recipe = space.decode([0.3, 0.7, 0.5])
    # 400 of 1600 parameters are the embedding, 100 are in each layer: the cut is after layer 3
    before = LABELS[: LABELS.index("4.attn.q")]
    for label, w in zip(recipe.groups, recipe.matrix().T.tolist(), strict=True):
        assert w == ([0.3, 0.7] if label in before else [0.7, 0.3])


def test_a_mirrored_split_keeps_the_sum_of_many_experts() -> None:
    space = space_of(("a", "b", "c"), "split_point", low=0.0, high=1.0)
    C = space.decode([0.5, 0.6, 0.4, 0.5]).matrix()
    np.testing.assert_allclose(C[:, 0], [0.5, 0.6, 0.4])
    np.testing.assert_allclose(C[:, -1], [0.5, 0.4, 0.6], atol=1e-6)


def test_a_cut_at_an_end_leaves_one_side_and_a_free_split_has_two_vectors() -> None:
    space = space_of(("a", "b"), "split_point", after="free", low=0.0, high=1.0)
    assert len(space.dimensions) == 5
    u = [0.1, 0.2, 0.8, 0.9]
    assert space.decode([*u, 0.0]).matrix().T.tolist() == [[0.8, 0.9]] * len(GROUPS)
    assert space.decode([*u, 1.0]).matrix().T.tolist() == [[0.1, 0.2]] * len(GROUPS)


def test_metrics_weigh_by_their_power() -> None:
    metrics = {"b": 0.6, "a": 0.3}  # in any order
    space = space_of(("a", "b"), "metric_weighted", metrics=metrics, high=4.0)
    assert at(space, [0.5], "embed") == [0.2, 0.8]  # squares: .09 and .36
    proportional, uniform = (at(space, u, "embed") for u in space.anchors)
    np.testing.assert_allclose(proportional, [1 / 3, 2 / 3], atol=1e-6)
    assert uniform == [0.5, 0.5]
    extreme = space_of(("a", "b"), "metric_weighted", metrics={"a": 1e-5, "b": 1e5}, high=1e5)
    assert at(extreme, [1.0], "embed") == [0.0, 1.0]


def test_a_decay_weighs_checkpoints_by_the_differences_of_its_schedule() -> None:
    experts = tuple(f"step{i}" for i in range(4))
    space = space_of(experts, "decay")
    shape, duration = space.dimensions
    assert (shape.kind, shape.n_choices) == ("categorical", 3)
    assert duration.label == "merge duration"
    cosine, linear, inverse = (shape.position(i) for i in range(3))
    two, four = 0.1, 0.9  # of 2, 3, 4
    assert at(space, [linear, four], "embed") == [0.25] * 4
    assert at(space, [linear, two], "embed") == [0.0, 0.0, 0.5, 0.5]
    w = [1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0]
    np.testing.assert_allclose(at(space, [cosine, four], "embed"), -np.diff(w), atol=1e-6)
    w = [1.0, 2**-0.5, 3**-0.5, 0.5, 0.0]
    np.testing.assert_allclose(at(space, [inverse, four], "embed"), -np.diff(w), atol=1e-6)
    assert [round(sum(at(space, u, "embed")), 5) for u in space.anchors] == [1.0] * 3


def test_a_decay_has_no_gene_where_there_is_nothing_to_choose() -> None:
    experts = ("early", "late")
    assert labels_of(space_of(experts, "decay", shapes="linear", shortest=1)) == ["merge duration"]
    (shape,) = space_of(experts, "decay", shapes=["cosine", "linear"]).dimensions
    assert shape.label == "decay shape (cosine, linear)"


def test_multipliers_scale_attention_and_mlp_within_the_range() -> None:
    space = space_of(("a",), "global", low=0.0, high=1.0, multipliers={"low": 0.5, "high": 1.5})
    assert labels_of(space) == ["a", "a @ factor of attention", "a @ factor of mlp"]
    recipe = space.decode([0.8, 0.25, 1.0])  # .8, factors .75 and 1.5
    found = dict(zip(recipe.groups, recipe.coefficients[0], strict=True))
    assert (found["2.attn.q"], found["2.mlp.up"]) == (0.6, 1.0)
    assert {found[label] for label in ("embed", "2.norm", "norm", "head")} == {0.8}
    assert set(space.decode(space.anchors[0]).coefficients[0]) == {1.0}
    assert set(space.decode(space.anchors[1]).coefficients[0]) == {0.3}


def test_per_tensor_has_a_coefficient_for_every_group() -> None:
    space = space_of(("a", "b"), "per_tensor", low=0.0, high=1.0)
    assert labels_of(space) == [f"{k} @ {label}" for k in ("a", "b") for label in LABELS]
    u = np.random.default_rng(0).random(2 * len(GROUPS))
    np.testing.assert_allclose(space.decode(u).matrix().ravel(), u, atol=1e-6)


def test_a_pool_of_a_hundred_experts_has_a_hundred_coefficients() -> None:
    space = space_of(tuple(f"e{i}" for i in range(100)), "global", low=-0.5, high=1.5)
    assert len(space.dimensions) == 100
    np.testing.assert_allclose(space.decode(space.anchors[0]).matrix(), 0.01)


@pytest.mark.parametrize(
    ("start", "decoded"),
    [
        (0.7, [0.7]),
        ([0.7, 0.2], [0.7, 0.2]),
        ("average", [0.5]),
        (["average", 0.5, 0.4], [0.5, 0.4]),
    ],
)
def test_a_search_starts_where_it_is_told(start: object, decoded: list[float]) -> None:
    space = space_of(("a", "b"), "depth_spline", start=start)
    found = [space.decode(anchor).coefficients[0][3] for anchor in space.anchors]
    assert found == decoded


def metrics(**changes: object) -> dict[str, object]:
    return {"map": "metric_weighted", "metrics": {"a": 0.5, "b": 0.6}, **changes}


@pytest.mark.parametrize(
    ("experts", "coefficients", "message"),
    [
        ("a", {"map": "simplex"}, r"at least two experts, but there is only a.*map global"),
        ("ab", {"map": "simplex", "weights": "softmin"}, "did you mean 'softmax'"),
        ("ab", {"map": "simplex", "low": 0.0}, "a key of coefficients with map simplex"),
        ("ab", {"map": "simplx"}, "did you mean 'simplex'"),
        ("a", {"map": "layer_swap"}, "needs two experts"),
        ("ab", {"map": "layer_swap", "outer": "c"}, "outer of layer_swap must be one of a, b"),
        ("ab", {"map": "layer_swap", "outer": "b"}, "outer and inner are both 'b'"),
        ("ab", {"map": "split_point", "after": "fre"}, "did you mean 'free'"),
        ("ab", {"map": "split_point", "low": 2}, "low must be below high"),
        ("ab", {"map": "lines", "slope_low": 2}, "slope_low must be below slope_high"),
        ("ab", {"map": "metric_weighted"}, "needs metrics, one score per expert"),
        ("ab", metrics(metrics={"a": 0.5}), "b has none"),
        ("ab", metrics(metrics={"a": 0.5, "bb": 1, "b": 1}), "did you mean 'b'"),
        ("ab", metrics(metrics={"a": 0.5, "b": -1}), "above 0 .*the least is -1"),
        ("ab", metrics(metrics={"a": 0.5, "b": "x"}), "the metric of b must be a number"),
        ("ab", metrics(metrics={"a": 0.5, "b": 0.5}), "must differ"),
        ("ab", metrics(metrics=[1, 2]), "metrics must be a mapping"),
        ("ab", metrics(start=11), "start of the exponent must lie between low=0 and high=10"),
        ("ab", metrics(low=3, high=2), "low of the exponent must be below high"),
        ("a", {"map": "decay"}, "sequence of at least two checkpoints"),
        ("ab", {"map": "decay", "shapes": ["lineal"]}, "did you mean 'linear'"),
        ("ab", {"map": "decay", "shapes": []}, "shapes must be a list"),
        ("ab", {"map": "decay", "longest": 3}, r"<= 2, the number of checkpoints"),
        ("ab", {"map": "decay", "shortest": 0}, "shortest of decay must be a whole number"),
        ("ab", {"map": "decay", "shapes": "linear"}, "something to choose"),
        ("ab", {"start": 2}, r"start of coefficients must lie between low=-0\.2 and high=1\.5"),
        ("ab", {"start": []}, "the list is empty"),
        ("ab", {"start": "averge"}, "start of coefficients must be a number"),
        ("ab", {"multipliers": {"lo": 1}}, "a key of multipliers must be one of high, low"),
        ("ab", {"multipliers": {"low": 2}}, "low of multipliers must be below high"),
        ("ab", {"map": "decay", "multipliers": {}}, "a key of coefficients with map decay"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(
    experts: str, coefficients: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        LayerwiseSpace(tuple(experts), GROUPS, coefficients=coefficients)
    assert "\n" not in str(caught.value)


def test_a_layer_swap_of_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="two layers at least"):
        LayerwiseSpace(("a", "b"), GROUPS[:1], coefficients={"map": "layer_swap"})
