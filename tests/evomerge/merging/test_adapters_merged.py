"""Adapters through the routes that a search and an export take: never a dense delta in a bank."""

import pytest
import torch
import transformers

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Recipe
from evomerge.errors import ConfigError, IncompatibleError
from evomerge.merging.bank import Bank
from evomerge.merging.materialize import Materializer, merged_tensors
from evomerge.merging.operators import OPERATORS, get_operator
from evomerge.merging.operators.factor_operator import FactorOperator
from evomerge.merging.shelf import Shelf
from tests.support.adapters import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TARGETS = ["q_proj", "o_proj", "up_proj", "down_proj"]
IN_FACTORS = "model.layers.0.mlp.up_proj.weight"
ON_FACTORS = [n for n, found in OPERATORS.items() if isinstance(found, FactorOperator)]


class Pool:
    """A base and adapters over it."""

    def __init__(self, folder, base, adapters):
        self.folder, self.base, self.experts = folder, base, adapters
        self.anatomy = Anatomy.of(base)

    def recipe(self, *c, operator="task_arithmetic", **changes):
        n = len(self.anatomy.groups)
        names = tuple(expert.name for expert in self.experts)
        rows = tuple((float(value),) * n for value in c)
        return Recipe(operator, names, self.anatomy.group_labels, rows, **changes)

    def bank(self, operator="task_arithmetic"):
        return Bank.open_or_build(
            self.folder / "cache", self.base, self.experts, self.anatomy, operator
        )

    def written(self, recipe, bank=None):
        model = transformers.AutoModelForCausalLM.from_pretrained(self.base.path, dtype="auto")
        materializer = Materializer(
            self.base, bank or self.bank(), self.anatomy, model, experts=self.experts
        )
        materializer.write(recipe)
        return {name: value.clone() for name, value in model.state_dict().items()}

    def exported(self, recipe):
        return dict(merged_tensors(self.base, self.experts, self.anatomy, recipe))


@pytest.fixture
def make_pool(saved, tmp_path):
    def make(n=3, dtype="bfloat16", **settings):
        folder = saved(dtype) / "base"
        options = {"r": 2, "lora_alpha": 3, "target_modules": TARGETS} | settings
        base = Checkpoint.open(folder)
        for k in range(n):
            save_adapter(tmp_path / f"adapter{k}", folder, seed=k, size=0.05, **options)
        adapters = [open_expert(f"adapter{k}", tmp_path / f"adapter{k}", base) for k in range(n)]
        return Pool(tmp_path, base, adapters)

    return make


def same(state, tensors):
    return all(torch.equal(state[name], value) for name, value in tensors.items())


