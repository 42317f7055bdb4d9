import numpy as np
import pytest

from tests.support.matrix_deltas import bases_of, random_delta

SHAPES = [(12, 12), (12, 30), (30, 12)]


def polar(X):
    u, _, vt = np.linalg.svd(X, full_matrices=False)
    return u @ vt


def reference(deltas, r):
    """By LAPACK's SVD, block by block."""
    parts = [np.linalg.svd(t, full_matrices=False) for t in deltas]
    U = polar(np.hstack([u[:, :r] for u, _, _ in parts]))
    Vt = polar(np.vstack([vt[:r] for _, _, vt in parts]))
    blocks = [slice(i * r, (i + 1) * r) for i in range(len(deltas))]
    return [U[:, b] @ np.diag(s[:r]) @ Vt[b] for b, (_, s, _) in zip(blocks, parts, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n_experts", "fraction", "r"), [(3, 1.0, 4), (3, 0.5, 2), (5, 1.0, 2)])
def test_the_bases_are_the_papers(shape, n_experts, fraction, r):
    deltas = [random_delta(shape, k) for k in range(n_experts)]
    bases = bases_of("tsv_merge", deltas, rank_fraction=fraction)
    for D, expected in zip(bases, reference(deltas, r), strict=True):
        np.testing.assert_allclose(D, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "n_experts"), [(49, 49), (98, 49), (98, 98)])
def test_ranks_are_divided_in_whole_numbers(size, n_experts):
    # In floats, 49 * (1 / 49) is below 1.
    deltas = [random_delta((size, size), k) for k in range(n_experts)]
    D = bases_of("tsv_merge", deltas)[0]
    assert np.linalg.matrix_rank(D, tol=1e-4) == size // n_experts


@pytest.mark.parametrize("shape", SHAPES)
def test_a_single_expert_keeps_its_delta(shape):
    delta = random_delta(shape, 0)
    (D,) = bases_of("tsv_merge", [delta])
    np.testing.assert_allclose(D, delta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_identical_experts_share_their_truncated_delta(shape):
    delta = random_delta(shape, 0)
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    nearest = (u[:, :6] * s[:6]) @ vt[:6]
    for D in bases_of("tsv_merge", [delta, delta]):
        np.testing.assert_allclose(D, nearest / 2, rtol=0, atol=1e-6)


def test_experts_of_rank_one_bring_no_noise():
    deltas = [random_delta((20, 16), k, rank=1) for k in range(3)]
    for D, t in zip(bases_of("tsv_merge", deltas), deltas, strict=True):
        assert np.linalg.matrix_rank(D, tol=1e-4 * np.linalg.norm(t)) == 1
        assert np.linalg.norm(D) <= 1.000001 * np.linalg.norm(t)


def test_a_zero_delta_changes_only_the_rank_of_the_others():
    deltas = [random_delta((12, 15), 0), np.zeros((12, 15)), random_delta((12, 15), 1)]
    first, zero, second = bases_of("tsv_merge", deltas)
    assert not zero.any()
    expected = reference([deltas[0], deltas[2]], 12 // 3)
    np.testing.assert_allclose([first, second], expected, rtol=0, atol=1e-6)


def test_orthogonal_experts_are_left_alone():
    first, second = np.zeros((6, 8)), np.zeros((6, 8))
    first[:3, :4], second[3:, 4:] = random_delta((3, 4), 0), random_delta((3, 4), 1)
    for D, t in zip(bases_of("tsv_merge", [first, second]), [first, second], strict=True):
        np.testing.assert_allclose(D, t, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 4), (1, 6), (6, 1), (1, 1)])
def test_of_more_experts_than_directions_each_keeps_one(shape):
    deltas = [random_delta(shape, k) for k in range(40)]
    for D, t in zip(bases_of("tsv_merge", deltas), deltas, strict=True):
        assert np.isfinite(D).all()
        assert np.linalg.matrix_rank(D, tol=1e-6) == 1
        assert np.linalg.norm(D) <= np.linalg.norm(t)


@pytest.mark.parametrize("fraction", [0.05, 4.0])
def test_any_rank_fraction_gives_finite_bases(fraction):
    deltas = [random_delta((8, 6), k) for k in range(2)]
    bases = bases_of("tsv_merge", deltas, rank_fraction=fraction)
    assert np.isfinite(bases).all()
    assert np.linalg.matrix_rank(bases[0], tol=1e-4) == (1 if fraction < 1 else 6)


def test_a_convolution_is_a_matrix_with_a_row_per_output():
    deltas = [random_delta((6, 2, 5), k) for k in range(2)]
    bases = bases_of("tsv_merge", deltas)
    flat = bases_of("tsv_merge", [t.reshape(6, 10) for t in deltas])
    np.testing.assert_array_equal(np.reshape(bases, (2, 6, 10)), flat)


def test_coefficients_before_or_after_the_decomposition_are_the_same():
    deltas, c = [random_delta((12, 9), k) for k in range(3)], (0.25, 1.0, 2.0)
    late = [c_i * D for c_i, D in zip(c, bases_of("tsv_merge", deltas), strict=True)]
    early = bases_of("tsv_merge", [c_i * t for c_i, t in zip(c, deltas, strict=True)])
    np.testing.assert_allclose(early, late, rtol=0, atol=1e-6)
