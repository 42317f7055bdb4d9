import numpy as np
import pytest
import torch

from tests.support.whole_tensors import (
    arrays,
    assert_same,
    assert_same_with_any_number_of_threads,
    bases_of,
    low_rank,
    random,
    scanned,
)


def clean(M, t, alpha):
    """`U P V^T` with the full bases of an SVD."""
    U, S, VT = np.linalg.svd(M, full_matrices=True)
    r = np.argmax(np.cumsum(S) / S.sum() > alpha)
    P = U.T @ t @ VT.T
    np.fill_diagonal(P, 0.0)
    P[:r, :r] = 0.0
    return U @ P @ VT


def norm(tensors):
    return np.sqrt(sum((t * t).sum() for t in tensors))


def sequential(models, alpha=0.5):
    """OPCM as published, over whole models (lists of tensors), rescaled after each one."""
    merged, norms, previous = [t.copy() for t in models[0]], [norm(models[0])], 1.0
    for model in models[1:]:
        norms.append(norm(model))
        merged = [
            previous * M + (clean(M, t, alpha) if t.ndim == 2 else t)
            for M, t in zip(merged, model, strict=True)
        ]
        previous = norm(merged) / np.mean(norms)
        merged = [M / previous for M in merged]
    return merged


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (9, 9), (3, 40)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_the_sum_of_bases_is_the_published_merge(shape, alpha, n_experts):
    deltas = [random(*shape, seed=k) for k in range(n_experts)]
    expected = sequential([[t] for t in arrays(deltas)], alpha)
    assert_same([sum(bases_of("opcm", deltas, alpha=alpha))], expected)


def test_rescaling_once_by_the_norms_of_the_whole_model_is_rescaling_after_each_expert():
    shapes, scales = [(8, 6), (5, 9), (7,)], [0.01, 0.05, 0.02]
    tensors = [
        [random(*shape, seed=k, scale=scale) for k in range(4)]
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    expected = sequential([list(model) for model in zip(*map(arrays, tensors), strict=True)])
    statistics = [scanned("opcm", deltas) for deltas in tensors]
    for i, deltas in enumerate(tensors):
        others = [s for j, s in enumerate(statistics) if j != i]
        assert_same([sum(bases_of("opcm", deltas, others=others))], [expected[i]])


def test_bases_are_what_each_expert_adds():
    deltas = [random(7, 11, seed=k) for k in range(3)]
    first, second, third = arrays(deltas)
    expected = [first]
    for t in (second, third):
        expected.append(clean(sum(expected), t, 0.5))
    assert_same(bases_of("opcm", deltas, rescale="none"), expected)


def test_what_lies_outside_of_the_span_of_those_before_is_not_lost():
    # A thin SVD of the first would take away the second altogether.
    deltas = [torch.zeros(4, 6), torch.zeros(4, 6)]
    deltas[0][0, 0], deltas[1][2, 3] = 0.5, 0.25
    assert_same(bases_of("opcm", deltas, rescale="none"), arrays(deltas))


def test_a_tensor_can_be_rescaled_on_its_own():
    deltas = [random(7, 11, seed=k) for k in range(3)]
    other = scanned("opcm", [random(5, 5, seed=k, scale=1.0) for k in range(3)])
    alone = bases_of("opcm", deltas, rescale="tensor", others=[])
    assert_same(alone, arrays(bases_of("opcm", deltas)))
    assert not torch.allclose(alone[0], bases_of("opcm", deltas, others=[other])[0])
    mean = np.mean([float(t.norm()) for t in deltas])
    assert float(sum(alone).norm()) == pytest.approx(mean, rel=1e-5)


def test_all_of_those_before_is_projected_off_with_alpha_1():
    deltas = [random(6, 6, seed=k) for k in range(2)]
    assert not bases_of("opcm", deltas, alpha=1.0)[1].any()  # there is no room outside
    assert bases_of("opcm", [random(6, 8, seed=k) for k in range(2)], alpha=1.0)[1].any()


def test_a_single_expert_is_left_alone():
    (basis,) = bases_of("opcm", [random(12, 9)])
    assert torch.equal(basis, random(12, 9))


@pytest.mark.parametrize("n_experts", [2, 3, 40])
def test_identical_experts_are_one(n_experts):
    for delta in (random(12, 9), low_rank(12, 9, 2)):
        merged = sum(bases_of("opcm", [delta] * n_experts))
        assert_same([merged], arrays([delta]))


def test_zero_experts_have_zero_bases_wherever_they_come():
    a, b, zero = random(9, 12, seed=1), random(9, 12, seed=2), torch.zeros(9, 12)
    for order in ([zero, a, b], [a, zero, b], [a, b, zero]):
        bases = bases_of("opcm", order, rescale="none")
        assert not bases[[t is zero for t in order].index(True)].any()
        assert_same([sum(bases)], arrays([sum(bases_of("opcm", [a, b], rescale="none"))]))
    for rescale in ("model", "tensor", "none"):
        assert not any(basis.any() for basis in bases_of("opcm", [zero, zero], rescale=rescale))


def test_vectors_that_cancel_are_not_divided_by_zero():
    deltas = [random(9), -random(9)]
    for rescale in ("model", "tensor"):
        assert_same(bases_of("opcm", deltas, rescale=rescale), arrays(deltas))


@pytest.mark.parametrize(
    ("kind", "shape"), [("embed", (9, 7)), ("head", (9, 7)), ("norm", (9,)), ("norm", ())]
)
def test_vectors_and_tables_are_added(kind, shape):
    deltas = [random(*shape, seed=k) for k in range(4)]
    assert_same(bases_of("opcm", deltas, kind=kind, rescale="none"), arrays(deltas))


def test_a_tensor_of_three_dimensions_is_a_matrix_of_its_first_against_the_rest():
    deltas = [random(6, 3, 5, seed=k) for k in range(3)]
    flat = bases_of("opcm", [t.reshape(6, 15) for t in deltas])
    assert_same(bases_of("opcm", deltas), [D.reshape(6, 3, 5) for D in arrays(flat)])


def test_forty_experts_on_a_small_matrix_stay_finite():
    bases = bases_of("opcm", [random(8, 6, seed=k) for k in range(40)])
    assert all(torch.isfinite(basis).all() for basis in bases)
    assert float(sum(bases).norm()) <= max(float(random(8, 6, seed=k).norm()) for k in range(40))


def test_the_same_with_any_number_of_threads():
    assert_same_with_any_number_of_threads("opcm", [random(130, 150, seed=k) for k in range(3)])
