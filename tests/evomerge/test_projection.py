import numpy as np
import pytest

from evomerge.datatypes import Dimension, Group, Recipe
from evomerge.projection import MOST_ENTRIES, Landmarks, landmarks
from search_spaces.merge_space import merge_space

GROUPS = (
    Group(None, "embed", 0.0, 500),
    *(Group(layer, kind, layer / 3, 100) for layer in range(4) for kind in ("attn.q", "mlp.up")),
    Group(None, "head", 1.0, 500),
)
EXPERTS = ("math", "code", "chat")

WITH_ALL = [
    {"coefficients": {"map": "global"}},
    {"preset": "ta-depth"},
    {"preset": "lines"},
    {"preset": "gated"},
    {"preset": "ties"},
    {"preset": "variants"},
    {"coefficients": {"map": "per_layer"}},
    {"coefficients": {"map": "per_tensor"}},
]


@pytest.mark.parametrize("options", WITH_ALL, ids=str)
def test_base_and_experts_are_found_where_a_space_has_them(options):
    space = merge_space(EXPERTS, GROUPS, **options)
    found = landmarks(space, GROUPS)
    strengths = {space.decode(space.anchors[0]).operator}
    targets = np.array([np.zeros(3), *np.eye(3)])
    points = [found.origin, *found.experts]
    assert len(points) == 4
    for point, target in zip(points, targets, strict=True):
        recipe = space.decode(point)
        assert recipe.operator in strengths
        assert np.abs(recipe.matrix() - target[:, None]).max() <= 0.05
    assert found == landmarks(space, GROUPS)


def test_what_a_space_has_not_is_none():
    assert landmarks(merge_space(EXPERTS, GROUPS, preset="swap"), GROUPS).experts == ()
    simplex = landmarks(merge_space(EXPERTS, GROUPS, preset="simplex"), GROUPS)
    assert simplex.origin is None
    pcb = landmarks(merge_space(EXPERTS, GROUPS, preset="pcb"), GROUPS)
    assert pcb.origin is None
    assert pcb.experts == ()


def test_a_coordinate_belongs_to_the_expert_and_depth_that_it_moves():
    found = landmarks(merge_space(EXPERTS, GROUPS, coefficients={"map": "per_layer"}), GROUPS)
    space = merge_space(EXPERTS, GROUPS, coefficients={"map": "per_layer"})
    for dimension, owner, depth in zip(space.dimensions, found.owners, found.depths, strict=True):
        assert dimension.label.startswith(EXPERTS[owner])
        assert depth is not None
    assert {round(depth, 6) for depth in found.depths} >= {
        0.0,
        round(1 / 3, 6),
        round(2 / 3, 6),
        1.0,
    }


def test_coordinates_of_all_experts_or_of_the_whole_depth_have_no_owner_or_depth():
    found = landmarks(merge_space(EXPERTS, GROUPS, coefficients={"map": "global"}), GROUPS)
    assert found.owners == (0, 1, 2)
    assert found.depths == (None, None, None)
    knob = merge_space(
        EXPERTS,
        GROUPS,
        operator="ties",
        coefficients={"map": "global"},
        genes={"density": {"low": 0.1, "high": 1.0}, "strength": {"low": 0.5, "high": 2.0}},
    )
    labels = [dimension.label for dimension in knob.dimensions]
    found = landmarks(knob, GROUPS)
    for name in ("density", "strength"):
        place = next(i for i, label in enumerate(labels) if name in label)
        assert (found.owners[place], found.depths[place]) == (None, None)
    gates = landmarks(merge_space(EXPERTS, GROUPS, preset="gated"), GROUPS)
    assert set(gates.owners) == {0, 1, 2, None} or set(gates.owners) == {0, 1, 2}


class Choices:
    """For each half of a model an expert or none, and a bit that says whether one counts at all."""

    dimensions = (
        Dimension("first", "categorical", 3),
        Dimension("last", "categorical", 3),
        Dimension("on", "binary"),
    )
    anchors = ((0.5, 0.5, 1.0),)

    def decode(self, u):
        C = np.zeros((2, 2))
        for half in range(2):
            choice = self.dimensions[half].choice(u[half])
            if choice < 2 and u[2] >= 0.5:
                C[choice, half] = 1.0
        rows = tuple(tuple(row) for row in C.tolist())
        return Recipe("task_arithmetic", ("math", "code"), ("embed", "head"), rows)


def test_bits_and_choices_are_turned_where_steps_do_not_reach():
    space, groups = Choices(), GROUPS[:1] + GROUPS[-1:]
    found = landmarks(space, groups)
    assert not space.decode(found.origin).matrix().any()
    for k, point in enumerate(found.experts):
        assert space.decode(point).matrix().tolist() == np.outer(np.eye(2)[k], [1, 1]).tolist()
    assert found.depths == (0.0, 1.0, 0.5)
    assert found.owners[2] == 1


class Vast:
    """A space in which all differences would take for ever."""

    dimensions = (Dimension("x"),) * MOST_ENTRIES
    anchors = ((0.5,) * MOST_ENTRIES,)
    n_decoded = 0

    def decode(self, u):
        assert len(u) == MOST_ENTRIES
        self.n_decoded += 1
        return Recipe("task_arithmetic", ("a",), ("embed", "head"), ((0.5, 0.5),))


def test_vast_spaces_are_left_alone():
    space = Vast()
    assert landmarks(space, GROUPS[:1] + GROUPS[-1:]) == Landmarks()
    assert space.n_decoded == 1
