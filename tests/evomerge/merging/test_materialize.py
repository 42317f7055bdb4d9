import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.datatypes import Recipe
from evomerge.errors import ConfigError, IncompatibleError
from evomerge.merging import materialize, mixing
from evomerge.merging.materialize import Materializer, merged_tensors
from evomerge.merging.mixing import Mixer, Pieces
from evomerge.merging.native import kernels
from evomerge.merging.survey import Survey

DTYPES = ("bfloat16", "float16", "float32")
OPERATORS = ("task_arithmetic", "ties", "della", "model_stock", "magmax", "random_delta")
# Bases that are made for the candidate: operator and what it sets for itself.
LIVE = [
    ("ties", {"density": 0.37, "density@math": 0.8}),
    ("ties_exact", {"scale": 1.3}),
    ("dare", {"drop_rate": 0.4}),
    ("dare_ties_exact", {"drop_rate": 0.6}),
    ("della_linear", {"epsilon": 0.2}),
    ("della_exact", {"density": 0.5, "epsilon@code": 0.4}),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.1}),
    ("breadcrumbs_ties_exact", {}),
    ("model_stock", {"blend": 0.5}),
]


def bound(world, model=None, bank=None, **options):
    model = world.model() if model is None else model
    bank = bank or world.bank()
    return model, Materializer(world.base, bank, world.anatomy, model, **options)


