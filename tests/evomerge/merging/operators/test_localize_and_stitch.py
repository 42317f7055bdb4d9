import numpy as np
import pytest
import torch

from evomerge.merging.operators import get_operator
from tests.support.whole_tensors import arrays, assert_same, bases_of, random, scanned

NAME = "localize_and_stitch"


def distinct(*shape, seed):
    """Magnitudes that differ, all of them numbers of bf16."""
    n = int(np.prod(shape))
    rng = np.random.default_rng(seed)
    magnitudes = np.arange(1, 129)[:, None] * 2.0 ** -np.arange(8, 8 * 9, 8)
    values = rng.permutation(magnitudes.reshape(-1))[:n] * rng.choice([-1, 1], n)
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def reference(of_tensors, density):
    """One sort per expert over the flattened model; the bases of its first tensor."""
    masks = []
    for k in range(len(of_tensors[0])):
        flat = np.abs(np.concatenate([tensors[k].reshape(-1) for tensors in of_tensors]))
        least = np.sort(flat)[-max(1, round(density * flat.size))]
        masks.append(np.abs(of_tensors[0][k]) >= least)
    count = np.maximum(1, np.sum(masks, axis=0))
    return [mask * t / count for mask, t in zip(masks, of_tensors[0], strict=True)]


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n_experts", [1, 2, 5])
def test_the_threshold_is_of_the_whole_expert(density, n_experts):
    here = [distinct(20, 15, seed=k) for k in range(n_experts)]
    # The other tensor of the model changes much less, except in the first expert.
    there = [
        distinct(25, 20, seed=50 + k) * (1.0 if k == 0 else 2.0**-70) for k in range(n_experts)
    ]
    bases = bases_of(NAME, here, others=[scanned(NAME, there)], density=density)
    assert_same(bases, reference([arrays(here), arrays(there)], density))


def test_all_that_equal_the_last_are_kept():
    delta = torch.tensor([1.0, -1.0, 1.0, 0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0])
    (basis,) = bases_of(NAME, [delta], density=0.1)
    assert basis.tolist() == [1.0, -1.0, 1.0, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["embed", "head"])
def test_embeddings_stay_the_bases_unless_asked_for(kind):
    deltas = [random(20, 15, seed=k) for k in range(2)]
    assert not scanned(NAME, deltas, kind=kind)
    assert not any(basis.any() for basis in bases_of(NAME, deltas, kind=kind))
    taken = bases_of(NAME, deltas, kind=kind, embeddings="localize")
    assert all(map(torch.equal, taken, bases_of(NAME, deltas)))


def test_density_may_be_set_for_one_expert_and_is_free():
    deltas = [distinct(20, 20, seed=k) for k in range(2)]
    _, second = bases_of(NAME, deltas, **{"density": 0.1, "density@expert1": 0.5})
    assert int((second != 0).sum()) == 200
    assert get_operator(NAME).complete({"density@math": 0.5}, "runtime") == {"density@math": 0.5}
    assert not bases_of(NAME, deltas, density=0.0)[0].any()


def test_an_expert_of_zeros_keeps_none_and_is_not_counted():
    first, second = bases_of(NAME, [random(6, 5), torch.zeros(6, 5)], density=1.0)
    assert torch.equal(first, random(6, 5))
    assert not second.any()
