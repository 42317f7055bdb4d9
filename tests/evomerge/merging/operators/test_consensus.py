import numpy as np
import pytest
import torch

from tests.support.whole_tensors import arrays, bases_of, random


def reference(t, tall_lambdas, k):
    T = np.sum(t, axis=0)
    masks = [np.abs(x) > l_i * np.abs(T - x) for x, l_i in zip(t, tall_lambdas, strict=True)]
    return [x * (np.sum(masks, axis=0) >= k) for x in t]


@pytest.mark.parametrize("n_experts", [1, 2, 3, 40])
@pytest.mark.parametrize("k", [0, 1, 2, 41])
@pytest.mark.parametrize("tall_lambda", [0.0, 0.2, 0.6])
def test_places_are_kept_that_k_experts_use(n_experts, k, tall_lambda):
    deltas = [random(20, 15, seed=i) for i in range(n_experts)]
    bases = bases_of("consensus", deltas, l=tall_lambda, k=k)
    for basis, D in zip(
        bases, reference(arrays(deltas), [tall_lambda] * n_experts, k), strict=True
    ):
        np.testing.assert_array_equal(basis.numpy(), D)


def test_zero_is_task_arithmetic_and_more_than_all_is_the_base():
    deltas = [random(6, 5, seed=i) for i in range(3)]
    assert all(map(torch.equal, bases_of("consensus", deltas, k=0), deltas))
    assert not any(basis.any() for basis in bases_of("consensus", deltas, k=4))


def test_by_hand():
    # T = (4, 5, 0). In the first place only the first expert is large against the rest; in the
    # second both are; in the third they cancel, and each is as large as what it cancels.
    deltas = [torch.tensor([4.0, 3.0, 1.0]), torch.tensor([0.0, 2.0, -1.0])]
    first, second = bases_of("consensus", deltas, l=0.5)
    assert first.tolist() == [0.0, 3.0, 1.0]
    assert second.tolist() == [0.0, 2.0, -1.0]


def test_an_expert_may_have_its_own_threshold():
    deltas = [random(20, 15, seed=i) for i in range(3)]
    bases = bases_of("consensus", deltas, **{"l": 0.4, "l@expert1": 0.9})
    for basis, D in zip(bases, reference(arrays(deltas), [0.4, 0.9, 0.4], 2), strict=True):
        np.testing.assert_array_equal(basis.numpy(), D)


def test_a_zero_delta_uses_no_place():
    deltas = [random(6, 5), torch.zeros(6, 5)]
    assert not any(basis.any() for basis in bases_of("consensus", deltas))
    first, second = bases_of("consensus", deltas, k=1)
    assert torch.equal(first, deltas[0])
    assert not second.any()
