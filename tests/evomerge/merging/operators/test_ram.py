import numpy as np
import pytest
import torch

from evomerge.merging.operators import get_operator
from tests.support.whole_tensors import arrays, assert_same, bases_of, random


def reference(t, epsilon, r=0.0, alpha=0.0):
    changed = [np.abs(x) > epsilon for x in t]
    n = np.sum(changed, axis=0)
    D = []
    for x, mask in zip(t, changed, strict=True):
        own, shared = mask & (n == 1), mask & (n > 1)
        ratio = np.inf if not own.any() else shared.sum() / own.sum()
        factor = 1 + r * np.clip(ratio, 0, alpha)
        D.append(np.where(own, factor * x, np.where(shared, x / np.maximum(n, 1), 0)))
    return D


def sparse(n_experts):
    deltas = [random(40, 30, seed=k) for k in range(n_experts)]
    return [t * (random(40, 30, seed=100 + k) > 0.005) for k, t in enumerate(deltas)]


@pytest.mark.parametrize("n_experts", [1, 2, 3, 40])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.01])
def test_own_changes_are_added_and_shared_ones_averaged(n_experts, epsilon):
    deltas = sparse(n_experts)
    assert_same(bases_of("ram", deltas, epsilon=epsilon), reference(arrays(deltas), epsilon))


@pytest.mark.parametrize(("r", "alpha"), [(0.1, 0.2), (0.5, 10.0), (0.0, 1.0)])
@pytest.mark.parametrize("n_experts", [1, 2, 3, 40])
def test_own_changes_are_enlarged_by_what_is_shared(n_experts, r, alpha):
    deltas = sparse(n_experts)
    bases = bases_of("ram_plus", deltas, r=r, alpha=alpha)
    assert_same(bases, reference(arrays(deltas), 1e-5, r, alpha))


def test_by_hand():
    deltas = [torch.tensor([1.0, 2.0, 0.0, 4.0]), torch.tensor([0.0, 4.0, 1e-6, 0.0])]
    first, second = bases_of("ram", deltas)
    assert first.tolist() == [1.0, 1.0, 0.0, 4.0]
    assert second.tolist() == [0.0, 2.0, 0.0, 0.0]
    # One shared to two own: the first's own part is times 1 + .1 * .2 at most, and it is .5 > .2.
    first, second = bases_of("ram_plus", deltas)
    np.testing.assert_allclose(first.numpy(), [1.02, 1.0, 0.0, 4.08], rtol=1e-6)
    assert second.tolist() == [0.0, 2.0, 0.0, 0.0]


def test_it_is_known_by_mergekits_name():
    assert get_operator("ramplus_tl") is get_operator("ram_plus")
