import numpy as np
import pytest
import torch

from evomerge.merging.operators import TensorContext
from evomerge.merging.pieces import Piece
from evomerge.merging.spectral import (
    FLOOR,
    alone,
    flat_bases,
    inverse_root,
    matrices,
    mean_bases,
    polar,
    thin_svd,
)

SHAPES = [(1, 1), (1, 6), (6, 1), (9, 9), (20, 7), (7, 20)]


def random(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_singular_values(S, m=12, n=9):
    (U, _), (V, _) = torch.linalg.qr(random(m, len(S), 1)), torch.linalg.qr(random(n, len(S), 2))
    return U * torch.tensor(S, dtype=torch.float64) @ V.T


def context_of(shape, kind="mlp.up"):
    return TensorContext("weight", kind, 0, shape, {}, seed=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_triplets_are_those_of_numpy(shape):
    X = random(*shape)
    U, S, V = thin_svd(X)
    torch.testing.assert_close(S, torch.from_numpy(np.linalg.svd(X.numpy(), compute_uv=False)))
    torch.testing.assert_close(U * S @ V.T, X)
    torch.testing.assert_close(U.T @ U, torch.eye(len(S), dtype=torch.float64))
    torch.testing.assert_close(V.T @ V, torch.eye(len(S), dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_truncated_svd_is_the_nearest_matrix_of_that_rank(shape):
    X = random(*shape)
    U, S, V = thin_svd(X, rank=3)
    u, s, vt = np.linalg.svd(X.numpy(), full_matrices=False)
    nearest = torch.from_numpy((u[:, :3] * s[:3]) @ vt[:3])
    torch.testing.assert_close(U * S @ V.T, nearest)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_polar_factor_is_that_of_an_svd(shape):
    X = random(*shape)
    u, _, vt = np.linalg.svd(X.numpy(), full_matrices=False)
    torch.testing.assert_close(polar(X), torch.from_numpy(u @ vt), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("X", [with_singular_values([3.0, 1.0, 0.1]), random(8, 1) @ random(1, 5)])
def test_directions_that_are_not_there_stay_zero(X):
    U, S, V = thin_svd(X)
    r = int(torch.linalg.matrix_rank(X))
    assert U.shape[1] == len(S) == V.shape[1] == r
    factor = polar(X)
    assert int(torch.linalg.matrix_rank(factor)) == r
    torch.testing.assert_close(factor, U @ V.T)


def test_the_floor_is_relative():
    for scale in (1e-20, 1.0, 1e15):
        assert len(thin_svd(scale * with_singular_values([1.0, 3.0 * FLOOR])).S) == 2
        assert len(thin_svd(scale * with_singular_values([1.0, FLOOR / 3.0])).S) == 1


def test_equal_columns_share_one_direction():
    U = torch.linalg.qr(random(9, 3))[0]
    torch.testing.assert_close(polar(torch.cat([U, U], 1)), torch.cat([U, U], 1) / 2**0.5)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (3, 0)])
def test_of_nothing_comes_nothing(shape):
    X = torch.zeros(shape)
    assert not polar(X).any()
    assert polar(X).shape == shape
    assert len(thin_svd(X).S) == 0
    assert not inverse_root(X.double() @ X.double().T).any()


@pytest.mark.parametrize("shape", [(70, 50), (50, 70), (150, 150)])
def test_one_thread_rounds_whatever_torch_has(shape):
    X = random(*shape).float()
    before = torch.get_num_threads()
    answers = []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            answers.append([alone(polar)(X), *alone(thin_svd)(X, rank=20)])
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def test_an_error_comes_out_of_the_other_thread():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError):
            alone(lambda: 1 // 0)()
    finally:
        torch.set_num_threads(before)


def test_matrices_are_rows_and_all_the_rest():
    delta = torch.arange(30.0)
    piece = Piece(0, torch.zeros(30), [delta])
    (X,) = matrices(piece, context_of((3, 2, 5))) or []
    assert torch.equal(X, delta.reshape(3, 10))
    assert torch.equal(flat_bases([X.double().T.contiguous().T])[0], delta)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((), "other"), ((6,), "norm"), ((0, 4), "other"), ((3, 2), "embed"), ((3, 2), "head")],
)
def test_what_is_no_linear_map_is_averaged(shape, kind):
    context = context_of(shape, kind)
    deltas = [torch.full((context.n_elements,), x) for x in (3.0, 0.0, -1.5)]
    piece = Piece(0, torch.zeros(context.n_elements), deltas)
    assert matrices(piece, context) is None
    for basis, delta in zip(mean_bases(piece), deltas, strict=True):
        assert torch.equal(basis, delta / 3.0)
