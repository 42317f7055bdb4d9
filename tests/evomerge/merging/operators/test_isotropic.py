import numpy as np
import pytest

from evomerge.merging.operators.isotropic import ranks
from tests.support.matrix_deltas import bases_of, random_delta

SHAPES = [(12, 12), (12, 30), (30, 12)]
NAMES = ["iso_c", "iso_c_exact", "iso_cts", "iso_cts_exact"]


def svd(X):
    return np.linalg.svd(X, full_matrices=False)


def polar(X):
    u, _, vt = svd(X)
    return u @ vt


def iso_c(deltas):
    u, s, vt = svd(sum(deltas))
    return s.mean() * u @ vt


def iso_cts(deltas, k, d):
    """The merge and each expert's block of it."""
    u, s, vt = svd(sum(deltas))
    U_c, S_c, Vt_c = u[:, :k], s[:k], vt[:k]
    parts = [svd(t - U_c @ U_c.T @ t) for t in deltas]
    U = polar(np.hstack([*(u[:, :d] for u, _, _ in parts), U_c]))
    Vt = polar(np.vstack([*(vt[:d] for _, _, vt in parts), Vt_c]))
    mean = np.concatenate([*(s[:d] for _, s, _ in parts), S_c]).mean()
    blocks = [slice(i * d, (i + 1) * d) for i in range(len(deltas))]
    return mean * U @ Vt, [mean * U[:, b] @ Vt[b] for b in blocks]


def all_common(name):
    """Knobs that leave no directions to single experts."""
    return {"common_fraction": 1.0} if "cts" in name else {}


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c_sums_to_the_papers_merge(shape):
    deltas = [random_delta(shape, k) for k in range(3)]
    for name in ("iso_c", "iso_c_exact"):
        np.testing.assert_allclose(sum(bases_of(name, deltas)), iso_c(deltas), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c_maps_every_delta_by_the_whitening_of_their_sum(shape):
    deltas = [random_delta(shape, k) for k in range(3)]
    u, s, vt = svd(sum(deltas))
    whiten = s.mean() * (u / s @ u.T if shape[0] <= shape[1] else vt.T / s @ vt)
    for D, t in zip(bases_of("iso_c", deltas), deltas, strict=True):
        expected = whiten @ t if shape[0] <= shape[1] else t @ whiten
        np.testing.assert_allclose(D, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("c", [(0.5, 1.5, 1.0), (1.0, -0.3, 0.8), (1.0, 0.0, 0.7)])
def test_exact_iso_c_is_the_papers_merge_at_every_coefficient(shape, c):
    deltas = [random_delta(shape, k) for k in range(3)]
    bases = bases_of("iso_c_exact", deltas, weights=c)
    merged = sum(c_i * D for c_i, D in zip(c, bases, strict=True))
    scaled = [c_i * t for c_i, t in zip(c, deltas, strict=True)]
    np.testing.assert_allclose(merged, iso_c(scaled), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "n_experts", "fraction", "expected"),
    [
        (48, 4, 0.8, (40, 2)),
        (50, 4, 0.8, (42, 2)),  # 10 / 4 is 2.5: half to even
        (100, 1, 0.29, (29, 71)),  # .29 * 100 is below 29 in floats
        (8, 40, 0.8, (8, 0)),
        (3, 4, 0.0, (0, 1)),
        (6, 2, 1.0, (6, 0)),
    ],
)
def test_directions_are_shared_out_as_in_the_authors_code(size, n_experts, fraction, expected):
    assert ranks(size, n_experts, fraction) == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("fraction", "k", "d"), [(0.8, 9, 1), (0.5, 6, 2), (0.0, 0, 4)])
