from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Group, Recipe
from evomerge.errors import ConfigError
from search_spaces.layerwise import LayerwiseSpace

GROUPS = (Group(0, "mlp.up", 0.0, 1), Group(1, "mlp.up", 1.0, 1))


def space_of(genes: dict[str, Any], **options: Any) -> LayerwiseSpace:
    return LayerwiseSpace(
        ("math", "chat"), GROUPS, coefficients={"map": "global"}, genes=genes, **options
    )


def decoded(space: LayerwiseSpace, *u: float) -> Recipe:
    """The recipe whose knobs are at `u`."""
    n = len(space.dimensions) - len(u)
    return space.decode([*[0.5] * n, *u])


def test_a_knob_is_a_runtime_value_inside_its_range() -> None:
    space = space_of({"density": {"low": 0.1, "high": 0.9, "start": 0.3}}, operator="ties")
    assert [d.label for d in space.dimensions] == ["math", "chat", "density"]
    assert [decoded(space, u).runtime for u in (0.0, 0.5, 1.0)] == [
        {"density": 0.1},
        {"density": 0.5},
        {"density": 0.9},
    ]
    assert {space.decode(anchor).runtime["density"] for anchor in space.anchors} == {0.3}


def test_every_expert_may_have_a_knob_of_its_own_spelled_as_in_recipes() -> None:
    space = space_of({"density": {"low": 0.0, "high": 1.0, "per_expert": True}})
    assert [d.label for d in space.dimensions][2:] == ["density@math", "density@chat"]
    assert decoded(space, 0.25, 0.75).runtime == {"density@math": 0.25, "density@chat": 0.75}
    one = space_of({"density@chat": {"low": 0.0, "high": 1.0}}, runtime={"density": 0.2})
    assert decoded(one, 0.5).runtime == {"density": 0.2, "density@chat": 0.5}


def test_a_log_scale_makes_equal_factors_equally_likely() -> None:
    space = space_of({"scale": {"low": 0.01, "high": 100.0, "scale": "log"}})
    assert decoded(space, 0.5).runtime == {"scale": 1.0}
    assert decoded(space, 0.75).runtime == {"scale": 10.0}
    assert space.decode(space.anchors[0]).runtime == {"scale": 1.0}  # the middle


def test_a_whole_knob_takes_each_number_as_often_as_another() -> None:
    space = space_of({"k": {"low": 1, "high": 4, "whole": True, "start": 2}})
    values = [decoded(space, u).runtime["k"] for u in np.linspace(0.0, 1.0, 401)]
    assert all(type(value) is int for value in values)
    assert [values.count(k) for k in (1, 2, 3, 4)] == [100, 100, 100, 101]
    assert space.decode(space.anchors[0]).runtime == {"k": 2}


def test_a_fixed_knob_with_a_gene_gives_the_gene_its_start_and_no_more() -> None:
    genes = {"density": {"low": 0.05, "high": 1.0}}
    space = space_of(genes, prepare={"density": 0.3, "ranking": "model"}, operator="ties")
    first = space.decode(space.anchors[0])
    assert (first.prepare, first.runtime) == ({"ranking": "model"}, {"density": 0.3})
    each = {"density": {"low": 0.05, "high": 1.0, "per_expert": True}}
    first = space_of(each, prepare={"density": 0.3}).decode(space.anchors[0] + (0.5,))
    assert first.prepare == {}


def test_strength_multiplies_all_coefficients_and_is_no_knob() -> None:
    space = space_of({"strength": {"low": 1.0, "high": 3.0, "start": 1.0}})
    plain = decoded(space, 0.0)
    strong = decoded(space, 0.5)
    assert strong.runtime == {}
    np.testing.assert_allclose(strong.matrix(), 2.0 * plain.matrix())


def test_points_that_no_merge_can_tell_apart_share_a_digest() -> None:
    space = space_of({"density": {"low": 0.0, "high": 1.0}})
    assert decoded(space, 0.5).digest == decoded(space, 0.5 + 1e-9).digest
    assert decoded(space, 0.5).digest != decoded(space, 0.5 + 1e-5).digest


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ({"density": {"low": 0.1}}, "density needs low and high, but has no high"),
        ({"density": {"low": 0.5, "high": 0.1}}, "low of the gene density must be below high"),
        (
            {"density": {"low": 0.1, "high": 1, "start": 2}},
            r"start .*low=0\.1 and high=1, but got 2",
        ),
        ({"density": {"low": 0.1, "high": 1, "strt": 2}}, "did you mean 'start'"),
        ({"density": {"low": "a", "high": 1}}, "low of the gene density must be a number"),
        ({"density": {"low": 0, "high": 1, "scale": "log"}}, "log scale needs low above 0"),
        ({"density": {"low": 1, "high": 2, "scale": "lgo"}}, "did you mean 'log'"),
        ({"density": {"low": 0.5, "high": 2, "whole": True}}, "is whole, so low and high must be"),
        ({"k": {"low": 1, "high": 4, "whole": True, "start": 1.5}}, "start of the gene k"),
        ({"k": {"low": 1, "high": 4, "whole": "yes"}}, "whole of the gene k must be true or false"),
        ({"density": 0.3}, "the gene density must be a mapping"),
        ({"density@mth": {"low": 0, "high": 1}}, "did you mean 'math'"),
        (
            {
                "density": {"low": 0, "high": 1, "per_expert": True},
                "density@math": {"low": 0, "high": 1},
            },
            "density@math has two",
        ),
        ({"strength": {"low": 0, "high": 1, "per_expert": True}}, "cannot be per expert"),
    ],
)
def test_wrong_genes_are_refused_with_a_remedy(genes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        space_of(genes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strength", [0, float("nan"), "much"])
def test_a_strength_that_is_none_is_refused(strength: Any) -> None:
    with pytest.raises(ConfigError, match="strength must"):
        space_of({}, strength=strength)
