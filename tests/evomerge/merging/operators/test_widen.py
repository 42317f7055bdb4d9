import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from evomerge.merging.pieces import BLOCK
from tests.support.whole_tensors import (
    arrays,
    assert_same,
    assert_same_with_any_number_of_threads,
    bases_of,
    random,
)


def scores(changes, t, s):
    """Of (N, n) changes, written from the paper's formula."""
    n = changes.shape[1]
    r = np.stack([(rankdata(c, "average") - 1) / n for c in changes])
    softmax = np.exp(r) / np.exp(r).sum(0)
    return np.where(r > t * r.mean(1, keepdims=True) + 1e-12, s, softmax)


def reference(base, deltas, t=1.0, s=1.0, transposed=False):
    """WIDEN of dense float64 matrices, whole weights taken apart into magnitude and direction."""
    if transposed:
        return [D.T for D in reference(base.T, [d.T for d in deltas], t, s)]
    m0 = np.linalg.norm(base, axis=0)
    magnitude, direction = [], []
    for delta in deltas:
        W = (base + delta).astype(np.longdouble)
        m = np.sqrt((W * W).sum(0))
        magnitude.append(np.abs(m - m0))
        # |D - D0|^2 / 2 is 1 - cos without its cancellation.
        direction.append((((W / m) - base / m0) ** 2).sum(0) / 2)
    weights = (scores(np.stack(magnitude), t, s) + scores(np.stack(direction), t, s)) / 2
    return [d * w for d, w in zip(deltas, weights.astype(np.float64), strict=True)]


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (40, 3)])
@pytest.mark.parametrize("knobs", [{}, {"threshold": 1.4, "score": 0.7}, {"threshold": 0.3}])
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_bases_are_those_of_the_formula(shape, knobs, n_experts):
    base = random(*shape, seed=99, scale=1.0)
    deltas = [random(*shape, seed=k) for k in range(n_experts)]
    t, s = knobs.get("threshold", 1.0), knobs.get("score", 1.0)
    expected = reference(*arrays([base]), arrays(deltas), t, s)
    assert_same(bases_of("widen", deltas, base=base, **knobs), expected)


def test_changes_of_a_millionth_are_ranked_and_not_rounded_away():
    base, deltas = (
        random(64, 32, seed=9, scale=1.0),
        [random(64, 32, seed=k, scale=1e-5) for k in range(3)],
    )
    assert_same(bases_of("widen", deltas, base=base), reference(*arrays([base]), arrays(deltas)))


def test_an_embedding_is_weighed_token_by_token_and_a_head_is_not():
    base, deltas = random(30, 8, seed=9, scale=1.0), [random(30, 8, seed=k) for k in range(3)]
    whole, parts = arrays([base])[0], arrays(deltas)
    assert_same(
        bases_of("widen", deltas, base=base, kind="embed"), reference(whole, parts, transposed=True)
    )
    assert_same(bases_of("widen", deltas, base=base, kind="head"), reference(whole, parts))


def test_a_tensor_of_three_dimensions_is_a_matrix_of_its_first_against_the_rest():
    base, deltas = random(6, 3, 5, seed=9, scale=1.0), [random(6, 3, 5, seed=k) for k in range(3)]
    flat = bases_of("widen", [d.reshape(6, 15) for d in deltas], base=base.reshape(6, 15))
    for basis, expected in zip(bases_of("widen", deltas, base=base), flat, strict=True):
        assert torch.equal(basis.reshape(6, 15), expected)


def test_a_vector_is_weighed_by_the_ranks_of_its_magnitudes():
    deltas = [random(50, seed=k) for k in range(3)]
    parts = np.stack(arrays(deltas))
    assert_same(bases_of("widen", deltas), list(parts * scores(np.abs(parts), 1.0, 1.0)))


def test_the_foremost_half_of_the_columns_is_taken_whole_by_hand():
    base = torch.ones(1, 4)
    # Magnitudes move by 1, 2, 3, 4 and by 4, 3, 2, 1; directions do not move.
    delta = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    first, second = bases_of("widen", [delta, delta.flip(1)], base=base)
    r = np.array([0.0, 0.25, 0.5, 0.75])
    softmax = np.exp(r) / (np.exp(r) + np.exp(r[::-1]))
    weights = (np.where(r > r.mean(), 1.0, softmax) + 0.5) / 2
    np.testing.assert_allclose(first.numpy(), delta.numpy() * weights, rtol=1e-6)
    assert torch.equal(second, first.flip(1))


def test_the_order_of_unchanged_columns_does_not_matter():
    base, deltas = random(6, 8, seed=9, scale=1.0), [random(6, 8, seed=k) for k in range(3)]
    deltas[0][:, [1, 4, 5]] = 0.0
    order = torch.tensor([4, 2, 5, 0, 1, 7, 3, 6])
    straight = bases_of("widen", deltas, base=base)
    shuffled = bases_of("widen", [d[:, order] for d in deltas], base=base[:, order])
    for a, b in zip(straight, shuffled, strict=True):
        assert torch.equal(a[:, order], b)


def test_columns_of_zeros_in_the_base_or_the_expert_are_no_nan():
    base, deltas = random(6, 5, seed=9, scale=1.0), [random(6, 5, seed=k) for k in range(2)]
    base[:, :2] = 0.0
    deltas[0][:, 0] = 0.0
    deltas[1][:, 3] = -base[:, 3]
    assert all(torch.isfinite(basis).all() for basis in bases_of("widen", deltas, base=base))


def test_a_single_expert_is_left_alone():
    (basis,) = bases_of("widen", [random(12, 9)])
    assert torch.equal(basis, random(12, 9))


def test_zero_deltas_have_zero_bases():
    zeros = torch.zeros(5, 4)
    assert not any(basis.any() for basis in bases_of("widen", [zeros, zeros]))
    assert not bases_of("widen", [random(5, 4), zeros])[1].any()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 1), (1, 7), (7, 1)])
def test_the_smallest_tensors_are_merged_too(shape):
    for n_experts in (1, 2, 40):
        deltas = [random(*shape, seed=k) for k in range(n_experts)]
        bases = bases_of("widen", deltas)
        assert all(torch.isfinite(basis).all() for basis in bases)
        assert all(
            float(b.abs().max()) <= float(t.abs().max()) for b, t in zip(bases, deltas, strict=True)
        )


@pytest.mark.parametrize("kind", ["mlp.up", "embed"])
def test_the_same_however_long_the_pieces_are(kind):
    shape = (5, BLOCK // 2 + 3) if kind == "mlp.up" else (BLOCK // 2 + 3, 5)
    deltas = [random(*shape, seed=k) for k in range(2)]
    short, long = (bases_of("widen", deltas, kind=kind, length=n * BLOCK) for n in (1, 3))
    assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))
    assert_same_with_any_number_of_threads("widen", deltas, kind=kind)
