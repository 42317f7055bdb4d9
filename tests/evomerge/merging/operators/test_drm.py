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


def top(x, drop):
    """Without the fraction `drop` of smallest entries."""
    return np.where(np.abs(x) >= np.sort(np.abs(x), None)[round(drop * x.size)], x, 0.0)


def reference(deltas, drop, vertical=False):
    """DRM of dense float64 matrices by an SVD, from the paper's formula."""
    if vertical:
        return [D.T for D in reference([t.T for t in deltas], drop)]
    U, S, V = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    r = np.sum(S / S[0] > 1e-2)
    U, S, V = U[:, :r], S[:r], np.stack(np.split(V[:r], len(deltas), 1))
    q = np.linalg.norm(V, axis=2, keepdims=True)
    B = S[:, None] * q * top(V / q, drop)
    return list(U @ elected_mean(B))


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (40, 3), (3, 40)])
@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
@pytest.mark.parametrize("drop", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_bases_are_those_of_the_formula(shape, direction, drop, n_experts):
    deltas = [random(*shape, seed=k) for k in range(n_experts)]
    expected = reference(arrays(deltas), drop, vertical=direction == "vertical")
    assert_same(bases_of("drm", deltas, drop=drop, direction=direction), expected)


def test_a_tensor_of_three_dimensions_is_a_matrix_of_its_first_against_the_rest():
    deltas = [random(6, 3, 5, seed=k) for k in range(3)]
    expected = reference([t.reshape(6, 15) for t in arrays(deltas)], 0.8)
    assert_same(bases_of("drm", deltas), [D.reshape(6, 3, 5) for D in expected])


def test_nothing_dropped_still_merges_in_the_common_space():
    deltas = [random(12, 9, seed=k) for k in range(3)]
    merged = sum(bases_of("drm", deltas, drop=0.0))
    assert not torch.allclose(
        merged, torch.from_numpy(elected_mean(np.stack(arrays(deltas))).sum(0)).float()
    )


def test_what_is_left_of_the_expected_share_of_the_core():
    deltas = [random(10, 20, seed=k) for k in range(3)]
    U = np.linalg.svd(np.concatenate(arrays(deltas), 1), full_matrices=False)[0]
    cores = np.stack([U.T @ D for D in arrays(bases_of("drm", deltas, drop=0.9))])
    assert 0 < (np.abs(cores) > 1e-9).mean() <= 0.1 + 1e-9


def test_an_expert_that_is_not_in_a_direction_is_not_counted_there():
    # They change different rows, so every direction of the common space is of one expert alone.
    deltas = [torch.zeros(6, 8), torch.zeros(6, 8)]
    deltas[0][:3], deltas[1][3:] = random(3, 8, seed=1), random(3, 8, seed=2)
    assert_same(bases_of("drm", deltas, drop=0.0), arrays(deltas))


def test_a_zero_expert_changes_nothing_for_the_others():
    first, second = random(9, 12, seed=1), random(9, 12, seed=2)
    zero = torch.zeros(9, 12)
    a, nothing, b = bases_of("drm", [first, zero, second])
    assert not nothing.any()
    assert_same([a, b], arrays(bases_of("drm", [first, second])))
    assert not any(basis.any() for basis in bases_of("drm", [zero, zero]))


@pytest.mark.parametrize("n_experts", [2, 3, 40])
def test_identical_experts_have_the_merge_of_one(n_experts):
    delta = random(12, 10)  # 100 entries in the common space
    merged = sum(bases_of("drm", [delta] * n_experts, drop=0.6))
    assert_same([merged], arrays(bases_of("drm", [delta], drop=0.6)))
    merged = sum(bases_of("drm", [delta] * n_experts, drop=0.0))
    assert_same([merged], arrays([delta]))


def test_opposite_experts_elect_nobody():
    assert not any(basis.any() for basis in bases_of("drm", [random(9, 7), -random(9, 7)]))


def test_low_ranks_stay_in_the_space_of_the_experts():
    deltas = [low_rank(12, 9, 2, seed=1), low_rank(12, 9, 1, seed=2)]
    space = np.linalg.svd(np.concatenate(arrays(deltas), 1))[0][:, :3]
    for basis in arrays(bases_of("drm", deltas, drop=0.3)):
        np.testing.assert_allclose(space @ (space.T @ basis), basis, atol=1e-7)


def test_no_basis_is_longer_than_its_delta_however_many_experts():
    deltas = [random(8, 6, seed=k) for k in range(40)]
    for drop in (0.0, 0.8, 1.0):
        for delta, basis in zip(deltas, bases_of("drm", deltas, drop=drop), strict=True):
            assert float(basis.norm()) <= 1.00001 * float(delta.norm())


def test_one_entry_stays_when_all_are_dropped():
    assert (
        sum(
            bool(b.any())
            for b in bases_of("drm", [random(8, 6, seed=k) for k in range(3)], drop=1.0)
        )
        == 1
    )


@pytest.mark.parametrize("vector_drop", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(20,), (1,), ()])
def test_vectors_are_trimmed_elected_and_averaged(shape, vector_drop):
    deltas = [random(*shape, seed=k) for k in range(3)]
    trimmed = [t if t.size == 1 else top(t, vector_drop) for t in arrays(deltas)]
    bases = bases_of("drm", deltas, vector_drop=vector_drop)
    assert_same(bases, list(elected_mean(np.stack(trimmed))))


@pytest.mark.parametrize("kind", ["embed", "head"])
def test_tables_have_the_mean(kind):
    deltas = [random(9, 7, seed=k) for k in range(4)]
    assert_same(bases_of("drm", deltas, kind=kind), [t / 4 for t in arrays(deltas)])


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_the_same_with_any_number_of_threads(direction):
    deltas = [random(130, 150, seed=k) for k in range(3)]
    assert_same_with_any_number_of_threads("drm", deltas, direction=direction)