def test_iso_cts_is_the_papers_merge_with_the_common_part_shared_out(shape, fraction, k, d):
    deltas = [random_delta(shape, k) for k in range(3)]
    merged, blocks = iso_cts(deltas, k, d)
    common = merged - sum(blocks)
    for name in ("iso_cts", "iso_cts_exact"):
        bases = bases_of(name, deltas, common_fraction=fraction)
        for D, block in zip(bases, blocks, strict=True):
            np.testing.assert_allclose(D, block + common / 3, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("c", [(0.5, 1.5, 1.0), (1.0, -0.3, 0.8), (1e-3, 1.0, 1.0)])
def test_exact_iso_cts_is_the_papers_merge_at_every_coefficient(shape, c):
    deltas = [random_delta(shape, k) for k in range(3)]
    bases = bases_of("iso_cts_exact", deltas, weights=c)
    merged = sum(c_i * D for c_i, D in zip(c, bases, strict=True))
    expected, _ = iso_cts([c_i * t for c_i, t in zip(c, deltas, strict=True)], 9, 1)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-5)


def test_a_coefficient_of_zero_takes_an_expert_out_of_exact_iso_cts():
    deltas = [random_delta((12, 9), k) for k in range(3)]
    first, out, last = bases_of("iso_cts_exact", deltas, weights=(0.5, 0.0, 2.0))
    assert not out.any()
    deltas[1] = np.zeros((12, 9))
    again = bases_of("iso_cts_exact", deltas, weights=(0.5, 1.0, 2.0))
    np.testing.assert_array_equal([first, out, last], again)


@pytest.mark.parametrize("name", ["iso_c_exact", "iso_cts_exact"])
def test_coefficients_that_are_all_zero_give_zero(name):
    assert not np.any(bases_of(name, [random_delta((5, 4), k) for k in range(2)], weights=(0, 0)))


@pytest.mark.parametrize("name", NAMES)
def test_two_identical_experts_make_the_merge_of_one_that_is_twice_as_long(name):
    delta = random_delta((12, 9), 0)
    first, second = bases_of(name, [delta, delta], **all_common(name))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first + second, iso_c([2 * delta]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_experts", [1, 2, 3])
def test_low_rank_stays_low_rank(name, n_experts):
    deltas = [random_delta((20, 16), k % 2, rank=1) for k in range(n_experts)]
    bases = bases_of(name, deltas)
    assert np.isfinite(bases).all()
    tolerance = 1e-4 * np.abs(bases).max()
    n_directions = min(n_experts, 2)  # the third is the first again
    assert np.linalg.matrix_rank(np.hstack(bases), tol=tolerance) == n_directions
    assert np.linalg.matrix_rank(np.vstack(bases), tol=tolerance) == n_directions


@pytest.mark.parametrize("name", NAMES)
def test_deltas_that_cancel_leave_nothing_of_noise(name):
    t = random_delta((9, 7), 0)
    weights = (0.1, 0.2, -0.3) if name.endswith("exact") else None
    deltas = [t, t, t] if weights else [t, 2 * t, -3 * t]
    bases = bases_of(name, deltas, weights=weights, **all_common(name))
    assert not np.any(bases)


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_delta_gets_nothing(name):
    first, zero, second = bases_of(
        name, [random_delta((12, 9), 0), np.zeros((12, 9)), random_delta((12, 9), 1)]
    )
    assert not zero.any()
    assert np.isfinite([first, second]).all()
    assert first.any()
    assert second.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5, 4), (1, 6), (6, 1), (1, 1)])
def test_more_experts_than_directions_are_no_trouble(name, shape):
    bases = bases_of(name, [random_delta(shape, k) for k in range(40)])
    assert np.isfinite(bases).all()
    assert np.any(bases)


@pytest.mark.parametrize("name", NAMES)
def test_a_convolution_is_a_matrix_with_a_row_per_output(name):
    deltas = [random_delta((6, 2, 5), k) for k in range(2)]
    flat = bases_of(name, [t.reshape(6, 10) for t in deltas])
    np.testing.assert_array_equal(np.reshape(bases_of(name, deltas), (2, 6, 10)), flat)
