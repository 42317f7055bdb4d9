from dataclasses import replace

import numpy as np
import pytest

from evomerge.datatypes import Group
from evomerge.errors import ConfigError
from search_spaces.merge_space import merge_space
from search_spaces.started import started_space

GROUPS = (
    Group(None, "embed", 0.0, 500),
    *(Group(layer, kind, layer / 3, 100) for layer in range(4) for kind in ("attn.q", "mlp.up")),
    Group(None, "head", 1.0, 500),
)
EXPERTS = ("math", "code")


@pytest.mark.parametrize(
    "options",
    [
        {"coefficients": {"map": "global"}},
        {"coefficients": {"map": "depth_bins", "bins": 2}},
        {"coefficients": {"map": "depth_spline", "knots": 3}},
        {"coefficients": {"map": "per_layer"}, "gates": {"per": ["expert"]}},
        {"coefficients": {"map": "per_tensor"}},
        {"operator": "ties", "genes": {"density": {"low": 0.1, "high": 1.0}}},
    ],
)
def test_a_merge_of_the_space_is_found_again(options):
    space = merge_space(EXPERTS, GROUPS, **options)
    rng = np.random.default_rng(5)
    u = [
        1.0 if d.kind == "binary" else x
        for d, x in zip(space.dimensions, rng.uniform(0.2, 0.8, len(space.dimensions)), strict=True)
    ]
    wanted = space.decode(tuple(u))
    started = started_space(EXPERTS, GROUPS, start=wanted.to_json(), **options)
    assert started.dimensions == space.dimensions
    assert started.anchors[1:] == space.anchors
    found = started.decode(started.anchors[0])
    np.testing.assert_allclose(found.matrix(), wanted.matrix(), atol=2e-5)


def test_a_merge_outside_the_space_gives_the_nearest_and_large_tensors_count_more():
    space = merge_space(EXPERTS, GROUPS, coefficients={"map": "global"})
    of_layers = space.decode(space.anchors[0])
    row = tuple(0.8 if group.layer is None else 0.2 for group in GROUPS)
    start = replace(of_layers, coefficients=(row, row)).to_json()
    started = started_space(EXPERTS, GROUPS, start=start, coefficients={"map": "global"})
    share = 1000 / 1800
    mean = 0.8 * share + 0.2 * (1 - share)
    np.testing.assert_allclose(started.decode(started.anchors[0]).matrix(), mean, atol=1e-5)


def test_experts_in_another_order_are_matched_by_name():
    space = merge_space(EXPERTS, GROUPS, coefficients={"map": "global"})
    wanted = space.decode((0.3, 0.6))
    turned = replace(wanted, experts=("code", "math"), coefficients=wanted.coefficients[::-1])
    started = started_space(EXPERTS, GROUPS, start=turned.to_json(), coefficients={"map": "global"})
    np.testing.assert_allclose(
        started.decode(started.anchors[0]).matrix(), wanted.matrix(), atol=2e-6
    )


def test_a_recipe_of_other_models_is_refused():
    recipe = merge_space(("math", "chat"), GROUPS).decode(
        merge_space(("math", "chat"), GROUPS).anchors[0]
    )
    with pytest.raises(ConfigError, match=r"the run's own experts.*chat.*code"):
        started_space(EXPERTS, GROUPS, start=recipe.to_json())
