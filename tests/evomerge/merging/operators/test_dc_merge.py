import numpy as np
import pytest
import torch

from tests.support.whole_tensors import (
    arrays,
    assert_same,
    assert_same_with_any_number_of_threads,
    bases_of,
    elected_mean,
    low_rank,
    random,
)


def polar(X):
    u, _, vt = np.linalg.svd(X, full_matrices=False)
    return u @ vt


def smoothed(S, smoothing):
    if smoothing == "none":
        return S
    ramp = (
        np.linspace(min(5.0, S[0] / S[-1]), 1.0, len(S))
        if smoothing == "linear"
        else np.ones(len(S))
    )
    return ramp / ramp.sum() * S.sum()


def reference(deltas, r, keep=1e-3, smoothing="none"):
    """DC-Merge of dense float64 matrices of full rank, from the paper's formula."""
    N = len(deltas)
    svds = [np.linalg.svd(t, full_matrices=False) for t in deltas]
    U = polar(np.concatenate([u[:, :r] for u, _, _ in svds], 1))
    V = polar(np.concatenate([vt[:r].T for _, _, vt in svds], 1))
    truncated = [(u[:, :r] * smoothed(s[:r], smoothing)) @ vt[:r] for u, s, vt in svds]
    M = np.stack([U.T @ t @ V for t in truncated])
    k = max(1, int(keep * (N * r) ** 2))
    least = np.sort(np.abs(M).reshape(N, -1), 1)[:, -k]
    C = elected_mean(np.where(np.abs(M) >= least[:, None, None], M, 0.0))
    C = C * np.kron(np.eye(N), np.ones((r, r)))
    return list(U @ C @ V.T)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (40, 8), (8, 40)])
@pytest.mark.parametrize("smoothing", ["none", "mean", "linear"])
@pytest.mark.parametrize("keep", [1e-3, 0.2])
@pytest.mark.parametrize("n_experts", [2, 4])
def test_bases_are_those_of_the_formula(shape, smoothing, keep, n_experts):
    deltas = [random(*shape, seed=k) for k in range(n_experts)]
    expected = reference(arrays(deltas), min(shape) // n_experts, keep, smoothing)
    assert_same(bases_of("dc_merge", deltas, keep=keep, smoothing=smoothing), expected)


def test_a_rank_may_be_a_share_of_what_fits():
    deltas = [random(20, 24, seed=k) for k in range(2)]
    expected = reference(arrays(deltas), 5, 0.1)
    assert_same(bases_of("dc_merge", deltas, keep=0.1, rank_fraction=0.5), expected)


def test_a_tensor_of_three_dimensions_is_a_matrix_of_its_first_against_the_rest():
    deltas = [random(6, 3, 5, seed=k) for k in range(3)]
    expected = reference([t.reshape(6, 15) for t in arrays(deltas)], 2, 0.5)
    assert_same(bases_of("dc_merge", deltas, keep=0.5), [D.reshape(6, 3, 5) for D in expected])


def test_a_single_expert_kept_whole_is_left_alone():
    assert_same(bases_of("dc_merge", [random(12, 9)], keep=1.0), arrays([random(12, 9)]))


@pytest.mark.parametrize("smoothing", ["mean", "linear"])
def test_smoothing_keeps_the_sum_of_singular_values_and_falls_to_a_fifth_at_most(smoothing):
    (D,) = arrays(bases_of("dc_merge", [random(12, 9)], keep=1.0, smoothing=smoothing))
    before, after = (np.linalg.svd(x, compute_uv=False) for x in (*arrays([random(12, 9)]), D))
    np.testing.assert_allclose(after.sum(), before.sum(), rtol=1e-6)
    steps = np.diff(after)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4, atol=1e-7)
    expected = 1.0 if smoothing == "mean" else min(5.0, before[0] / before[-1])
    np.testing.assert_allclose(after[0] / after[-1], expected, rtol=1e-5)


def test_at_least_one_entry_of_a_small_core_stays():
    bases = bases_of("dc_merge", [random(8, 6, seed=k) for k in range(2)], keep=1e-5)
    assert all(np.linalg.matrix_rank(basis.double().numpy(), tol=1e-7) == 1 for basis in bases)


def test_a_zero_expert_has_a_zero_basis_and_no_directions():
    deltas = [random(9, 12, seed=1), torch.zeros(9, 12), random(9, 12, seed=2)]
    a, nothing, b = bases_of("dc_merge", deltas, keep=0.3)
    assert not nothing.any()
    assert_same([a, b], reference(arrays([deltas[0], deltas[2]]), 3, 0.3))
    assert not any(basis.any() for basis in bases_of("dc_merge", [torch.zeros(9, 12)] * 2))


@pytest.mark.parametrize("n_experts", [2, 3])
def test_identical_experts_share_their_directions_and_invent_none(n_experts):
    # The leading part of the delta, and nothing that is not in it.
    delta = random(12, 12)
    merged = sum(arrays(bases_of("dc_merge", [delta] * n_experts, keep=1.0)))
    u, s, vt = np.linalg.svd(delta.double().numpy())
    r = 12 // n_experts
    np.testing.assert_allclose(merged, (u[:, :r] * s[:r]) @ vt[:r] / n_experts, atol=1e-8)


def test_low_ranks_stay_in_the_space_of_the_experts():
    deltas = [low_rank(12, 9, 2, seed=1), low_rank(12, 9, 1, seed=2)]
    space = np.linalg.svd(np.concatenate(arrays(deltas), 1))[0][:, :3]
    for basis in arrays(bases_of("dc_merge", deltas, keep=0.5)):
        assert np.isfinite(basis).all()
        np.testing.assert_allclose(space @ (space.T @ basis), basis, atol=1e-7)


@pytest.mark.parametrize("keep", [1e-3, 1.0])
def test_no_basis_is_longer_than_its_delta_however_many_experts(keep):
    deltas = [random(8, 6, seed=k) for k in range(40)]  # more than there are directions
    for delta, basis in zip(deltas, bases_of("dc_merge", deltas, keep=keep), strict=True):
        assert float(basis.norm()) <= 1.00001 * float(delta.norm())
        assert torch.isfinite(basis).all()


@pytest.mark.parametrize(
    ("kind", "shape"), [("embed", (9, 7)), ("head", (9, 7)), ("norm", (9,)), ("norm", ())]
)
def test_vectors_and_tables_have_the_mean(kind, shape):
    deltas = [random(*shape, seed=k) for k in range(4)]
    assert_same(bases_of("dc_merge", deltas, kind=kind), [t / 4 for t in arrays(deltas)])


def test_the_same_with_any_number_of_threads():
    deltas = [random(130, 150, seed=k) for k in range(3)]
    assert_same_with_any_number_of_threads("dc_merge", deltas, keep=0.1)
