"""Every operator on a real model, through the routes that a search and an export take."""

import pytest
import torch

from evomerge.merging.materialize import Materializer, merged_tensors
from evomerge.merging.operators import OPERATORS, get_operator
from evomerge.merging.operators.factor_operator import FactorOperator
from evomerge.merging.variant import Variant
from tests.support.aids import aids_for

WRAPPED = ("knots(ties)", "knots(ties_exact)", "svc(task_arithmetic)", "svc(tsv_merge)")
# On deltas: operators on factors have test_low_rank.py.
NAMES = [
    *(name for name, found in OPERATORS.items() if not isinstance(found, FactorOperator)),
    *WRAPPED,
]


class MadeUpAids:
    """Aids of the right shapes for every tensor."""

    digest = "made up"

    def __init__(self, world):
        self._world = world

    def only(self, names):  # noqa: ARG002
        return self

    def of(self, name):
        shape = self._world.base.tensors[name].shape
        return aids_for(shape, len(self._world.experts), seed=len(name))


def world_for(make_world, name, dtype="bfloat16"):
    most = get_operator(name).n_experts[1] or 3
    return make_world(dtype, experts=("chat", "math", "code")[:most])


def aids_of(world, name):
    return MadeUpAids(world) if get_operator(name).needs else None


def written(world, recipe, bank=None, aids=None):
    model = world.model()
    Materializer(world.base, bank or world.bank(), world.anatomy, model, aids=aids).write(recipe)
    return {name: value.clone() for name, value in model.state_dict().items()}


def exported(world, recipe, aids):
    return dict(merged_tensors(world.base, world.experts, world.anatomy, recipe, aids=aids))


def recipe_of(world, name, *c):
    return world.recipe(*c, operator=name)


@pytest.mark.parametrize("name", NAMES)
def test_without_coefficients_it_is_the_base_bit_for_bit(make_world, name):
    world = world_for(make_world, name)
    recipe = recipe_of(world, name, *[0.0] * len(world.experts))
    state = written(world, recipe, aids=aids_of(world, name))
    for tensor in world.base.tensors:
        expected = world.base.read(tensor)
        assert torch.equal(state[tensor].view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_the_same_by_every_route_and_on_any_threads(make_world, name):
    world = world_for(make_world, name)
    aids = aids_of(world, name)
    recipe = world.varied(operator=name, seed=3)
    variant = Variant.of_recipe(recipe, aids)
    expected = exported(world, recipe, aids)
    states = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        states.append(written(world, recipe, aids=aids))
    if not variant.is_live:
        states.append(written(world, recipe, world.bank(name, seed=3, aids=aids), aids))
    for state in states:
        for tensor, value in expected.items():
            assert torch.equal(state[tensor], value)
    assert all(torch.isfinite(value).all() for value in expected.values())
    unlike = [t for t, value in expected.items() if not torch.equal(value, world.base.read(t))]
    assert unlike


@pytest.mark.parametrize(
    "name", [n for n in NAMES if not get_operator(n).early and get_operator(n).weigh is None]
)
def test_late_operators_are_linear_in_their_coefficients(make_world, name):
    world = world_for(make_world, name, "float32")
    aids, n = aids_of(world, name), len(world.experts)

    def change(*c):
        merged = exported(world, recipe_of(world, name, *c), aids)
        return {tensor: value - world.base.read(tensor) for tensor, value in merged.items()}

    hot = [change(*(float(i == k) for i in range(n))) for k in range(n)]
    mixed = change(*(0.5 + k for k in range(n)))
    for tensor, value in mixed.items():
        summed = sum((0.5 + k) * hot[k][tensor] for k in range(n))
        torch.testing.assert_close(value, summed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_identical_experts_and_experts_that_are_the_base_are_no_trouble(make_world, name):
    world = world_for(make_world, name)
    aids, n = aids_of(world, name), len(world.experts)

    class Same:
        """The first expert, or the base, under another name."""

        def __init__(self, expert, of, changes):
            self.name, self.digest, self.warnings = expert.name, of.digest + str(changes), ()
            self._of, self._changes = of, changes

        def delta(self, tensor, start=0, stop=None):
            return self._of.delta(tensor, start, stop) if self._changes else None

        def release(self):
            pass

    for changes in (True, False):
        experts = [Same(expert, world.experts[0], changes) for expert in world.experts]
        recipe = recipe_of(world, name, *[1.0] * n)
        merged = dict(merged_tensors(world.base, experts, world.anatomy, recipe, aids=aids))
        for tensor, value in merged.items():
            assert torch.isfinite(value).all()
            if not changes:
                assert torch.equal(value, world.base.read(tensor))
