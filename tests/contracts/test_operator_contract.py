"""What every operator promises: the ten properties of a merge that hold for all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.errors import ConfigError
from evomerge.merging.operators import OPERATORS, TensorContext
from evomerge.merging.pieces import BLOCK, in_pieces

SHAPES = [(), (1,), (7,), (12, 9), (3, 2, 5)]
LARGE = (5, BLOCK // 2 + 3)  # two blocks and a bit


@dataclass(frozen=True)
class Expected:
    """How an operator departs from task arithmetic, knobs at the ends of their ranges."""

    plain_knobs: dict[str, float]
    sum_of_identical: Callable[[int], float] | None
    permutes: bool = True


# An operator without a line here is promised to permute and nothing about identical experts.
EXPECTED = {
    "task_arithmetic": Expected({}, sum_of_identical=float),
    "linear": Expected({}, sum_of_identical=float),
    "ties": Expected({"density": 1.0}, sum_of_identical=lambda _: 1.0),
    "model_stock": Expected({}, sum_of_identical=lambda _: 1.0),
    "random_delta": Expected({}, sum_of_identical=None, permutes=False),
}


@pytest.fixture(params=OPERATORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
    **knobs: float,
) -> list[Tensor]:
    """The bases of a tensor, made in pieces of this length and put together."""
    operator, shape = OPERATORS[name], tuple(deltas[0].shape)
    base = random(shape, seed=99, scale=1.0).to(dtype).reshape(-1)
    context = TensorContext(
        "model.layers.0.mlp.up_proj.weight",
        "mlp.up",
        0,
        shape,
        operator.complete(knobs, "prepare"),
        seed,
    )
    length = base.numel() if operator.whole else length
    pieces = in_pieces(base, [delta.reshape(-1) for delta in deltas], length)
    made = [bases for _, bases in operator.bases(pieces, context)]
    return [torch.cat(parts).reshape(shape) for parts in zip(*made, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", [1, 2, 5])
def test_one_finite_fp32_basis_per_expert(name: str, shape: tuple[int, ...], n_experts: int):
    deltas = [random(shape, k) for k in range(n_experts)]
    bases = prepare(name, deltas)
    assert len(bases) == n_experts
    for basis in bases:
        assert basis.shape == shape
        assert basis.dtype == torch.float32
        assert torch.isfinite(basis).all()


def test_inputs_are_left_alone(name: str):
    deltas = [random((12, 9), k) for k in range(3)]
    copies = [delta.clone() for delta in deltas]
    for basis in prepare(name, deltas):
        basis + 1.0
    assert all(torch.equal(a, b) for a, b in zip(deltas, copies, strict=True))


def test_the_same_twice_and_with_more_threads(name: str):
    deltas = [random(LARGE, k) for k in range(3)]
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
def test_the_same_however_long_the_pieces_are(name: str, dtype: torch.dtype):
    deltas = [random(LARGE, k).to(dtype).float() for k in range(3)]
    answers = [prepare(name, deltas, length=n * BLOCK, dtype=dtype) for n in (1, 2, 4)]
    for others in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], others, strict=True))


def test_zero_deltas_give_zero(name: str):
    assert not any(basis.any() for basis in prepare(name, [torch.zeros(5, 4)] * 3))


def test_a_zero_delta_among_others_gives_a_zero_basis_and_no_nan(name: str):
    bases = prepare(name, [random((5, 4), 0), torch.zeros(5, 4), random((5, 4), 1)])
    assert not bases[1].any()
    assert all(torch.isfinite(basis).all() for basis in bases)


def test_a_single_expert_is_task_arithmetic(name: str):
    if name == "random_delta":
        pytest.skip("the control replaces every direction")
    delta = random((12, 9), 3)
    (basis,) = prepare(name, [delta], **EXPECTED[name].plain_knobs)
    assert torch.equal(basis, delta)


@pytest.mark.parametrize("n_experts", [2, 3, 4])
def test_identical_experts_sum_to_a_multiple_of_one(name: str, n_experts: int):
    multiple = EXPECTED[name].sum_of_identical
    if multiple is None:
        pytest.skip("every expert has a direction of its own")
    delta = random((12, 9), 3)
    merged = sum(prepare(name, [delta] * n_experts, **EXPECTED[name].plain_knobs))
    torch.testing.assert_close(merged, multiple(n_experts) * delta, rtol=1e-6, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_permuting_experts_permutes_bases(seed: int, order: list[int]):
    deltas = [random((8, 6), 10 * seed + k) for k in range(4)]
    for name in OPERATORS:
        if name in EXPECTED and not EXPECTED[name].permutes:
            continue
        straight = prepare(name, deltas)
        permuted = prepare(name, [deltas[k] for k in order])
        for k, basis in zip(order, permuted, strict=True):
            torch.testing.assert_close(basis, straight[k], rtol=1e-6, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.25, 2.0, 16.0]))
def test_scaling_deltas_scales_bases(seed: int, scale: float):
    deltas = [random((8, 6), 10 * seed + k) for k in range(3)]
    for name in OPERATORS:
        bases = prepare(name, deltas)
        scaled = prepare(name, [scale * delta for delta in deltas])
        for one, other in zip(bases, scaled, strict=True):
            torch.testing.assert_close(scale * one, other, rtol=1e-6, atol=0)


def test_bases_are_not_longer_than_their_deltas(name: str):
    deltas = [random((40, 30), k) for k in range(3)]
    for delta, basis in zip(deltas, prepare(name, deltas), strict=True):
        assert float(basis.norm()) <= 1.00001 * float(delta.norm())


def test_the_seed_matters_where_the_operator_says_so(name: str):
    deltas = [random((6, 5), k) for k in range(2)]
    answers = [prepare(name, deltas, seed=seed)[0] for seed in (1, 2)]
    assert torch.equal(*answers) != OPERATORS[name].seeded


def test_defaults_lie_in_their_ranges_and_others_are_refused(name: str):
    operator = OPERATORS[name]
    for knob in operator.knobs:
        assert knob.low <= knob.default <= knob.high
        for wrong in (knob.low - 1, knob.high + 1, "much", True, float("nan")):
            with pytest.raises(ConfigError, match=knob.name):
                operator.complete({knob.name: wrong}, knob.scope)
    with pytest.raises(ConfigError, match="unheard_of"):
        operator.complete({"unheard_of": 1.0}, "prepare")
