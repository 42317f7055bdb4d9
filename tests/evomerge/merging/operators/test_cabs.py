import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging.pieces import BLOCK
from tests.support.whole_tensors import arrays, assert_same, bases_of, random


def reference(t, n, m, order):
    """Block by block, expert by expert, by a stable sort."""
    D = [np.zeros_like(x) for x in t]
    flat = [x.reshape(-1) for x in D]
    for start in range(0, t[0].size, m):
        free = np.ones(len(t[0].reshape(-1)[start : start + m]), dtype=bool)
        for k in order:
            block = t[k].reshape(-1)[start : start + m]
            left = np.where(free, np.abs(block), 0.0)
            for place in np.argsort(-left, kind="stable")[:n]:
                if left[place] > 0:
                    flat[k][start + place] = block[place]
                    free[place] = False
    return D


@pytest.mark.parametrize("n_experts", [1, 2, 5, 40])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (3, 4), (4, 4), (64, 256)])
@pytest.mark.parametrize("shape", [(), (3,), (9, 31), (16, 64)])
def test_block_by_block(n_experts, n, m, shape):
    deltas = [random(*shape, seed=k) for k in range(n_experts)]
    expected = reference(arrays(deltas), n, m, range(n_experts))
    assert_same(bases_of("cabs", deltas, n=n, m=m), expected, rtol=1e-7)


def test_the_last_block_may_be_incomplete_and_equal_entries_go_by_place():
    delta = torch.tensor([1.0, -1.0, 1.0, 1.0, 0.5, 2.0])
    (basis,) = bases_of("cabs", [delta], n=2, m=4)
    assert basis.tolist() == [1.0, -1.0, 0.0, 0.0, 0.5, 2.0]


def test_later_experts_get_what_is_left():
    deltas = [torch.tensor([4.0, 3.0, 2.0, 1.0])] * 3
    first, second, third = bases_of("cabs", deltas, n=2, m=4)
    assert first.tolist() == [4.0, 3.0, 0.0, 0.0]
    assert second.tolist() == [0.0, 0.0, 2.0, 1.0]
    assert not third.any()


def test_a_zero_takes_no_place():
    deltas = [torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])]
    assert bases_of("cabs", deltas, n=3, m=4)[1].tolist() == [0.0, 2.0, 3.0, 4.0]


def test_the_order_may_be_reversed_or_shuffled():
    deltas = [random(8, 32, seed=k) for k in range(4)]
    t = arrays(deltas)
    reversed_ = bases_of("cabs", deltas, order="reversed")
    assert_same(reversed_, reference(t, 64, 256, [3, 2, 1, 0]), rtol=1e-7)
    firsts = set()
    for shuffle in range(8):
        order = np.random.default_rng(shuffle).permutation(4)
        bases = bases_of("cabs", deltas, order="shuffled", shuffle=shuffle)
        assert_same(bases, reference(t, 64, 256, order), rtol=1e-7)
        firsts.add(int(order[0]))
    assert len(firsts) > 1


def test_blocks_do_not_straddle_pieces():
    deltas = [random(3, BLOCK // 2 + 5, seed=k) for k in range(2)]
    short = bases_of("cabs", deltas, n=BLOCK // 4, m=BLOCK, length=BLOCK)
    whole = bases_of("cabs", deltas, n=BLOCK // 4, m=BLOCK, length=4 * BLOCK)
    assert all(map(torch.equal, short, whole))
    assert int((short[0] != 0).sum()) == BLOCK // 4 + min(BLOCK // 4, BLOCK // 2 + 15)


@pytest.mark.parametrize(("n", "m", "said"), [(5, 4, "at most m"), (2, 100, "power of 2")])
def test_impossible_blocks_are_refused(n, m, said):
    with pytest.raises(ConfigError, match=said):
        bases_of("cabs", [random(4, 4)], n=n, m=m)