def bytes_of(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same(model, tensors):
    state = model.state_dict()
    return all(torch.equal(bytes_of(state[n]), bytes_of(t)) for n, t in dict(tensors).items())


def weights(world, recipe, **options):
    model, materializer = bound(world, **options)
    materializer.write(recipe)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_coefficients_give_the_base_bit_for_bit(make_world, dtype, kernel):
    world = make_world(dtype)
    model, materializer = bound(world)
    materializer.write(world.recipe(0.0, -0.0, 0.0))
    assert same(model, {name: world.base.read(name) for name in world.base.tensors})
    first = model.get_input_embeddings().weight.detach().view(-1)
    assert torch.signbit(first[0])
    assert 0 < float(first[1]) < torch.finfo(first.dtype).tiny


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", range(3))
def test_one_hot_gives_the_expert_to_one_rounding(make_world, dtype, k):
    world = make_world(dtype)
    state = weights(world, world.recipe(*(float(i == k) for i in range(3))))
    expert = world.experts[k]
    for name in world.base.tensors:
        base = world.base.read(name).float()
        delta = expert.delta(name)
        delta = torch.zeros_like(base) if delta is None else delta.reshape(base.shape)
        epsilon = torch.finfo(getattr(torch, dtype)).eps
        bound_ = epsilon / 2 * (delta.abs() + (base + delta).abs()) * 1.001 + 1e-8
        assert bool(((state[name].float() - (base + delta)).abs() <= bound_).all())
        # Of numbers within a factor of two of each other the difference is exact.
        ratio = (base + delta) / base
        close = (ratio > 0.5) & (ratio < 2)
        assert torch.equal(state[name][close], expert.checkpoint.read(name)[close])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_group_gets_its_own_coefficients(make_world, dtype, kernel):
    world = make_world(dtype)
    recipe = world.varied()
    state, bank, C = weights(world, recipe), world.bank(), recipe.matrix()
    for name, role in world.anatomy.roles.items():
        exact = world.base.read(name).double()
        for k, basis in enumerate(bank.bases(name)):
            if basis is not None:
                exact = exact + C[k, role.group] * basis.double()
        epsilon = torch.finfo(getattr(torch, dtype)).eps
        smallest = 2.0**-25 if dtype == "float16" else 0.0  # half a step of its subnormals
        torch.testing.assert_close(state[name].double(), exact, rtol=epsilon, atol=1e-8 + smallest)


def test_weights_do_not_depend_on_what_was_written_before(world):
    model, materializer = bound(world)
    materializer.write(world.varied(1))
    first = {name: value.clone() for name, value in model.state_dict().items()}
    materializer.write(world.varied(2))
    assert not same(model, first)
    materializer.write(world.varied(3, operator="ties"))
    materializer.write(world.varied(1))
    assert same(model, first)


def test_weights_are_the_same_after_a_release(world):
    model, materializer = bound(world)
    materializer.write(world.varied(1))
    first = {name: value.clone() for name, value in model.state_dict().items()}
    materializer.release()
    materializer.write(world.varied(2))
    assert not same(model, first)
    materializer.release()
    materializer.write(world.varied(1))
    assert same(model, first)


def test_the_model_is_never_rebuilt(world):
    model, materializer = bound(world)
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    materializer.write(world.varied())
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_bytes_are_the_same_by_every_route(make_world, dtype, operator):
    world = make_world(dtype)
    recipe = world.varied(operator=operator, seed=4)
    one_off = weights(world, recipe)
    banked = weights(world, recipe, bank=world.bank(operator, seed=4))
    exported = dict(merged_tensors(world.base, world.experts, world.anatomy, recipe))
    assert set(exported) == set(world.base.tensors)
    for name, tensor in exported.items():
        assert torch.equal(bytes_of(tensor), bytes_of(one_off[name]))
        assert torch.equal(bytes_of(tensor), bytes_of(banked[name]))
    for bank in (world.bank(), world.bank(operator, seed=4)):
        for name, tensor in merged_tensors(world.base, bank, world.anatomy, recipe):
            assert torch.equal(bytes_of(tensor), bytes_of(exported[name]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_bytes_do_not_depend_on_chunks_and_threads(
    make_world, dtype, operator, monkeypatch, kernel
):
    monkeypatch.setattr(materialize, "_SMALL_MODEL", 0)
    world = make_world(dtype)
    recipe = world.varied(operator=operator)
    first = None
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        for chunk_elements in (None, 17, 96, 4096):
            model, materializer = bound(world, chunk_elements=chunk_elements)
            materializer.write(recipe)
            first = first or {n: value.clone() for n, value in model.state_dict().items()}
            assert same(model, first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("operator", "free"), LIVE)
@pytest.mark.parametrize("ranking", ["tensor", "model"])
def test_live_bases_give_the_same_bytes_by_every_route(
    make_world, dtype, operator, free, ranking, monkeypatch
):
    has_ranks = operator != "model_stock" and not operator.startswith("dare")
    prepare = {"ranking": ranking} if has_ranks else {}
    monkeypatch.setattr(materialize, "_SMALL_MODEL", 0)
    world = make_world(dtype)
    recipe = world.varied(operator=operator, runtime=free, prepare=prepare, seed=4)
    first = dict(merged_tensors(world.base, world.experts, world.anatomy, recipe))
    assert any(not torch.equal(t, world.base.read(name)) for name, t in first.items())
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        for chunk_elements in (None, 96):
            state = weights(world, recipe, chunk_elements=chunk_elements)
            assert all(torch.equal(bytes_of(state[n]), bytes_of(t)) for n, t in first.items())
    for module in (materialize, mixing):
        monkeypatch.setattr(module, "kernels", lambda: None)
    state = weights(world, recipe)
    assert all(torch.equal(bytes_of(state[n]), bytes_of(t)) for n, t in first.items())


@pytest.mark.parametrize(("operator", "free"), LIVE)
def test_a_live_operator_without_coefficients_is_the_base(world, operator, free):
    model, materializer = bound(world)
    materializer.write(world.recipe(0.0, 0.0, 0.0, operator=operator, runtime=free))
    assert same(model, {name: world.base.read(name) for name in world.base.tensors})


def test_what_is_live_equals_what_is_frozen_at_the_same_knobs(make_world):
    world = make_world("float32")
    for operator, knobs in (("ties", {"density": 0.3}), ("dare_ties", {"drop_rate": 0.5})):
        live = weights(world, world.varied(operator=operator, runtime=knobs))
        frozen = weights(world, world.varied(operator=operator, prepare=knobs))
        assert all(torch.equal(live[name], frozen[name]) for name in live)


def test_early_and_late_elections_are_the_same_merge_at_ones(make_world):
    world = make_world("float32")
    late = weights(world, world.recipe(1.0, 1.0, 1.0, operator="ties"))
    early = weights(world, world.recipe(1.0, 1.0, 1.0, operator="ties_exact"))
    for name, tensor in late.items():
        torch.testing.assert_close(early[name], tensor, rtol=0, atol=1e-8)


def test_statistics_are_kept_on_disk_and_found_again(world, monkeypatch):
    recipe = world.recipe(0.3, 0.3, 0.3, operator="ties_exact")
    folder = world.folder / "surveys"
    first = weights(world, recipe, surveys=folder, key="k")
    (kept,) = folder.glob("*.safetensors")
    made = kept.stat().st_mtime_ns
    monkeypatch.setattr(Survey, "make", None)
    again = weights(world, recipe, surveys=folder, key="k")
    assert kept.stat().st_mtime_ns == made
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("n_elements", [1, 7, 33, 300_007])
def test_awkward_sizes_and_alignments_make_no_difference(dtype, n_elements, kernel):
    generator = torch.Generator().manual_seed(n_elements)
    room = torch.randn(4, n_elements + 8, generator=generator).to(dtype)
    rows = np.array([[0.3, 0.0, -1.7, 0.25]], dtype=np.float32)
    answers = []
    # Below, single elements and pieces of 17 would take a second.
    chunks = (17, 4096, 262_144, n_elements) if n_elements > 100 else (1, 17, 4096)
    for chunk in chunks:
        for offset in (0, 1, 3):
            for n_threads in (1, 2):
                mixer = Mixer(chunk, n_threads)
                sources = [row.clone() for row in room[:, 8:]]
                shifted = [torch.empty(n_elements + 8, dtype=dtype) for _ in range(5)]
                views = [s[offset + i : offset + i + n_elements] for i, s in enumerate(shifted)]
                for view, source in zip(views, sources, strict=False):
                    view.copy_(source)
                pieces = mixer.cut(0, views[0], views[1:4], views[4])
                mixer.mix(Pieces(pieces), rows)
                answers.append(views[4].clone())
                if chunk == 17:
                    break
            if chunk == 17:
                break
    for other in answers[1:]:
        assert torch.equal(bytes_of(answers[0]), bytes_of(other))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_merges_are_linear_in_their_coefficients(make_world, data):
    world = make_world("float32")
    operator = data.draw(st.sampled_from(OPERATORS))
    finite = st.floats(-1.5, 1.5, allow_subnormal=False)
    c, d = (data.draw(st.tuples(finite, finite, finite)) for _ in range(2))
    a, b = data.draw(finite), data.draw(finite)

    def change(coefficients):
        recipe = world.recipe(*coefficients, operator=operator)
        merged = merged_tensors(world.base, world.experts, world.anatomy, recipe)
        return {name: tensor - world.base.read(name) for name, tensor in merged}

    mixed = change([a * x + b * y for x, y in zip(c, d, strict=True)])
    left, right = change(c), change(d)
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, a * left[name] + b * right[name], rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_and_native_kernels_give_the_same_bytes(make_world, dtype, monkeypatch):
    if kernels() is None:
        pytest.skip("this machine has no C compiler")
    world = make_world(dtype)
    # Sparse coefficients, huge ones that overflow, and subnormal weights.
    recipes = [world.varied(), world.recipe(0.0, 1e-9, -3.0), world.recipe(1e38, 1e38, 0.0)]
    native = [weights(world, recipe) for recipe in recipes]
    for module in (materialize, mixing):
        monkeypatch.setattr(module, "kernels", lambda: None)
    for recipe, state in zip(recipes, native, strict=True):
        other = weights(world, recipe)
        assert all(torch.equal(bytes_of(other[name]), bytes_of(state[name])) for name in state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kernels_agree_on_every_kind_of_number(dtype, monkeypatch):
    if kernels() is None:
        pytest.skip("this machine has no C compiler")
    tiny = torch.finfo(dtype).tiny
    special = [0.0, -0.0, 1.0, -1.0, tiny, -tiny / 4, 3e38, -3e38, float("inf"), -float("inf")]
    grid = torch.tensor(special, dtype=dtype)
    base, first, second = (
        part.flatten() for part in torch.meshgrid(grid, grid, grid, indexing="ij")
    )
    rows = np.array(
        [[1e-3, 2.5, 0], [0.0, -1.0, 0], [-0.0, 0.0, -0.5], [1e38, -1e38, 1]], dtype=np.float32
    )

    def sums():
        mixer = Mixer(None, 1)
        for group in range(len(rows)):
            target = torch.empty_like(base)
            mixer.mix(Pieces(mixer.cut(group, base, [first, second], target)), rows)
            yield target

    native = list(sums())
    for module in (materialize, mixing):
        monkeypatch.setattr(module, "kernels", lambda: None)
    for ours, theirs in zip(native, sums(), strict=True):
        # The bits of NaN differ even between the vector and scalar code of torch.
        is_nan = theirs.isnan()
        assert torch.equal(ours.isnan(), is_nan)
        assert torch.equal(bytes_of(ours[~is_nan]), bytes_of(theirs[~is_nan]))


def test_a_model_of_several_dtypes_is_written_as_each_alone(make_world):
    mixer = Mixer(64, 2)
    rows = np.array([[0.5, -1.25, 0.1], [2.0, 0.0, 0.0], [0.3, 0.3, 0.0]], dtype=np.float32)
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    rooms = [torch.randn(4, 500, generator=generator).to(dtype) for dtype in dtypes]
    pieces = [
        piece
        for group, (base, first, second, target) in enumerate(rooms)
        for piece in mixer.cut(group, base, [first, second], target)
    ]
    mixer.mix(Pieces(pieces), rows)
    for group, (base, first, second, target) in enumerate(rooms):
        alone = torch.empty_like(target)
        mixer.mix_alone(mixer.cut(group, base, [first, second], alone), rows)
        assert torch.equal(bytes_of(target), bytes_of(alone))


def test_writing_allocates_nothing_that_grows_with_the_model(world):
    _, materializer = bound(world)
    recipe = world.varied()
    materializer.write(recipe)
    tracemalloc.start()
    materializer.write(recipe)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000


def test_a_model_that_does_not_fit_is_refused(world):
    wrong = world.model().float()
    with pytest.raises(IncompatibleError, match=r"float32 instead of \[64, 24\] bfloat16"):
        bound(world, model=wrong)
    headless = world.model().model
    with pytest.raises(IncompatibleError, match=r"has no model\.embed_tokens\.weight"):
        bound(world, model=headless)
    untied = world.model()
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    with pytest.raises(IncompatibleError, match="tie_weights"):
        bound(world, model=untied)
    wider = world.model()
    wider.register_parameter("extra", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(IncompatibleError, match="extra is not in it"):
        bound(world, model=wider)
    sharing = world.model()
    layers = sharing.model.layers
    layers[0].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    with pytest.raises(IncompatibleError, match="shares the memory"):
        bound(world, model=sharing)


def test_a_bank_of_another_base_is_refused(make_world):
    with pytest.raises(IncompatibleError, match="build its own bank"):
        bound(make_world(), bank=make_world("float32").bank())


def test_recipes_that_do_not_fit_are_refused(world):
    _, materializer = bound(world)
    good = world.varied()

    def changed(**changes):
        return Recipe.from_json(good.to_json() | changes)

    for recipe, words in [
        (changed(experts=["math", "chat", "code"]), "experts in order"),
        (changed(groups=[f"x{label}" for label in good.groups]), "groups in order"),
        (changed(operator="tie"), "did you mean ties"),
        (changed(operator="ties", prepare={"density": 2.0}), "density"),
        (changed(runtime={"scale": 2.0}), "scale"),
    ]:
        with pytest.raises(ConfigError, match=words):
            materializer.write(recipe)
    with pytest.raises(ConfigError, match="finite"):
        materializer.write(world.recipe(float("nan"), 0.0, 0.0))


def test_a_bank_of_another_operator_serves_no_other_recipe(world):
    _, materializer = bound(world, bank=world.bank("ties"))
    materializer.write(world.varied(operator="ties"))
    with pytest.raises(ConfigError, match="open the bank of task_arithmetic"):
        materializer.write(world.varied(operator="ties", prepare={"density": 0.5}))
