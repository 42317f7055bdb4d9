"""What every operator promises: the ten properties of a merge that hold for all of them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.errors import ConfigError
from evomerge.merging.operators import OPERATORS, TensorContext
from evomerge.merging.operators.operator import NOTHING
from evomerge.merging.pieces import BLOCK, in_pieces
from tests.support.promises import PROMISES

SHAPES = [(), (1,), (7,), (12, 9), (3, 2, 5)]
LARGE = (5, BLOCK // 2 + 3)  # two blocks and a bit


SHORT = [name for name, operator in OPERATORS.items() if not operator.whole]


@pytest.fixture(params=OPERATORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_operator_says_what_it_promises():
    assert set(PROMISES) == set(OPERATORS)


def n_experts_of(name: str, wished: int) -> int:
    """The nearest number of experts that the operator takes."""
    least, most = OPERATORS[name].n_experts
    return max(least, wished if most is None else min(wished, most))


def random(shape: Sequence[int], seed: int, scale: float = 0.01) -> Tensor:
    """Values that bf16 holds exactly, as operators get them."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).bfloat16().float()


def prepare(
    name: str,
    deltas: Sequence[Tensor],
    *,
    seed: int = 5,
    length: int = BLOCK,
    dtype: torch.dtype = torch.bfloat16,
    **knobs: Knob,
) -> list[Tensor]:
    """The bases of a tensor, made in pieces of this length and put together."""
    operator, shape = OPERATORS[name], tuple(deltas[0].shape)
    base = random(shape, seed=99, scale=1.0).to(dtype).reshape(-1)
    n = len(deltas)
    context = TensorContext(
        "model.layers.0.mlp.up_proj.weight",
        "mlp.up",
        0,
        shape,
        operator.complete(knobs, "prepare"),
        seed,
        experts=tuple(f"expert{k}" for k in range(n)),
        weights=(1.0,) * n if operator.early else None,
        aids=(),
    )
    length = base.numel() if operator.whole else length
    pieces = in_pieces(base, [delta.reshape(-1) for delta in deltas], length)
    statistics = operator.look(pieces, context)
    model = operator.gather([statistics], context.knobs) if operator.gather else NOTHING
    context = replace(context, model=model)
    made = [bases for _, bases in operator.bases(pieces, context, statistics)]
    return [torch.cat(parts).reshape(shape) for parts in zip(*made, strict=True)]


def close(name: str, actual: Tensor, expected: Tensor) -> None:
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=PROMISES[name].rtol * largest + 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", [1, 2, 40])
def test_one_finite_fp32_basis_per_expert(name: str, shape: tuple[int, ...], n_experts: int):
    n_experts = n_experts_of(name, n_experts)
    deltas = [random(shape, k) for k in range(n_experts)]
    bases = prepare(name, deltas)
    assert len(bases) == n_experts
    for basis in bases:
        assert basis.shape == shape
        assert basis.dtype == torch.float32
        assert torch.isfinite(basis).all()


def some(name: str, shape: Sequence[int], n: int = 3, seed: int = 0) -> list[Tensor]:
    """So many deltas, or as many as the operator takes."""
    return [random(shape, 10 * seed + k) for k in range(n_experts_of(name, n))]


def test_inputs_are_left_alone(name: str):
    deltas = some(name, (12, 9))
    copies = [delta.clone() for delta in deltas]
    for basis in prepare(name, deltas):
        basis + 1.0
    assert all(torch.equal(a, b) for a, b in zip(deltas, copies, strict=True))


def test_the_same_twice_and_with_more_threads(name: str):
    deltas = some(name, LARGE if name in SHORT else (60, 50))
    before = torch.get_num_threads()
    answers = []
    try:
        for n_threads in (1, 2, 1):
            torch.set_num_threads(n_threads)
            answers.append(prepare(name, deltas))
    finally:
        torch.set_num_threads(before)
    for others in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], others, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", SHORT)
def test_the_same_however_long_the_pieces_are(name: str, dtype: torch.dtype):
    deltas = [delta.to(dtype).float() for delta in some(name, LARGE)]
    answers = [prepare(name, deltas, length=n * BLOCK, dtype=dtype) for n in (1, 2, 4)]
    for others in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], others, strict=True))


