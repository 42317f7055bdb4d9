import numpy as np
import pytest

from tests.support.matrix_deltas import bases_of, random_delta

# Three experts: the Gram of the rows is the smaller one in the last of them only.
SHAPES = [(12, 12), (30, 12), (12, 30), (6, 40)]


def grams(deltas):
    return [t.T @ t / np.sum(t**2) if t.any() else 0 * t.T @ t for t in deltas]


def wudi(deltas):
    G = grams(deltas)
    inverse = np.linalg.pinv(sum(G), rcond=1e-10, hermitian=True)
    return [t @ G_i @ inverse for t, G_i in zip(deltas, G, strict=True)]


def swudi(deltas, time, energy):
    G = grams(deltas)
    L, V = np.linalg.eigh(sum(G))
    L, V = L[::-1].clip(1e-12), V[:, ::-1]
    f = 1 - np.exp(-L * time)
    f[np.searchsorted(np.cumsum(L) / L.sum(), energy) + 1 :] = 0
    identity = np.eye(len(L))
    return [
        t @ (identity - V @ np.diag(f) @ V.T + G_i @ V @ np.diag(f / L) @ V.T)
        for t, G_i in zip(deltas, G, strict=True)
    ]


def loss(M, deltas):
    return sum(np.sum(((M - t) @ t.T) ** 2) / np.sum(t**2) for t in deltas)


@pytest.mark.parametrize("shape", SHAPES)
def test_wudi_is_the_papers_closed_form(shape):
    deltas = [(k + 1) * random_delta(shape, k) for k in range(3)]
    for D, expected in zip(bases_of("wudi", deltas), wudi(deltas), strict=True):
        np.testing.assert_allclose(D, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_merge_has_a_smaller_loss_than_wudis(shape):
    deltas = [random_delta(shape, k) for k in range(3)]
    M = sum(bases_of("wudi", deltas))
    gradient = sum((M - t) @ G for t, G in zip(deltas, grams(deltas), strict=True))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert loss(M, deltas) <= loss(sum(deltas), deltas)
    assert loss(M, deltas) <= loss(sum(deltas) / 3, deltas)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("time", "energy"), [(300.0, 0.65), (3.0, 0.85), (10_000.0, 1.0)])
def test_swudi_is_the_filtered_closed_form(shape, time, energy):
    deltas = [(k + 1) * random_delta(shape, k) for k in range(3)]
    bases = bases_of("swudi", deltas, time=time, energy=energy)
    for D, expected in zip(bases, swudi(deltas, time, energy), strict=True):
        np.testing.assert_allclose(D, expected, rtol=0, atol=1e-5)


def test_swudi_is_gradient_flow_from_the_sum():
    deltas = [random_delta((8, 6), k) for k in range(2)]
    G, M, steps = grams(deltas), sum(deltas), 20_000
    for _ in range(steps):
        gradient = sum((M - t) @ G_i for t, G_i in zip(deltas, G, strict=True))
        M = M - 3.0 / steps * gradient
    flowed = sum(bases_of("swudi", deltas, time=3.0, energy=1.0))
    np.testing.assert_allclose(flowed, M, rtol=0, atol=1e-3)


def test_swudi_goes_from_the_sum_to_wudi():
    deltas = [random_delta((20, 6), k) for k in range(2)]
    late = bases_of("swudi", deltas, time=10_000.0, energy=1.0)
    np.testing.assert_allclose(late, bases_of("wudi", deltas), rtol=0, atol=1e-5)
    losses = [
        loss(sum(bases_of("swudi", deltas, time=time, energy=1.0)), deltas)
        for time in (1.0, 10.0, 100.0)
    ]
    assert loss(sum(deltas), deltas) > losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("name", ["wudi", "swudi"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_single_expert_keeps_its_delta(name, shape):
    delta = random_delta(shape, 0)
    (D,) = bases_of(name, [delta])
    np.testing.assert_allclose(D, delta, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", [2, 5])
def test_identical_experts_are_one_for_wudi(shape, n_experts):
    delta = random_delta(shape, 0)
    for D in bases_of("wudi", [delta] * n_experts):
        np.testing.assert_allclose(D, delta / n_experts, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["wudi", "swudi"])
def test_experts_with_orthogonal_inputs_are_left_alone(name):
    first, second = np.zeros((5, 8)), np.zeros((5, 8))
    first[:, :4], second[:, 4:] = random_delta((5, 4), 0), random_delta((5, 4), 1)
    for D, t in zip(bases_of(name, [first, second]), [first, second], strict=True):
        np.testing.assert_allclose(D, t, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["wudi", "swudi"])
@pytest.mark.parametrize("shape", [(20, 16), (5, 40)])
def test_experts_of_rank_one_bring_no_noise(name, shape):
    deltas = [random_delta(shape, k, rank=1) for k in (0, 1, 1)]
    bases = bases_of(name, deltas)
    tolerance = 1e-4 * np.abs(bases).max()
    assert np.linalg.matrix_rank(np.hstack(bases), tol=tolerance) == 2
    assert np.linalg.matrix_rank(np.vstack(bases), tol=tolerance) == 2
    if name == "wudi":
        np.testing.assert_allclose(bases, wudi(deltas), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["wudi", "swudi"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_zero_delta_changes_nothing(name, shape):
    first, second = random_delta(shape, 0), random_delta(shape, 1)
    with_zero = bases_of(name, [first, np.zeros(shape), second])
    assert not with_zero[1].any()
    without = bases_of(name, [first, second])
    np.testing.assert_allclose([with_zero[0], with_zero[2]], without, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["wudi", "swudi"])
@pytest.mark.parametrize("shape", [(5, 4), (1, 6), (6, 1), (1, 1), (2, 100)])
def test_more_experts_than_directions_are_no_trouble(name, shape):
    bases = bases_of(name, [random_delta(shape, k) for k in range(40)])
    assert np.isfinite(bases).all()
    assert np.any(bases)


@pytest.mark.parametrize("name", ["wudi", "swudi"])
def test_a_convolution_is_a_matrix_with_a_row_per_output(name):
    deltas = [random_delta((6, 2, 5), k) for k in range(2)]
    flat = bases_of(name, [t.reshape(6, 10) for t in deltas])
    np.testing.assert_array_equal(np.reshape(bases_of(name, deltas), (2, 6, 10)), flat)
