import numpy as np
import pytest
import torch

from tests.support.whole_tensors import arrays, bases_of, random


def reference(t, r):
    """The formula on whole tensors in float64, without clipping (tensors are small)."""
    t = np.stack([x.astype(np.float64) for x in t])
    N, size = len(t), np.abs(t)
    lows, highs = size.min(axis=(1, 2), keepdims=True), size.max(axis=(1, 2), keepdims=True)
    intra = np.exp(N * ((size - lows) / (highs - lows)) ** 2)
    score = intra * np.tanh(t * t.sum(axis=0))
    s = []
    for one in score:
        cut = np.maximum(one, np.quantile(one, 1 - r))
        s.append((cut - cut.min()) / (cut.max() - cut.min()))
    total = np.maximum(sum(s), 1e-12)
    return [x * y / total for x, y in zip(t, s, strict=True)]


@pytest.mark.parametrize("n_experts", [2, 3])
def test_is_the_formula_but_for_the_rounding_of_its_quantile(n_experts):
    deltas = [random(60, 50, seed=k) for k in range(n_experts)]
    ours = bases_of("pcb", deltas, r=0.1)
    for mine, theirs in zip(ours, reference(arrays(deltas), 0.1), strict=True):
        error = np.linalg.norm(mine.numpy() - theirs) / np.linalg.norm(theirs)
        assert error < 0.02


def test_keeps_about_the_fraction_r_of_each_expert():
    deltas = [random(60, 50, seed=k) for k in range(4)]
    for basis in bases_of("pcb", deltas, r=0.2):
        assert 0.18 < float((basis != 0).float().mean()) < 0.22


def test_constant_magnitudes_are_no_division_by_zero():
    deltas = [torch.full((4, 4), 0.01), torch.full((4, 4), -0.02)]
    assert all(torch.isfinite(basis).all() for basis in bases_of("pcb", deltas))


def test_scores_of_small_deltas_are_told_apart():
    deltas = [3e-4 * random(30, 30, seed=k) for k in range(3)]
    for basis in bases_of("pcb", deltas):
        assert len(basis.unique()) > 50


def test_forty_experts_do_not_overflow():
    deltas = [random(8, 8, seed=k) for k in range(40)]
    assert all(torch.isfinite(basis).all() for basis in bases_of("pcb", deltas))
