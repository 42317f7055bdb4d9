from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging.operators import OPERATORS, get_operator
from evomerge.merging.operators.knots import knots
from tests.support.whole_tensors import (
    arrays,
    assert_same,
    assert_same_with_any_number_of_threads,
    bases_of,
    elected_mean,
    low_rank,
    random,
)

SHAPES = [(12, 9), (9, 12), (40, 3), (3, 40)]


def shared_space(deltas):
    """`U` and the `S V_i^T` of dense float64 matrices by an SVD."""
    U, S, V = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    r = np.sum(S / S[0] > 1e-5)
    return U[:, :r], np.split(S[:r, None] * V[:r], len(deltas), 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", [1, 2, 5])
def test_it_is_lossless(shape, n_experts):
    deltas = [random(*shape, seed=k) for k in range(n_experts)]
    assert_same(bases_of("knots(task_arithmetic)", deltas), arrays(deltas))


@pytest.mark.parametrize("shape", SHAPES)
def test_ties_is_made_in_the_common_space(shape):
    deltas = [random(*shape, seed=k) for k in range(3)]
    U, aligned = shared_space(arrays(deltas))
    expected = list(U @ elected_mean(np.stack(aligned)))
    assert_same(bases_of("knots(ties)", deltas, density=1.0), expected)
    kept = arrays(bases_of("knots(ties)", deltas, density=0.2))
    share = np.mean([np.abs(U.T @ D) > 1e-7 for D in kept])
    assert 0.05 < share <= 0.25


def test_it_differs_from_ties_on_the_weights():
    deltas = [random(12, 9, seed=k) for k in range(3)]
    merged, plain = (sum(bases_of(name, deltas)) for name in ("knots(ties)", "ties"))
    assert float((merged - plain).norm()) > 0.1 * float(plain.norm())


def test_small_deltas_are_not_cut_at_an_absolute_value():
    deltas = [random(12, 9, seed=k, scale=1e-8) for k in range(3)]
    assert_same(bases_of("knots(task_arithmetic)", deltas), arrays(deltas))


def test_what_an_operator_knows_of_the_base_is_its_part_in_the_same_space():
    base, deltas = random(9, 12, seed=9, scale=1.0), [random(9, 12, seed=k) for k in range(3)]
    U, aligned = shared_space(arrays(deltas))
    inside = bases_of(
        "widen",
        [torch.from_numpy(t).float() for t in aligned],
        base=torch.from_numpy(U.T @ arrays([base])[0]).float(),
    )
    assert_same(bases_of("knots(widen)", deltas, base=base), [U @ D for D in arrays(inside)])


@pytest.mark.parametrize("inner", ["opcm", "tsv_merge", "knots(ties)"])
def test_it_wraps_operators_that_want_the_whole_tensor(inner):
    # None of them notices a rotation of the rows.
    deltas = [random(9, 12, seed=k) for k in range(3)]
    expected = bases_of("knots(ties)" if "ties" in inner else inner, deltas)
    assert_same(bases_of(f"knots({inner})", deltas), arrays(expected), rtol=1e-4)


def test_what_an_operator_gathers_of_the_model_is_gathered_in_the_common_spaces():
    deltas = [random(9, 12, seed=k) for k in range(3)]
    of_tensor, of_model = (
        bases_of("knots(ties)", deltas, ranking=ranking) for ranking in ("tensor", "model")
    )
    assert all(torch.equal(a, b) for a, b in zip(of_tensor, of_model, strict=True))


def test_early_operators_stay_early():
    operator = get_operator("knots(ties_exact)")
    assert operator.early
    deltas = [random(9, 12, seed=k) for k in range(3)]
    late, early = (
        bases_of("knots(ties_exact)", deltas, weights=w) for w in ((1.0, 1.0, 1.0), (3.0, 0.2, 1.0))
    )
    assert_same(late, arrays(bases_of("knots(ties)", deltas)))
    assert not torch.allclose(late[0], early[0])


def test_random_masks_are_drawn_in_the_common_space_by_the_recipes_seed():
    deltas = [random(9, 12, seed=k) for k in range(3)]
    assert get_operator("knots(dare)").seeded
    a, again, b = (bases_of("knots(dare)", deltas, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a[0], again[0])
    assert not torch.equal(a[0], b[0])


def test_coefficients_of_their_own_pass_through():
    operator, inner = get_operator("knots(model_stock)"), OPERATORS["model_stock"]
    assert operator.weigh is inner.weigh
    assert operator.knobs == inner.knobs
    deltas = [random(9, 12, seed=k) for k in range(3)]
    assert_same(bases_of("knots(model_stock)", deltas), arrays(deltas))


def test_knobs_of_selections_have_banks_of_their_own():
    density = next(k for k in get_operator("knots(ties)").knobs if k.name == "density")
    assert density == replace(
        next(k for k in OPERATORS["ties"].knobs if k.name == "density"), scope="prepare"
    )


def test_an_operator_that_needs_aids_is_refused():
    with pytest.raises(ConfigError, match=r"knots.*regmean.*gram"):
        knots(OPERATORS["regmean"])


def test_it_is_known_by_name():
    assert get_operator("knots(ties)").name == "knots(ties)"
    assert get_operator("knots( ties )") is get_operator("knots(ties)")


def test_zero_experts_have_zero_bases():
    a, zero = random(9, 12), torch.zeros(9, 12)
    for inner in ("task_arithmetic", "ties", "opcm", "widen"):
        assert not bases_of(f"knots({inner})", [a, zero])[1].any()
        assert not any(basis.any() for basis in bases_of(f"knots({inner})", [zero, zero]))


@pytest.mark.parametrize("n_experts", [2, 40])
def test_identical_experts_are_merged_like_identical_experts(n_experts):
    merged = sum(bases_of("knots(ties)", [low_rank(9, 12, 3)] * n_experts, density=1.0))
    assert_same([merged], arrays([low_rank(9, 12, 3)]))


@pytest.mark.parametrize(
    ("kind", "shape"), [("embed", (9, 7)), ("head", (9, 7)), ("norm", (9,)), ("norm", ())]
)
def test_vectors_and_tables_are_merged_without_it(kind, shape):
    deltas = [random(*shape, seed=k) for k in range(4)]
    plain = bases_of("ties", deltas, kind=kind)
    assert_same(bases_of("knots(ties)", deltas, kind=kind), arrays(plain))


def test_a_tensor_of_three_dimensions_is_a_matrix_of_its_first_against_the_rest():
    deltas = [random(6, 3, 5, seed=k) for k in range(3)]
    flat = bases_of("knots(ties)", [t.reshape(6, 15) for t in deltas])
    assert_same(bases_of("knots(ties)", deltas), [D.reshape(6, 3, 5) for D in arrays(flat)])


@pytest.mark.parametrize("inner", ["ties", "dare"])
def test_the_same_with_any_number_of_threads(inner):
    deltas = [random(130, 300, seed=k) for k in range(3)]
    assert_same_with_any_number_of_threads(f"knots({inner})", deltas)
