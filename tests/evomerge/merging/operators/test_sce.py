import numpy as np
import pytest
import torch

from tests.support.whole_tensors import arrays, assert_same, bases_of, random


def reference(t, density, unselected):
    """The formula on whole tensors, in float64."""
    t = np.stack(t)
    variance = t.var(axis=0)
    n_kept = max(1, round(density * variance.size))
    rounded = torch.tensor(variance).float().bfloat16().double().numpy()
    S = (rounded >= np.sort(rounded.ravel())[-n_kept]) & (rounded > 0)
    if density >= 1.0 or not S.any():
        S = np.ones_like(S)
    w = np.array([(x[S] ** 2).mean() for x in t])
    w = w / w.sum()
    merged = t * S if unselected == "zero" else t
    g = np.where(merged.sum(axis=0) < 0, -1.0, 1.0)
    agree = merged * g > 0
    divisor = sum(wk * a for wk, a in zip(w, agree, strict=True))
    divisor[divisor == 0] = 1.0
    return [wk * a * m / divisor for wk, a, m in zip(w, agree, merged, strict=True)]


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("unselected", ["zero", "keep"])
@pytest.mark.parametrize("n_experts", [2, 3, 40])
def test_is_the_formula(density, unselected, n_experts):
    deltas = [random(20, 15, seed=k) for k in range(n_experts)]
    bases = bases_of("sce", deltas, density=density, unselected=unselected)
    assert_same(bases, reference(arrays(deltas), density, unselected), rtol=1e-5)


def test_weights_of_tiny_deltas_are_not_uniform():
    # Mean squares near 1e-9: an absolute guard of 1e-6 would make all weights equal.
    large, small = 1e-4 * torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 1e-5 * torch.ones(1, 4)
    first, second = bases_of("sce", [large, small], density=1.0)
    share = first / large
    assert (share > 0.98).all()
    torch.testing.assert_close(second / small, 1 - share, rtol=1e-3, atol=1e-6)


def test_identical_experts_give_their_delta():
    delta = random(6, 5, seed=1)
    torch.testing.assert_close(sum(bases_of("sce", [delta] * 3)), delta)
