import numpy as np
import pytest
import torch

from evomerge.merging.operators import get_operator
from evomerge.merging.operators.operator import TensorContext
from evomerge.merging.pieces import BLOCK, in_pieces

RNG = np.random.default_rng(0)


def merged(name, base, deltas, *c, **knobs):
    """`W` as the coefficients say it."""
    operator = get_operator(name)
    tensors = [torch.as_tensor(np.asarray(t), dtype=torch.float32) for t in deltas]
    pieces = in_pieces(torch.as_tensor(np.asarray(base), dtype=torch.float32), tensors, BLOCK)
    knobs = operator.complete(knobs, "prepare")
    context = TensorContext("t", "other", None, tuple(np.shape(base)), knobs, seed=1)
    extra, weights = operator.weigh(c, operator.look(pieces, context), context)
    return (1 + extra) * np.asarray(base) + sum(
        w * np.asarray(t) for w, t in zip(weights, deltas, strict=True)
    )


def slerp(t, a, b):
    theta = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


@pytest.mark.parametrize("c", [-0.3, 0.2, 0.5, 0.9, 1.4])
def test_slerp_goes_along_the_arc_from_base_to_expert(c):
    base, expert = RNG.normal(size=(2, 50))
    ours = merged("slerp", base, [expert - base], c)
    np.testing.assert_allclose(ours, slerp(c, base, expert), rtol=1e-5, atol=1e-6)


def test_slerp_ends_at_base_and_expert_exactly():
    operator = get_operator("slerp")
    base, delta = torch.tensor([1.0, 2.0]), torch.tensor([-2.0, 0.5])
    context = TensorContext("t", "other", None, (2,), {}, seed=1)
    statistics = operator.look(in_pieces(base, [delta], BLOCK), context)
    assert operator.weigh([0.0], statistics, context) == (0.0, [0.0])
    extra, (along,) = operator.weigh([1.0], statistics, context)
    assert (extra, along) == pytest.approx((0.0, 1.0))


def test_slerp_of_nearly_parallel_weights_is_a_line():
    base = RNG.normal(size=50)
    delta = 1e-3 * RNG.normal(size=50)
    np.testing.assert_allclose(merged("slerp", base, [delta], 0.3), base + 0.3 * delta, rtol=1e-9)


def test_nuslerp_is_slerp_of_task_vectors():
    base, first, second = RNG.normal(size=(3, 40))
    ours = merged("nuslerp", base, [first, second], 0.5, 1.5)
    np.testing.assert_allclose(ours, base + slerp(0.75, first, second), rtol=1e-5, atol=1e-6)


def test_multislerp_is_the_mean_direction_at_the_mean_length():
    base, *deltas = RNG.normal(size=(4, 40))
    w = np.array([0.2, 0.3, 0.5])
    lengths = np.linalg.norm(deltas, axis=1)
    m = sum(wk * t / n for wk, t, n in zip(w, deltas, lengths, strict=True))
    expected = base + (w @ lengths) * m / np.linalg.norm(m)
    np.testing.assert_allclose(merged("multislerp", base, deltas, *(2 * w)), expected, rtol=1e-5)


def karcher(vectors, w, n_steps=200):
    """Plain gradient steps on the sphere."""
    lengths = np.linalg.norm(vectors, axis=1)
    u = vectors / lengths[:, None]
    mu = w @ u / np.linalg.norm(w @ u)
    for _ in range(n_steps):
        T = np.zeros_like(mu)
        for wk, x in zip(w, u, strict=True):
            cos = np.clip(x @ mu, -1, 1)
            theta = np.arccos(cos)
            T += wk * (theta / np.sin(theta) if theta > 1e-9 else 1.0) * (x - cos * mu)
        length = np.linalg.norm(T)
        if length < 1e-12:
            break
        mu = np.cos(length) * mu + np.sin(length) * T / length
    return (w @ lengths) * mu


def test_karcher_is_the_riemannian_mean_of_the_weights():
    base = RNG.normal(size=40)
    experts = base + RNG.normal(size=(3, 40))
    w = np.array([0.5, 0.2, 0.3])
    ours = merged("karcher", base, list(experts - base), *w, max_iter=200, tol=1e-12)
    np.testing.assert_allclose(ours, karcher(experts, w), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher"])
def test_without_weights_it_is_the_base(name):
    base, *deltas = RNG.normal(size=(3, 10))
    for c in ((0.0, 0.0), (-1.0, -0.5)):
        np.testing.assert_array_equal(merged(name, base, deltas, *c), base)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher"])
def test_zero_identical_and_opposite_deltas_stay_finite(name):
    base, delta = RNG.normal(size=(2, 10))
    for pair in ([delta, delta], [delta, -delta], [delta, 0 * delta], [0 * delta, 0 * delta]):
        assert np.isfinite(merged(name, base, pair, 0.5, 0.5)).all()
    if name != "karcher":
        np.testing.assert_allclose(
            merged(name, base, [delta, delta], 0.5, 0.5), base + delta, rtol=1e-5
        )
