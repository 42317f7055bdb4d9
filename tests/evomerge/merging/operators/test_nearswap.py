import numpy as np
import pytest
import torch

from evomerge.merging.operators import get_operator
from tests.support.whole_tensors import arrays, assert_same, bases_of, random


@pytest.mark.parametrize("strength", [1e-4, 0.001, 0.01, 1.0])
def test_the_weight_is_the_strength_over_the_distance(strength):
    delta = random(30, 20)
    (t,) = arrays([delta])
    weight = np.clip(strength / np.maximum(np.abs(t), 1e-300), 0, 1)
    assert_same(bases_of("nearswap", [delta], strength=strength), [weight * t])


def test_the_ends_are_the_base_and_the_expert():
    delta = torch.tensor([0.0, -0.25, 1.0])
    assert not bases_of("nearswap", [delta], strength=0.0)[0].any()
    assert torch.equal(bases_of("nearswap", [delta], strength=1.0)[0], delta)


def test_the_strength_may_vary_from_candidate_to_candidate():
    operator = get_operator("nearswap")
    assert operator.complete({"strength": 0.5}, "runtime") == {"strength": 0.5}
    assert operator.n_experts == (1, 1)
