"""Merges of adapters in factors: exact, the same bytes everywhere, never a dense delta."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.checkpoints.experts import open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.errors import ConfigError, IncompatibleError
from evomerge.merging.low_rank import product
from evomerge.merging.low_rank.product import add_product
from evomerge.merging.low_rank.stack import LowRank, Stack, stack_of
from evomerge.merging.operators import OPERATORS, TensorContext, get_operator
from evomerge.merging.operators.lora_lego import clusters
from evomerge.merging.pieces import BLOCK, in_pieces
from evomerge.merging.serial_threads import serial_threads
from evomerge.merging.spectral import alone
from tests.support.adapters import exact_deltas, random_stack, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

NAME = "model.layers.0.mlp.up_proj.weight"
LATE = ("task_arithmetic", "ties", "dare", "consensus", "tsv_merge", "iso_c")
LINEAR = ("task_arithmetic", "model_stock")


def context_of(operator, stack, **knobs):
    names = tuple(f"expert{k}" for k in range(len(stack.ranks)))
    known = operator.complete(knobs, "prepare")
    return TensorContext(NAME, "mlp.up", 0, stack.shape, known, 7, experts=names)


def merge_of(name, stack, **knobs):
    """From coefficients to the change of the weight, `(n_rows, n_columns)`, float64."""
    operator = get_operator(name)
    context = context_of(operator, stack, **knobs)
    statistics = alone(operator.look_at)(stack, context)
    if operator.gather:
        context = replace(context, model=operator.gather([statistics], context.knobs))
    merge = alone(operator.bind)(stack, statistics, context)

    def change(*weights):
        found = alone(merge)(weights)
        if found is None:
            return torch.zeros(stack.shape, dtype=torch.float64)
        return found.left.double().T @ found.right.double()

    return change


def near(actual, expected, rtol=1e-5):
    assert float((actual - expected).norm()) <= rtol * float(expected.norm())


def weighted(deltas, c):
    return sum(c_k * t for c_k, t in zip(c, deltas, strict=True))


# The exact sum


@pytest.mark.parametrize("ranks", [(4,), (2, 8), (3, 0, 5, 1), (2,) * 40])
def test_a_concatenation_is_the_weighted_sum(ranks):
    rng = np.random.default_rng(len(ranks))
    stack = random_stack(60, 44, ranks, rng.uniform(0.5, 4.0, len(ranks)))
    c = rng.uniform(-1.5, 1.5, len(ranks)).tolist()
    made = stack.concatenated(c)
    assert made is not None
    assert made.rank == sum(ranks)
    near(made.left.double().T @ made.right.double(), weighted(exact_deltas(stack), c), 1e-6)


def test_coefficients_of_zero_leave_their_adapters_out():
    stack = random_stack(9, 7, (2, 3, 4))
    made = stack.concatenated([0.5, 0.0, -1.0])
    assert made is not None
    assert made.rank == 6
    assert stack.concatenated([0.0, -0.0, 0.0]) is None
    without = random_stack(9, 7, (2, 0, 4))
    assert without.concatenated([0.0, 3.0, 0.0]) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_weight_is_rounded_once(dtype):
    stack = random_stack(200, 90, (5, 3), (0.01, 0.02))
    base = torch.randn(200, 90, generator=torch.Generator().manual_seed(1)).to(dtype)
    target = torch.empty_like(base)
    add_product(base, stack.concatenated([0.7, -0.4]), target)
    exact = base.double() + weighted(exact_deltas(stack), [0.7, -0.4])
    step = torch.finfo(dtype).eps if dtype != torch.float64 else torch.finfo(torch.float32).eps
    torch.testing.assert_close(target.double(), exact, rtol=0.501 * step, atol=1e-7)
    # All but a few near ties are the nearest number of the dtype.
    if dtype == torch.bfloat16:
        assert float((target != exact.to(dtype)).double().mean()) < 1e-4


def test_nothing_gives_the_base_bit_for_bit():
    base = torch.tensor([[-0.0, 1e-40], [3.0, -2.0]]).bfloat16()
    target = torch.ones_like(base)
    add_product(base, None, target)
    assert torch.equal(target.view(torch.int16), base.view(torch.int16))
    add_product(base, None, target, base_weight=0.5)
    assert torch.equal(target, base * 0.5)


def test_the_base_may_be_weighed_too():
    stack = random_stack(20, 30, (2,))
    base = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    target = torch.empty_like(base)
    add_product(base, stack.concatenated([1.0]), target, base_weight=-0.25)
    near(target.double(), -0.25 * base.double() + exact_deltas(stack)[0], 1e-6)


@pytest.mark.parametrize("shape", [(700, 300), (1, 900), (130, 5000), (3, 1)])
def test_bytes_do_not_depend_on_threads_or_on_where_factors_lie(shape):
    stack = random_stack(*shape, (8, 3, 5))
    base = torch.randn(shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    made = stack.concatenated([0.3, 0.2, -0.8])
    assert made is not None
    room = torch.empty(made.right.numel() + 3)
    shifted = room[3:].view(made.right.shape).copy_(made.right)  # no longer aligned
    transposed = made.left.T.contiguous().T
    answers = []
    for change in (made, LowRank(transposed, shifted)):
        for n_threads in (1, 2):
            targets = [torch.empty_like(base) for _ in range(3)]
            pool = serial_threads(n_threads)
            for done in [pool.submit(add_product, base, change, t) for t in targets]:
                done.result()
            answers += targets
    assert all(torch.equal(answers[0], other) for other in answers[1:])


def test_factors_in_bfloat16_merge_as_the_same_ones_in_fp32():
    short = random_stack(9, 7, (2, 3), dtype=torch.bfloat16)
    exact = Stack(short.left.float(), short.right.float(), short.ranks, short.scales)
    c = [0.3, -0.7]
    for one, other in zip(short.concatenated(c), exact.concatenated(c), strict=True):
        assert torch.equal(one, other)


# From adapters on the disk


MIXED = {"r": 3, "target_modules": ["q_proj", "down_proj"], "lora_alpha": 5}
BASES = {
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": 32,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 8,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """A tiny saved base of a family."""
    import transformers

    made = {}

    def base(family):
        if family not in made:
            config, model, settings = BASES[family]
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            getattr(transformers, model)(getattr(transformers, config)(**settings)).save_pretrained(
                folder
            )
            made[family] = folder
        return made[family]

    return base


def opened(folder, base_folder, *settings):
    """A base and an adapter over it for each of the settings."""
    base = Checkpoint.open(base_folder)
    experts = []
    for k, given in enumerate(settings):
        save_adapter(folder / f"adapter{k}", base_folder, seed=k, **given)
        experts.append(open_expert(f"adapter{k}", folder / f"adapter{k}", base))
    return base, experts


@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("llama", MIXED, {"r": 2, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
        ("llama", MIXED, MIXED | {"rank_pattern": {"layers.1.self_attn.q_proj": 6}}),
        ("llama", MIXED, MIXED | {"alpha_pattern": {"down_proj": 1}}),
        ("llama", {"r": 2, "target_modules": ["embed_tokens", "lm_head"]}, MIXED),
        ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}, None),
        ("gpt2", {"r": 2, "target_modules": ["c_proj", "wte"], "fan_in_fan_out": True}, None),
    ],
)
def test_stacks_hold_what_adapters_change(base_of, tmp_path, family, first, second):
    base, experts = opened(tmp_path, base_of(family), first, second or first)
    c = [0.6, -1.1]
    n_stacks = 0
    for name, facts in base.tensors.items():
        deltas = [expert.delta(name) for expert in experts]
        stack = stack_of(base, experts, name)
        if stack is None:
            assert all(delta is None for delta in deltas)
            continue
        n_stacks += 1
        assert stack.shape == tuple(facts.shape)
        made = stack.concatenated(c)
        expected = sum(
            c_k * delta.double() for c_k, delta in zip(c, deltas, strict=True) if delta is not None
        )
        near((made.left.double().T @ made.right.double()).reshape(-1), expected, 1e-6)
    assert n_stacks >= 4


def test_what_is_changed_otherwise_is_no_stack(base_of, tmp_path):
    folder = base_of("llama")
    base, experts = opened(tmp_path, folder, MIXED, MIXED | {"modules_to_save": ["lm_head"]})
    q = "model.layers.0.self_attn.q_proj.weight"
    assert stack_of(base, experts, "lm_head.weight") is None
    assert stack_of(base, experts, "model.norm.weight") is None
    # A fine-tune that changed one weight leaves the others to the adapters.
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    model.state_dict()[q].add_(1.0)
    model.save_pretrained(tmp_path / "full")
    mixed = [*experts, open_expert("full", tmp_path / "full", base)]
    assert stack_of(base, mixed, q) is None
    other = stack_of(base, mixed, q.replace("layers.0", "layers.1"))
    assert other is not None
    assert other.ranks == (3, 3, 0)


def test_an_untrained_adapter_changes_nothing(base_of, tmp_path):
    base, (trained, untrained) = opened(tmp_path, base_of("llama"), MIXED, MIXED | {"r": 4})
    from safetensors.torch import load_file, save_file

    file = tmp_path / "adapter1" / "adapter_model.safetensors"
    save_file(
        {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in load_file(file).items()}, file
    )
    untrained = open_expert("untrained", tmp_path / "adapter1", base)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert stack_of(base, [untrained], name) is None
    found = stack_of(base, [untrained, trained], name)
    assert found is not None
    assert found.ranks == (0, 3)


# Core Space


@pytest.mark.parametrize("inner", LINEAR)
@pytest.mark.parametrize("ranks", [(4,), (3, 0, 5, 1), (2,) * 40])
def test_the_core_is_lossless_for_linear_operators(inner, ranks):
    stack = random_stack(70, 50, ranks, np.linspace(0.5, 2, len(ranks)), alike=True)
    c = np.linspace(-1, 1.3, len(ranks)).tolist()
    if inner == "model_stock":
        deltas = [t.float().reshape(-1) for t in exact_deltas(stack)]
        operator = get_operator(inner)
        context = context_of(operator, stack)
        pieces = in_pieces(torch.zeros(deltas[0].numel()), deltas, BLOCK)
        _, c = operator.weigh(c, operator.look(pieces, context), context)
        expected = weighted(exact_deltas(stack), c)
        c = np.linspace(-1, 1.3, len(ranks)).tolist()
    else:
        expected = weighted(exact_deltas(stack), c)
    near(merge_of(f"core_space({inner})", stack)(*c), expected, 3e-6)


def test_the_core_holds_an_adapter_that_is_much_smaller_than_another():
    large, small = random_stack(40, 30, (3,)), random_stack(40, 30, (3,), seed=1)
    stack = Stack(
        torch.cat([1e3 * large.left, 1e-2 * small.left]),
        torch.cat([large.right, 1e-2 * small.right]),
        (3, 3),
        (1.0, 1.0),
    )
    near(merge_of("core_space(task_arithmetic)", stack)(0.0, 1.0), exact_deltas(stack)[1], 1e-3)


def ties_in_the_core(stack, density):
    """Independent, from the formulas, in float64: cores, then trim, elect, mean of who agrees."""
    A = [p.right.double().numpy() for _, p in stack.pairs()]
    B = [p.left.double().numpy().T for _, p in stack.pairs()]
    U = np.linalg.svd(np.concatenate(B, 1), full_matrices=False)[0]
    V = np.linalg.svd(np.concatenate(A, 0), full_matrices=False)[2].T
    M = np.stack([U.T @ b @ a @ V for a, b in zip(A, B, strict=True)])
    n_kept = round(density * M[0].size)
    kept = np.stack([np.where(abs(m) >= np.sort(abs(m).ravel())[-n_kept], m, 0.0) for m in M])
    sign = np.where(kept.sum(0) >= 0, 1.0, -1.0)
    agrees = kept * sign > 0
    bases = np.where(agrees, kept, 0.0) / np.maximum(agrees.sum(0), 1)
    return [torch.from_numpy(U @ D @ V.T) for D in bases]


@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 7)])
def test_trimming_goes_by_rotated_entries(ranks):
    stack = random_stack(50, 40, ranks)
    bases = ties_in_the_core(stack, 1.0)
    c = [0.5, -1.2, 0.8][: len(ranks)]
    near(merge_of("core_space(ties)", stack, density=1.0)(*c), weighted(bases, c), 1e-5)
    # Thresholds go by magnitudes in bfloat16: equal but for the entries nearest to them.
    trimmed = weighted(ties_in_the_core(stack, 0.3), c)
    near(merge_of("core_space(ties)", stack, density=0.3)(*c), trimmed, 0.15)
    dense = get_operator("ties")
    context = context_of(dense, stack, density=0.3)
    deltas = [t.float().reshape(-1) for t in exact_deltas(stack)]
    pieces = in_pieces(torch.zeros(deltas[0].numel()), deltas, BLOCK)
    whole = weighted([b.view(stack.shape) for _, bs in dense.bases(pieces, context) for b in bs], c)
    assert float((whole - trimmed).norm()) > 0.1 * float(trimmed.norm())


@pytest.mark.parametrize("inner", LATE)
def test_late_operators_are_linear_in_the_core(inner):
    stack = random_stack(40, 30, (3, 2, 4))
    change = merge_of(f"core_space({inner})", stack)
    c, d = [0.4, 1.0, -0.3], [1.1, -0.2, 0.9]
    both = change(*(2.0 * x - 0.5 * y for x, y in zip(c, d, strict=True)))
    near(both, 2.0 * change(*c) - 0.5 * change(*d))
    assert not change(0.0, 0.0, 0.0).any()


def test_early_operators_see_the_coefficients():
    stack = random_stack(40, 30, (3, 2, 4))
    early, late = (merge_of(f"core_space({n})", stack, density=0.3) for n in ("ties_exact", "ties"))
    near(early(1.0, 1.0, 1.0), late(1.0, 1.0, 1.0))
    difference = early(1.0, 0.3, -0.7) - late(1.0, 0.3, -0.7)
    assert float(difference.norm()) > 0.01 * float(late(1.0, 0.3, -0.7).norm())


@pytest.mark.parametrize("inner", LATE)
def test_bases_made_anew_are_those_that_are_kept(inner, monkeypatch):
    from evomerge.merging.operators import core_space

    stack = random_stack(40, 30, (3, 2, 4))
    c = [0.4, 1.0, -0.3]
    kept = merge_of(f"core_space({inner})", stack)(*c)
    monkeypatch.setattr(core_space, "_MOST", 0)
    assert torch.equal(merge_of(f"core_space({inner})", stack)(*c), kept)


@pytest.mark.parametrize("inner", [n for n, o in OPERATORS.items() if not o.needs])
def test_any_operator_runs_in_the_core(inner):
    operator = get_operator(inner)
    if hasattr(operator, "bind"):
        with pytest.raises(ConfigError, match=f"use {inner} alone"):
            get_operator(f"core_space({inner})")
        return
    least, most = operator.n_experts
    n = max(least, min(3, most or 3))
    stack = random_stack(40, 30, (3, 2, 4)[:n], alike=True)
    change = merge_of(f"core_space({inner})", stack)(*[0.5] * n)
    assert torch.isfinite(change).all()
    assert 0.0 < float(change.norm()) < 50 * max(float(t.norm()) for t in exact_deltas(stack))


def test_what_needs_more_than_weights_is_refused_in_the_core():
    with pytest.raises(ConfigError, match="regmean needs"):
        get_operator("core_space(regmean)")


# Factors summed


def factors_of(stack):
    halves = list(stack.pairs())
    return [p.left.double().T for _, p in halves], [p.right.double() for _, p in halves]


def test_a_factor_sum_is_quadratic_and_has_cross_terms():
    stack = random_stack(20, 15, (3, 3, 3), (2.0, 0.5, 1.0))
    B, A = factors_of(stack)
    change, w = merge_of("factor_sum", stack), [0.5, -0.7, 1.2]
    near(change(*w), weighted(B, w) @ weighted(A, w))
    near(change(*(2 * x for x in w)), 4 * change(*w))
    near(change(0.0, 1.0, 0.0), exact_deltas(stack)[1])
    assert not change(0.0, 0.0, 0.0).any()
    rooted = merge_of("factor_sum", stack, weights="roots")
    near(rooted(0.0, -0.4, 0.0), -0.4 * exact_deltas(stack)[1])


@pytest.mark.parametrize(
    ("combination", "operator", "knobs"),
    [("cat", None, {}), ("linear", "factor_sum", {"weights": "roots"})],
)
def test_combinations_are_those_of_peft(base_of, tmp_path, combination, operator, knobs):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    folder = base_of("llama")
    base, experts = opened(tmp_path, folder, MIXED, MIXED | {"lora_alpha": 9})
    model = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(folder), tmp_path / "adapter0", adapter_name="a"
    )
    model.load_adapter(tmp_path / "adapter1", adapter_name="b")
    c = [0.7, 0.4]
    model.add_weighted_adapter(["a", "b"], c, "both", combination_type=combination)
    model.set_adapter("both")
    merged = model.merge_and_unload().state_dict()
    for name in base.tensors:
        stack = stack_of(base, experts, name)
        if stack is None:
            assert torch.equal(merged[name], base.read(name))
            continue
        if operator is None:
            made = stack.concatenated(c)
            change = made.left.double().T @ made.right.double()
        else:
            change = merge_of(operator, stack, **knobs)(*c)
        difference = (merged[name] - base.read(name)).double()
        torch.testing.assert_close(change, difference, rtol=1e-4, atol=1e-6)


def robust_reference(A, B, density):
    """Independent, from the formulas, in NumPy."""

    def pruned(X):
        n_kept = round(density * X.size)
        return np.where(abs(X) >= np.sort(abs(X).ravel())[-n_kept], X, 0.0)

    s = []
    for a in A:
        ratio = abs(a).sum(1) / abs(pruned(a)).sum(1)
        s.append(np.maximum(ratio, np.quantile(ratio, 0.8)))
    right = sum(2 * pruned(a) for a in A)
    return [2 * pruned(b) * (s_i / sum(s))[None] @ right for b, s_i in zip(B, s, strict=True)]


def test_robust_merge_is_its_formula():
    stack = random_stack(50, 60, (4, 4, 4), (1.0, 2.0, 0.5))
    B, A = ([f.numpy() for f in factors] for factors in factors_of(stack))
    bases = robust_reference(A, B, 0.2)
    for c in ([1.0, 1.0, 1.0], [0.3, 0.0, -0.8]):
        near(merge_of("robust_merge", stack)(*c), torch.from_numpy(weighted(bases, c)))


@pytest.mark.parametrize("name", ["robust_merge", "lora_lego"])
def test_coefficients_on_the_left_keep_it_linear(name):
    stack = random_stack(40, 30, (3, 3, 3))
    change = merge_of(name, stack)
    c, d = [0.4, 1.0, -0.3], [1.1, -0.2, 0.9]
    both = change(*(2.0 * x - 0.5 * y for x, y in zip(c, d, strict=True)))
    near(both, 2.0 * change(*c) - 0.5 * change(*d))
    assert not change(0.0, 0.0, 0.0).any()


def test_rows_that_lose_everything_are_no_nan():
    stack = random_stack(40, 30, (3, 3))
    right = stack.right.clone()
    right[1] *= 1e-6
    right[4] = 0.0
    assert torch.isfinite(merge_of("robust_merge", replace(stack, right=right))(1.0, 1.0)).all()


def test_lego_gives_back_a_lone_adapter_and_identical_ones():
    one = random_stack(40, 30, (4,), (2.0,))
    near(merge_of("lora_lego", one)(1.0), exact_deltas(one)[0])
    three = Stack(one.left.repeat(3, 1), one.right.repeat(3, 1), (4, 4, 4), (2.0,) * 3)
    near(merge_of("lora_lego", three)(1.0, 1.0, 1.0), exact_deltas(one)[0])
    near(merge_of("lora_lego", three)(0.5, 0.0, 1.0), 0.5 * exact_deltas(one)[0])


def test_lego_clusters_units_that_point_alike():
    """Two adapters with noisy copies of the same ranks, in another order."""
    generator = torch.Generator().manual_seed(0)
    one = random_stack(60, 50, (3,))
    order = [2, 0, 1]
    noise = [0.02 * torch.randn(f.shape, generator=generator) for f in (one.left, one.right)]
    stack = Stack(
        torch.cat([one.left, one.left[order] + noise[0]]),
        torch.cat([one.right, one.right[order] + noise[1]]),
        (3, 3),
        (1.0, 1.0),
    )
    change = merge_of("lora_lego", stack)(1.0, 1.0)
    mean = (exact_deltas(stack)[0] + exact_deltas(stack)[1]) / 2
    near(change, mean, 0.02)
    assert int(torch.linalg.matrix_rank(change, rtol=1e-5)) == 3
    halved = merge_of("lora_lego", stack, rank=2)(1.0, 1.0)
    assert int(torch.linalg.matrix_rank(halved, rtol=1e-5)) == 2


def test_clusters_are_those_of_k_means():
    rng = np.random.default_rng(0)
    centres = 10 * rng.standard_normal((4, 6))
    truth = rng.permutation(np.repeat(np.arange(4), 5))
    units = centres[truth] + rng.standard_normal((20, 6))
    labels = clusters(units @ units.T, 4, np.random.default_rng(1))
    assert len(np.unique(labels * 10 + truth)) == 4
    # No unit is nearer to another centre than to its own.
    means = np.stack([units[labels == j].mean(0) for j in range(4)])
    distances = ((units[:, None] - means) ** 2).sum(2)
    assert np.array_equal(distances.argmin(1), labels)


def test_there_are_no_more_clusters_than_units():
    gram = np.ones((5, 5))
    assert clusters(gram, 3, np.random.default_rng(0)).tolist() == [0] * 5


@pytest.mark.parametrize("name", ["factor_sum", "robust_merge"])
def test_factors_of_different_ranks_do_not_add(name):
    with pytest.raises(IncompatibleError, match="expert0 has 2, expert2 has 3: use task_arith"):
        merge_of(name, random_stack(9, 7, (2, 0, 3)))


# All of them


ALL = ("factor_sum", "robust_merge", "lora_lego", *(f"core_space({n})" for n in LATE))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_experts", [1, 2, 40])
def test_finite_for_any_number_of_adapters_and_absent_ones(name, n_experts):
    stack = random_stack(30, 40, (2,) * n_experts)
    assert torch.isfinite(merge_of(name, stack)(*[1.0 / n_experts] * n_experts)).all()
    absent = random_stack(30, 40, (2,) * n_experts + (0,))
    assert absent.ranks[-1] == 0
    assert not merge_of(name, absent)(*[0.0] * n_experts, 1.0).any()


@pytest.mark.parametrize("name", ALL)
def test_identical_and_deficient_adapters_give_no_noise_directions(name):
    one = random_stack(30, 40, (2,))
    # A rank twice over, and the adapter twice over.
    left, right = (torch.cat([f, f[:1]]) for f in (one.left, one.right))
    stack = Stack(left.repeat(2, 1), right.repeat(2, 1), (3, 3), (1.0, 1.0))
    change = merge_of(name, stack)(1.0, 1.0)
    assert torch.isfinite(change).all()
    span = torch.linalg.qr(one.left.T.double())[0]
    if name != "robust_merge":  # pruned factors span something else
        near(span @ (span.T @ change), change, 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_same_bytes_whatever_torch_has_for_threads(name):
    stack = random_stack(120, 90, (6, 6, 6))
    before, answers = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 1):
            torch.set_num_threads(n_threads)
            fresh = Stack(stack.left, stack.right, stack.ranks, stack.scales)
            answers.append(merge_of(name, fresh)(0.5, -0.3, 0.9))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(answers[0], other) for other in answers[1:])


@pytest.mark.parametrize("name", ["lora_lego", "robust_merge", "core_space(ties)"])
def test_order_of_adapters_does_not_matter_where_nothing_is_drawn(name):
    stack = random_stack(40, 30, (3, 3, 3), (1.0, 0.5, 2.0))
    order = [2, 0, 1]
    permuted = Stack(
        torch.cat([stack.left[stack.rows(k)] for k in order]),
        torch.cat([stack.right[stack.rows(k)] for k in order]),
        (3, 3, 3),
        tuple(stack.scales[k] for k in order),
    )
    c = [0.4, 1.0, -0.3]
    if name == "lora_lego":  # clusters depend on where k-means begins
        return
    near(merge_of(name, permuted)(*(c[k] for k in order)), merge_of(name, stack)(*c), 1e-5)


def test_blocks_of_rows_depend_on_columns_only():
    assert product.block_rows(1) == product._BLOCK
    assert product.block_rows(1 << 20) == product._FEWEST_ROWS