def test_zero_deltas_give_zero(name: str):
    zeros = [torch.zeros(5, 4)] * n_experts_of(name, 3)
    assert not any(basis.any() for basis in prepare(name, zeros))


def test_a_zero_delta_among_others_gives_a_zero_basis_and_no_nan(name: str):
    deltas = some(name, (5, 4))
    deltas[len(deltas) // 2] = torch.zeros(5, 4)
    bases = prepare(name, deltas)
    assert not bases[len(deltas) // 2].any()
    assert all(torch.isfinite(basis).all() for basis in bases)


def test_a_single_expert_is_task_arithmetic(name: str):
    if not PROMISES[name].single or OPERATORS[name].n_experts[0] > 1:
        pytest.skip("not promised: see promises/")
    delta = random((12, 9), 3)
    (basis,) = prepare(name, [delta], **PROMISES[name].plain_knobs)
    close(name, basis, delta)


@pytest.mark.parametrize("n_experts", [2, 3, 4])
def test_identical_experts_sum_to_a_multiple_of_one(name: str, n_experts: int):
    multiple = PROMISES[name].identical
    most = OPERATORS[name].n_experts[1]
    if multiple is None or (most is not None and most < n_experts):
        pytest.skip("not promised: see promises/")
    delta = random((12, 9), 3)
    bases = prepare(name, [delta] * n_experts, **PROMISES[name].plain_knobs)
    close(name, torch.stack(bases).sum(0), multiple(n_experts) * delta)


@pytest.mark.parametrize("rank", [1, 2])
def test_duplicates_of_low_rank_give_no_noise(name: str, rank: int):
    factors = random((12, rank), 1), random((rank, 9), 2)
    delta = (factors[0] @ factors[1] * 30).bfloat16().float()
    bases = prepare(name, [delta] * n_experts_of(name, 3))
    longest = PROMISES[name].bounded * float(delta.norm())
    assert all(torch.isfinite(basis).all() and basis.norm() <= longest for basis in bases)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_permuting_experts_permutes_bases(seed: int, order: list[int]):
    for name in OPERATORS:
        deltas = some(name, (8, 6), 4, seed)
        if not PROMISES[name].permutes or len(deltas) < len(order):
            continue
        straight = prepare(name, deltas)
        permuted = prepare(name, [deltas[k] for k in order])
        for k, basis in zip(order, permuted, strict=True):
            close(name, basis, straight[k])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.25, 2.0, 16.0]))
def test_scaling_deltas_scales_bases(seed: int, scale: float):
    for name in OPERATORS:
        if not PROMISES[name].scales:
            continue
        deltas = some(name, (8, 6), 3, seed)
        bases = prepare(name, deltas)
        scaled = prepare(name, [scale * delta for delta in deltas])
        for one, other in zip(bases, scaled, strict=True):
            close(name, other, scale * one)


def test_bases_are_not_much_longer_than_the_deltas(name: str):
    deltas = some(name, (40, 30))
    longest = PROMISES[name].bounded * max(float(delta.norm()) for delta in deltas)
    assert all(float(basis.norm()) <= longest for basis in prepare(name, deltas))


def test_disjoint_bases_never_share_a_place(name: str):
    bases = torch.stack(prepare(name, some(name, (40, 30))))
    shared = ((bases != 0).sum(0) > 1).any()
    assert not (OPERATORS[name].disjoint and shared)


def test_the_seed_matters_where_the_operator_says_so(name: str):
    deltas = some(name, (6, 5), 2)
    answers = [prepare(name, deltas, seed=seed)[0] for seed in (1, 2)]
    assert torch.equal(*answers) != OPERATORS[name].seeded


def test_defaults_lie_in_their_ranges_and_others_are_refused(name: str):
    operator = OPERATORS[name]
    for knob in operator.knobs:
        assert operator.complete({}, "prepare")[knob.name] == knob.default
        wrong: list[Knob] = [True, float("nan"), "unheard of"]
        if not knob.choices:
            wrong += [knob.low - 1, knob.high + 1]
        for value in wrong:
            with pytest.raises(ConfigError, match=knob.name):
                operator.complete({knob.name: value}, knob.scope)
    with pytest.raises(ConfigError, match="unheard_of"):
        operator.complete({"unheard_of": 1.0}, "prepare")
