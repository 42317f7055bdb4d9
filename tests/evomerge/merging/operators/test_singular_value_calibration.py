from dataclasses import replace

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.merging.operators import Operator, get_operator
from evomerge.merging.operators.singular_value_calibration import svc
from tests.support.matrix_deltas import bases_of, random_delta

SHAPES = [(12, 12), (12, 30), (30, 12)]


def calibrate(M, deltas, alpha=0.1):
    """The paper's post-processing of a merge."""
    U, S, Vt = np.linalg.svd(M, full_matrices=False)
    g = []
    for u in U.T:
        shares = [(u @ M) @ (u @ t) / np.sum((u @ t) ** 2) for t in deltas]
        g.append(len(deltas) / sum(max(alpha, s) for s in shares))
    return U @ np.diag(g * S) @ Vt


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inner", ["task_arithmetic", "tsv_merge", "iso_c", "wudi"])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_the_sum_of_the_bases_is_the_papers_merge(shape, inner, alpha):
    deltas = [random_delta(shape, k) for k in range(3)]
    merged = sum(bases_of(f"svc({inner})", deltas, svc_alpha=alpha))
    expected = calibrate(sum(bases_of(inner, deltas)), deltas, alpha)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=2e-5)


def test_a_wide_merge_is_mapped_as_a_whole():
    deltas = [random_delta((9, 20), k) for k in range(3)]
    M = sum(deltas)
    mapping = calibrate(M, deltas) @ np.linalg.pinv(M)
    for D, t in zip(bases_of("svc(task_arithmetic)", deltas), deltas, strict=True):
        np.testing.assert_allclose(D, mapping @ t, rtol=0, atol=1e-5)


def test_what_cancels_in_a_tall_merge_is_left_alone():
    deltas = [random_delta((20, 9), k) for k in range(3)]
    U, _, _ = np.linalg.svd(sum(deltas), full_matrices=False)
    for D, t in zip(bases_of("svc(task_arithmetic)", deltas), deltas, strict=True):
        np.testing.assert_allclose(D - U @ U.T @ D, t - U @ U.T @ t, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_experts", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_all_experts_share_is_counted_once(n_experts, shape):
    delta = random_delta(shape, 0)
    for D in bases_of("svc(task_arithmetic)", [delta] * n_experts):
        np.testing.assert_allclose(D, delta / n_experts, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_zero_delta_changes_nothing(shape):
    first, second = random_delta(shape, 0), random_delta(shape, 1)
    with_zero = bases_of("svc(task_arithmetic)", [first, np.zeros(shape), second])
    assert not with_zero[1].any()
    without = bases_of("svc(task_arithmetic)", [first, second])
    np.testing.assert_allclose([with_zero[0], with_zero[2]], without, rtol=0, atol=1e-6)


def test_who_does_not_touch_a_direction_has_no_say_in_it():
    first, second = np.zeros((5, 8)), np.zeros((5, 8))
    first[:2, :4], second[2:, 4:] = random_delta((2, 4), 0), random_delta((3, 4), 1)
    for D, t in zip(
        bases_of("svc(task_arithmetic)", [first, second]), [first, second], strict=True
    ):
        np.testing.assert_allclose(D, t, rtol=0, atol=1e-6)


def test_deltas_that_cancel_are_left_alone():
    t = random_delta((9, 7), 0)
    deltas = [t, -t]
    np.testing.assert_array_equal(bases_of("svc(task_arithmetic)", deltas), deltas)


@pytest.mark.parametrize("inner", ["ties", "model_stock", "random_delta", "iso_cts_exact", "swudi"])
def test_operators_of_all_sorts_can_be_calibrated(inner):
    operator, wrapped = get_operator(inner), get_operator(f"svc({inner})")
    assert wrapped.name == f"svc({inner})"
    assert (wrapped.seeded, wrapped.early) == (operator.seeded, operator.early)
    deltas = [0.01 * random_delta((7, 5), k) for k in range(3)]
    bases, inner_bases = bases_of(wrapped, deltas), bases_of(operator, deltas)
    assert np.isfinite(bases).all()
    assert not np.allclose(bases, inner_bases)
    vectors = [t.reshape(-1) for t in deltas]
    np.testing.assert_array_equal(bases_of(wrapped, vectors), bases_of(operator, vectors))


@pytest.mark.parametrize("kind", ["embed", "head"])
def test_tables_are_left_alone(kind):
    deltas = [random_delta((7, 5), k) for k in range(3)]
    np.testing.assert_array_equal(bases_of("svc(task_arithmetic)", deltas, kind=kind), deltas)


def test_knobs_of_the_inner_operator_pass_through_and_select_a_bank():
    wrapped = get_operator("svc(tsv_merge)")
    assert wrapped.complete({"rank_fraction": 0.5}, "prepare") == {
        "rank_fraction": 0.5,
        "svc_alpha": 0.1,
    }
    assert all(knob.scope == "prepare" for knob in get_operator("svc(model_stock)").knobs)


def test_the_inner_operators_own_coefficients_are_applied_before_it_is_calibrated():
    deltas = [random_delta((12, 9), k) for k in range(3)]

    def halved(weights, statistics, context):
        return 0.0, [c / 2 for c in weights]

    inner = Operator("halved", weigh=halved)
    wrapped = svc(inner)
    assert wrapped.weigh is halved
    merged = sum(D / 2 for D in bases_of(wrapped, deltas))
    np.testing.assert_allclose(merged, calibrate(sum(deltas) / 2, deltas), rtol=0, atol=1e-5)


def test_an_operator_that_scales_the_base_is_refused():
    def shrinking(weights, statistics, context):
        return -0.5, list(weights)

    with pytest.raises(ConfigError, match="shrinks scales the base itself"):
        bases_of(svc(Operator("shrinks", weigh=shrinking)), [random_delta((4, 3), 0)])


def test_an_early_operator_is_calibrated_at_the_coefficients_of_the_candidate():
    deltas, c = [random_delta((12, 9), k) for k in range(3)], (0.5, -0.2, 1.0)
    early = svc(replace(get_operator("task_arithmetic"), early=True))
    bases = bases_of(early, deltas, weights=c)
    merged = sum(c_k * D for c_k, D in zip(c, bases, strict=True))
    expected = calibrate(sum(c_k * t for c_k, t in zip(c, deltas, strict=True)), deltas)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-5)


def test_calibrating_twice_is_refused():
    with pytest.raises(ConfigError, match=r"once, but got svc\(ties\)"):
        get_operator("svc(svc(ties))")
