import numpy as np
import pytest

from evomerge.datatypes import Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.scalarization import scalarizer

TWO = Problem((Dimension("x"),), 2, ((0.5,),), 10, names=("math", "chat"))
ONE = Problem((Dimension("x"),), 1, ((0.5,),), 10)

HOLLOW = np.array([[0.0, 1.0], [0.6, 0.6], [1.0, 0.0]])


def test_weighted_is_the_mean_of_the_losses_as_they_are():
    L = np.array([[1.0, 30.0], [3.0, 10.0]])
    np.testing.assert_allclose(scalarizer(TWO, [3, 1]).losses(L), [8.25, 4.75])
    np.testing.assert_allclose(scalarizer(TWO, {"chat": 1, "math": 3}).losses(L), [8.25, 4.75])
    history = np.array([[0.0, 0.0]])
    np.testing.assert_allclose(scalarizer(TWO, [3, 1]).losses(L, history), [8.25, 4.75])


def test_one_objective_needs_no_weights_and_keeps_its_order_in_every_kind():
    L = np.array([[2.0], [-1.0], [5.0]])
    np.testing.assert_array_equal(scalarizer(ONE).losses(L), [2.0, -1.0, 5.0])
    for kind in ("weighted", "tchebycheff", "percentile"):
        assert np.argsort(scalarizer(ONE, kind=kind).losses(L)).tolist() == [1, 0, 2]


def test_tchebycheff_reaches_a_hollow_of_the_front_and_a_weighted_mean_does_not():
    assert np.argmin(scalarizer(TWO, [1, 1], "tchebycheff").losses(HOLLOW)) == 1
    assert np.argmin(scalarizer(TWO, [1, 1], "weighted").losses(HOLLOW)) != 1
    assert np.argmin(scalarizer(TWO, [9, 1], "tchebycheff").losses(HOLLOW)) == 0


def test_tchebycheff_measures_by_the_front_and_not_by_a_collapsed_merge():
    scaled = scalarizer(TWO, [1, 1], "tchebycheff")
    collapsed = np.array([[1e9, 0.5]])
    history = np.concatenate([HOLLOW, collapsed + 1.0])
    np.testing.assert_allclose(scaled.losses(HOLLOW, history), scaled.losses(HOLLOW))
    units = HOLLOW * [1000.0, 0.01] + [7.0, -3.0]
    np.testing.assert_allclose(scaled.losses(units), scaled.losses(HOLLOW), atol=1e-9)


def test_percentile_is_the_share_of_the_history_that_is_better():
    ranked = scalarizer(TWO, [1, 1], "percentile")
    history = np.array([[1.0, 10.0], [2.0, 10.0], [3.0, 20.0], [4.0, 20.0]])
    rows = np.array([[1.0, 10.0], [3.5, 5.0], [9.0, 99.0]])
    expected = [(0.5 / 4 + 1 / 4) / 2, (3 / 4 + 0.0) / 2, 1.0]
    np.testing.assert_allclose(ranked.losses(rows, history), expected)
    distorted = scalarizer(TWO, [1, 1], "percentile").losses(rows**3, history**3)
    np.testing.assert_allclose(distorted, expected)


@pytest.mark.parametrize("kind", ["weighted", "tchebycheff", "percentile"])
def test_a_dominated_row_is_never_better_and_no_rows_give_no_losses(kind):
    rng = np.random.default_rng(3)
    L = rng.normal(size=(30, 2))
    worse = L + rng.uniform(0.0, 1.0, L.shape)
    one = scalarizer(TWO, [1, 2], kind)
    assert (one.losses(L, L) <= one.losses(worse, L)).all()
    assert one.losses(np.zeros((0, 2))).shape == (0,)
    assert np.isfinite(one.losses(np.full((4, 2), 1e308))).all()
    assert np.isfinite(one.losses(np.array([[-1e308, 0.0], [1e308, 0.0]]))).all()


@pytest.mark.parametrize(
    ("weights", "kind", "sentence"),
    [
        (None, "weighted", "lora_hub minimises one loss, but there are 2 objectives"),
        ([1], "weighted", r"one number >= 0 per objective \(2\)"),
        ([0, 0], "weighted", "one of them above 0"),
        ([-1, 2], "percentile", ">= 0"),
        ([True, 1], "percentile", ">= 0"),
        ([1, float("nan")], "tchebycheff", ">= 0"),
        ({"math": 1}, "weighted", r"every objective \(math, chat\).*name math"),
        ({"math": 1, "code": 1}, "weighted", "name math, code"),
        ("equal", "weighted", "a list of numbers or a mapping"),
        ([1, 1], "mean", "one of weighted, tchebycheff, percentile"),
    ],
)
def test_what_cannot_be_meant_is_refused(weights, kind, sentence):
    with pytest.raises(ConfigError, match=sentence):
        scalarizer(TWO, weights, kind, sampler="lora_hub")