def test_the_bank_leaves_out_what_is_in_factors_but_knows_its_norm(make_pool):
    pool = make_pool()
    bank = pool.bank()
    assert IN_FACTORS in bank.in_factors
    assert bank.n_bytes == 0
    for expert in pool.experts:
        deltas = [expert.delta(name) for name in pool.base.tensors]
        square = sum(float(t.double().square().sum()) for t in deltas if t is not None)
        assert bank.norms[expert.name] == pytest.approx(square**0.5, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_merge_is_the_exact_sum_rounded_once(make_pool, dtype):
    pool = make_pool(dtype=dtype)
    c = (0.7, -1.3, 0.4)
    state = pool.written(pool.recipe(*c))
    base = pool.base.read(IN_FACTORS)
    deltas = [expert.delta(IN_FACTORS).double().view(base.shape) for expert in pool.experts]
    exact = base.double() + sum(c_k * t for c_k, t in zip(c, deltas, strict=True))
    epsilon = torch.finfo(base.dtype).eps
    torch.testing.assert_close(state[IN_FACTORS].double(), exact, rtol=epsilon, atol=1e-8)


def test_without_coefficients_it_is_the_base_bit_for_bit(make_pool):
    pool = make_pool()
    for operator in ("task_arithmetic", "model_stock", *ON_FACTORS, "core_space(ties)"):
        state = pool.written(pool.recipe(0.0, 0.0, 0.0, operator=operator))
        assert same(state, {name: pool.base.read(name) for name in pool.base.tensors})


@pytest.mark.parametrize(
    "operator",
    [
        *("task_arithmetic", "model_stock", "karcher", "ties", "ties_exact", "tsv_merge"),
        *ON_FACTORS,
        *("core_space(ties)", "core_space(ties_exact)", "core_space(tsv_merge)"),
    ],
)
def test_bytes_are_the_same_by_every_route_and_on_any_threads(make_pool, operator):
    pool = make_pool()
    recipe = pool.recipe(0.7, 0.2, 1.1, operator=operator, seed=2)
    expected = pool.exported(recipe)
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        assert same(pool.written(recipe), expected)
    if get_operator(operator).name in ("ties", "tsv_merge"):
        assert same(pool.written(recipe, pool.bank(operator)), expected)
    assert not torch.equal(expected[IN_FACTORS], pool.base.read(IN_FACTORS))


@pytest.mark.parametrize("operator", ["task_arithmetic", "tsv_merge"])
def test_a_rotation_changes_nothing_for_what_is_rotation_free(make_pool, operator):
    pool = make_pool(dtype="float32")
    c = (0.7, 0.2, 1.1)
    dense = pool.exported(pool.recipe(*c, operator=operator))
    core = pool.exported(pool.recipe(*c, operator=f"core_space({operator})"))
    if operator == "task_arithmetic":
        for name, value in dense.items():
            torch.testing.assert_close(core[name], value, rtol=1e-5, atol=1e-6)
    else:
        assert torch.isfinite(core[IN_FACTORS]).all()


def test_forty_adapters_and_a_shelf(make_pool):
    pool = make_pool(n=40)
    model = transformers.AutoModelForCausalLM.from_pretrained(pool.base.path, dtype="auto")
    shelf = Shelf(
        pool.folder / "cache", pool.base, pool.experts, pool.anatomy, model, most_bytes=10**9
    )
    c = [0.0] * 40
    c[3], c[17] = 0.5, -0.5
    for operator in ("task_arithmetic", "core_space(ties)", "lora_lego"):
        recipe = pool.recipe(*c, operator=operator)
        shelf.write(recipe)
        assert same(model.state_dict(), pool.exported(recipe))
    kept = sum(f.stat().st_size for f in (pool.folder / "cache" / "banks").rglob("*.safetensors"))
    assert kept < 40 * 200  # headers only


def test_adapters_beside_a_full_model_are_merged_densely_where_both_change(make_pool, saved):
    pool = make_pool(n=2)
    full = open_expert("math", saved("bfloat16") / "math", pool.base)
    pool.experts = [*pool.experts, full]
    assert not pool.bank().in_factors
    recipe = pool.recipe(0.7, 0.2, 1.1)
    assert same(pool.written(recipe), pool.exported(recipe))
    with pytest.raises(IncompatibleError, match="math is no plain adapter"):
        pool.written(pool.recipe(0.7, 0.2, 1.1, operator="lora_lego"))
    with pytest.raises(IncompatibleError, match="math is no plain adapter"):
        pool.exported(pool.recipe(0.7, 0.2, 1.1, operator="core_space(ties)"))


def test_what_an_adapter_changes_as_a_whole_is_merged_densely(make_pool):
    pool = make_pool(n=2, modules_to_save=["norm"])
    bank = pool.bank()
    assert "model.norm.weight" not in bank.in_factors
    for operator in ("task_arithmetic", "robust_merge"):
        recipe = pool.recipe(0.5, 0.5, operator=operator)
        state = pool.written(recipe)
        assert same(state, pool.exported(recipe))
        assert not torch.equal(state["model.norm.weight"], pool.base.read("model.norm.weight"))


def test_a_bank_without_its_adapters_is_refused(make_pool):
    pool = make_pool(n=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(pool.base.path, dtype="auto")
    with pytest.raises(IncompatibleError, match="give the experts"):
        Materializer(pool.base, pool.bank(), pool.anatomy, model)
    with pytest.raises(ConfigError, match="give the experts"):
        list(merged_tensors(pool.base, pool.bank(), pool.anatomy, pool.recipe(1.0, 1.0)))
