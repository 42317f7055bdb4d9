import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.errors import ConfigError
from evomerge.merging.operators import OPERATORS, TensorContext, get_operator
from evomerge.merging.pieces import BLOCK, in_pieces


def prepare(name, *deltas, length=BLOCK, dtype=torch.float32, **knobs):
    operator = OPERATORS[name]
    deltas = [torch.as_tensor(delta, dtype=torch.float32) for delta in deltas]
    base = torch.zeros(deltas[0].numel(), dtype=dtype)
    context = TensorContext(
        "t",
        "other",
        None,
        tuple(deltas[0].shape),
        operator.complete(knobs, "prepare"),
        seed=1,
        experts=tuple(f"expert{k}" for k in range(len(deltas))),
    )
    made = [bases for _, bases in operator.bases(in_pieces(base, deltas, length), context)]
    return [torch.cat(parts) for parts in zip(*made, strict=True)]


def test_a_misspelled_operator_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean task_arithmetic"):
        get_operator("task_arithmetics")
    with pytest.raises(ConfigError, match="choose one of"):
        get_operator("xyz")


def test_linear_is_task_arithmetic():
    assert get_operator("linear") is get_operator("task_arithmetic")


def test_ties_by_hand():
    # Trimmed to the 4 largest of 5; signs elected: + - + - and nothing.
    first = [4.0, -1.0, 2.0, 1.0, 0.5]
    second = [2.0, -3.0, -1.0, -2.0, 0.5]
    bases = prepare("ties", first, second, density=0.8)
    assert bases[0].tolist() == [2.0, -0.5, 2.0, 0.0, 0.0]
    assert bases[1].tolist() == [1.0, -1.5, 0.0, -2.0, 0.0]


def test_ties_elects_plus_where_deltas_cancel():
    bases = prepare("ties", [1.0, -1.0, -1.0, 1.0], [-1.0, -1.0, -1.0, 1.0], density=1.0)
    assert [float(basis[0]) for basis in bases] == [1.0, 0.0]


@pytest.mark.parametrize("density", [0.01, 0.1, 0.2, 0.29, 0.3, 1.0])
def test_ties_keeps_exactly_the_requested_number_of_entries(density):
    # A magnitude for each code of bfloat16 from 1 on: none are equal.
    patterns = np.random.default_rng(0).permutation(np.arange(0x3F80, 0x3F80 + 1000))
    delta = torch.from_numpy((patterns << 16).astype(np.int32)).view(torch.float32)
    (basis,) = prepare("ties", delta, density=density)
    assert int((basis != 0).sum()) == round(density * 1000)


def test_ties_keeps_one_entry_of_a_tiny_tensor():
    (basis,) = prepare("ties", [0.5, -2.0, 1.0], density=0.01)
    assert basis.tolist() == [0.0, -2.0, 0.0]


def test_frozen_ties_is_the_published_merge_at_one():
    rng = np.random.default_rng(0)
    t = torch.from_numpy(rng.normal(size=(4, 500))).bfloat16().float().numpy()
    trimmed = np.where(np.abs(t) >= np.sort(np.abs(t))[:, -100:-99], t, 0)
    g = np.sign(trimmed.sum(axis=0))
    g[g == 0] = 1.0
    agrees = (np.sign(trimmed) == g) & (trimmed != 0)
    M = (trimmed * agrees).sum(axis=0) / np.maximum(1, agrees.sum(axis=0))
    merged = sum(prepare("ties", *t, density=0.2))
    np.testing.assert_allclose(merged.numpy(), M, rtol=1e-6, atol=1e-7)


def whole_tensor_ties(deltas, density):
    """The formula on whole tensors, trimmed by sorting what the deltas round to."""
    trimmed = []
    for delta in deltas:
        n_kept = max(1, round(density * delta.numel()))
        rounded = delta.bfloat16().float().abs()
        threshold = rounded.kthvalue(delta.numel() - n_kept + 1).values
        trimmed.append(delta * ((rounded >= threshold) & (rounded > 0)))
    elected = sum(trimmed).sign()
    elected[elected == 0] = 1.0
    agreeing = [t * (t.sign() == elected) for t in trimmed]
    count = sum((t != 0).float() for t in agreeing).clamp(min=1.0)
    return [t / count for t in agreeing]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("n_elements", [1, 2, 7, 1000, 2 * BLOCK + 77])
@pytest.mark.parametrize("n_levels", [0, 1, 3, 100_000])
def test_ties_in_pieces_is_ties_on_the_whole_exactly(dtype, n_elements, n_levels):
    generator = torch.Generator().manual_seed(n_elements + n_levels)
    for density in (0.01, 0.2, 0.5, 1.0):
        t = torch.randn(3, n_elements, generator=generator)
        # Few levels: many entries are zero or equal the threshold; one expert changes little.
        t = (t * n_levels / 3).round() / max(1, n_levels) * torch.tensor([[1e-3], [2e-3], [1e-7]])
        t = t.to(dtype).float()
        bases = prepare("ties", *t, dtype=dtype, density=density)
        for basis, expected in zip(bases, whole_tensor_ties(t, density), strict=True):
            assert torch.equal(basis, expected)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 12)),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-149), 0.5, -0.5, 0.25]),
            st.floats(-(2.0**100), 2.0**100, width=32),
        ),
    ),
    st.floats(0.01, 1.0),
)
def test_ties_is_the_formula_on_awkward_numbers(deltas, density):
    t = torch.from_numpy(deltas)
    bases = prepare("ties", *t, density=density)
    for basis, expected in zip(bases, whole_tensor_ties(t, density), strict=True):
        assert torch.equal(basis, expected)


def stock(deltas, *coefficients, **knobs):
    """What Model Stock makes of coefficients."""
    operator = OPERATORS["model_stock"]
    deltas = [torch.as_tensor(delta, dtype=torch.float32) for delta in deltas]
    pieces = in_pieces(torch.zeros(deltas[0].numel()), deltas, BLOCK)
    knobs = operator.complete(knobs, "prepare")
    context = TensorContext("t", "other", None, tuple(deltas[0].shape), knobs, seed=1)
    return operator.weigh(coefficients, operator.look(pieces, context), context)


@pytest.mark.parametrize(("cos", "n", "r"), [(0.6, 2, 0.75), (0.6, 4, 6 / 7), (0.0, 3, 0.0)])
def test_model_stock_ratio(cos, n, r):
    # n unit vectors with this cosine between any two.
    deltas = np.linalg.cholesky(np.full((n, n), cos) + (1 - cos) * np.eye(n))
    extra, weights = stock(deltas, *[2.0] * n)
    assert extra == 0.0
    np.testing.assert_allclose(weights, 2 * r / n, atol=1e-6)
    _, halfway = stock(deltas, *[1.0] * n, blend=0.5)
    np.testing.assert_allclose(halfway, (0.5 * r + 0.5) / n, atol=1e-6)


def test_model_stock_stays_at_the_base_when_experts_disagree():
    assert stock([[1.0, 0.2], [-1.0, 0.1]], 1.0, 1.0) == (0.0, [0.0, 0.0])


def test_random_delta_keeps_norms_and_forgets_directions():
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(2, 10_000)) * [[1.0], [3.0]]
    bases = prepare("random_delta", *deltas)
    for basis, delta in zip(bases, deltas, strict=True):
        assert float(basis.norm()) == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert abs(float(basis @ torch.tensor(delta, dtype=torch.float32))) < 0.05 * float(
            basis.norm() ** 2
        )
    assert abs(float(bases[0] @ bases[1])) < 0.05 * float(bases[0].norm() * bases[1].norm())
