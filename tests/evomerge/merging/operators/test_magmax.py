import numpy as np
import pytest
import torch

from evomerge.merging.operators import get_operator
from tests.support.whole_tensors import arrays, assert_same, bases_of, random

DISJOINT = ("magmax", "emr_uni")


def reference(name, t):
    """Entry by entry, as the formulas say."""
    t = np.stack(t)
    D = np.zeros_like(t)
    for place in np.ndindex(t.shape[1:]):
        column = t[(slice(None), *place)]
        if name == "negmerge":
            if len(set(np.sign(column))) == 1:
                D[(slice(None), *place)] = column / len(column)
            continue
        g = np.sign(column.sum())
        score = np.abs(column) if name == "magmax" else column * g
        owner = max(range(len(column)), key=lambda k: (score[k], k))
        if score[owner] > 0:
            D[(owner, *place)] = column[owner]
    return list(D)


@pytest.mark.parametrize("name", [*DISJOINT, "negmerge"])
@pytest.mark.parametrize("n_experts", [1, 2, 3, 40])
def test_entry_by_entry(name, n_experts):
    deltas = [random(9, 7, seed=k) for k in range(n_experts)]
    assert_same(bases_of(name, deltas), reference(name, arrays(deltas)), rtol=1e-7)


def test_of_equal_magnitudes_the_later_expert_wins():
    deltas = [torch.tensor([2.0, -1.0, 1.0]), torch.tensor([-2.0, 1.0, 0.5])]
    first, second = bases_of("magmax", deltas)
    assert first.tolist() == [0.0, 0.0, 1.0]
    assert second.tolist() == [-2.0, 1.0, 0.0]


def test_where_signs_cancel_emr_changes_nothing():
    deltas = [torch.tensor([2.0, 3.0, 1.0]), torch.tensor([-2.0, -1.0, 1.0])]
    first, second = bases_of("emr_uni", deltas)
    assert first.tolist() == [0.0, 3.0, 0.0]
    assert second.tolist() == [0.0, 0.0, 1.0]


def test_emr_does_not_elect_by_the_order_of_experts():
    # In fp32 1 + 2^-30 - 1 is 0 or 2^-30, depending on who comes first.
    values = [1.0, 2.0**-30, -1.0]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        bases = bases_of("emr_uni", [torch.tensor([values[k]]) for k in order])
        assert float(sum(bases)) == 1.0


def test_negmerge_needs_every_sign():
    deltas = [torch.tensor([1.0, 1.0, -3.0, 0.0]), torch.tensor([3.0, -1.0, -1.0, 2.0])]
    assert sum(bases_of("negmerge", deltas)).tolist() == [2.0, 0.0, -2.0, 0.0]
    with_idle = bases_of("negmerge", [*deltas, torch.zeros(4)])
    assert not any(basis.any() for basis in with_idle)


@pytest.mark.parametrize("name", DISJOINT)
def test_owners_are_stored_once(name):
    assert get_operator(name).disjoint
    bases = torch.stack(bases_of(name, [random(50, 40, seed=k) for k in range(5)]))
    assert int((bases != 0).sum(0).max()) == 1


def test_a_zero_of_either_sign_has_no_owner():
    deltas = [torch.tensor([0.0, -0.0]), torch.tensor([-0.0, 0.0])]
    for name in DISJOINT:
        assert not any(basis.any() for basis in bases_of(name, deltas))
