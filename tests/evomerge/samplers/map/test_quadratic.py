"""MAP's surrogate against published formulas and published sweeps of real merges."""

import csv
from pathlib import Path

import numpy as np
import pytest

from evomerge import pareto
from evomerge.datatypes import FloatArray
from evomerge.samplers.map.quadratic import (
    Link,
    Quadratic,
    cliff,
    features,
    fit_binomial,
    fit_least_squares,
    fit_ridge,
    left_out,
    n_parameters,
)

DATA = Path(__file__).parents[3] / "data"


def sweeps(model: str, method: str) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Task -> `(11, 1)` shared coefficients 0, .1, .., 1 and `(11,)` scores."""
    with (DATA / "fusionbench_sweeps.csv").open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["model"], r["method"]) == (model, method)]
    found = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        points = sorted((float(r["lambda"]), float(r["score"])) for r in rows if r["task"] == task)
        found[task] = np.array(points)[:, :1], np.array(points)[:, 1]
    return found


def test_terms_stand_in_the_order_of_the_paper() -> None:
    assert features(np.array([[2.0, 3.0, 5.0]])).tolist() == [[4, 9, 25, 6, 10, 15, 2, 3, 5, 1]]
    surrogate = Quadratic(np.arange(1.0, 7.0))
    c = np.array([[0.3, 0.7]])
    # 1 * .09 + 2 * .49 + 3 * .21 + 4 * .3 + 5 * .7 + 6
    assert surrogate.predict(c)[0] == pytest.approx(12.4, abs=1e-12)
    sigmoid = Quadratic(surrogate.parameters, "sigmoid").predict(c)[0]
    assert sigmoid == pytest.approx(0.999995881, abs=1e-9)
    assert Quadratic(surrogate.parameters, "softplus").predict(c)[0] == pytest.approx(12.4, 1e-5)
    assert [n_parameters(n) for n in (1, 2, 8, 9)] == [3, 6, 45, 55]


@pytest.mark.parametrize("link", ["identity", "sigmoid", "softplus"])
def test_parameters_are_recovered_from_thirty_points_without_noise(link: Link) -> None:
    p = np.array([-3.0, -2.0, 1.0, 4.0, 1.0, -1.0])
    C = np.random.default_rng(0).random((30, 2))
    found = fit_least_squares(C, Quadratic(p, link).predict(C), link)
    np.testing.assert_allclose(found.parameters, p, atol=1e-6)


def test_parameters_are_recovered_by_the_other_fits() -> None:
    p = np.array([-3.0, -2.0, 1.0, 4.0, 1.0, -1.0])
    C = np.random.default_rng(0).random((30, 2))
    ridge = fit_ridge(C, Quadratic(p).predict(C), 1e-9)
    np.testing.assert_allclose(ridge.parameters, p, atol=1e-5)
    shares = Quadratic(p, "sigmoid").predict(C)
    binomial = fit_binomial(C, shares, np.full(30, 1e6), ridge=1e-6)
    np.testing.assert_allclose(binomial.predict(C), shares, atol=1e-5)


def test_fewer_points_than_parameters_need_a_ridge() -> None:
    C = np.random.default_rng(1).random((4, 2))
    y = C.sum(axis=1)
    with pytest.raises(ValueError, match=r"6 parameters, but there are 4 points: sample more"):
        fit_least_squares(C, y, "identity")
    np.testing.assert_allclose(fit_ridge(C, y, 1e-9).predict(C), y, atol=1e-6)


def test_residuals_of_points_left_out_are_those_of_fits_without_them() -> None:
    rng = np.random.default_rng(2)
    C, y = rng.random((14, 2)), rng.random(14)
    direct = []
    for i in range(14):
        others = np.arange(14) != i
        direct.append(y[i] - fit_ridge(C[others], y[others], 1e-12).predict(C[i : i + 1])[0])
    np.testing.assert_allclose(left_out(C, y, 1e-12), direct, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "method", "quadratic", "sigmoid"),
    [
        ("gpt2", "task_arithmetic", 0.0275, 0.0266),
        ("gpt2", "ties_merging", 0.0216, 0.0209),
        ("flan-t5-base-lora16", "task_arithmetic", 0.0524, 0.0368),
    ],
)
def test_held_out_errors_on_published_sweeps(
    model: str, method: str, quadratic: float, sigmoid: float
) -> None:
    """Fitted on coefficients 0, .2, .., 1; tested on .1, .3, .., .9."""
    errors = []
    for C, y in sweeps(model, method).values():
        fits = (
            fit_ridge(C[::2], y[::2], 1e-12),
            fit_least_squares(C[::2], y[::2], "sigmoid"),
        )
        errors.append([np.abs(fit.predict(C[1::2]) - y[1::2]).mean() for fit in fits])
    found = np.mean(errors, axis=0)
    assert found == pytest.approx([quadratic, sigmoid], abs=5e-5)


def test_a_cliff_is_seen_where_merges_collapse_and_nowhere_else() -> None:
    collapsed = set()
    for model, method in (
        ("gpt2", "task_arithmetic"),
        ("gpt2", "ties_merging"),
        ("flan-t5-base-lora16", "task_arithmetic"),
    ):
        for task, (C, y) in sweeps(model, method).items():
            # 277 items: the smallest of these test sets
            if cliff(C, y, np.sqrt(y * (1.0 - y) / 277)):
                collapsed.add((model, task))
    assert collapsed == {("flan-t5-base-lora16", "cola"), ("flan-t5-base-lora16", "mnli")}


def test_no_cliff_is_claimed_from_few_points_constants_or_noise() -> None:
    rng = np.random.default_rng(3)
    C = rng.random((30, 2))
    assert not cliff(C[:7], rng.random(7))
    assert not cliff(C, np.full(30, 0.5))
    assert not cliff(C, rng.normal(0.5, 0.02, 30), np.full(30, 0.02))
    assert cliff(C, np.where(C.sum(axis=1) > 1.0, 0.9, 0.0), np.full(30, 0.02))


@pytest.mark.parametrize(
    ("log", "n_front", "hypervolume", "r2"),
    [("taskwise", 21, 0.5021066, 0.975), ("plusplus", 41, 0.5303382, 0.988)],
)
def test_logs_of_adamerging(log: str, n_front: int, hypervolume: float, r2: float) -> None:
    data = np.load(DATA / "adamerging_vit_b32_taskwise.npz")
    C, accuracies = data[f"{log}_coef"], data[f"{log}_acc"]
    two = -accuracies[:, [0, 5]]
    assert pareto.non_dominated(two).sum() == n_front
    assert pareto.hypervolume(two, [0.0, 0.0]) == pytest.approx(hypervolume, abs=1e-7)
    assert pareto.non_dominated(-accuracies).sum() == 50
    for y in accuracies.T:
        predicted = fit_ridge(C[::2], y[::2], 1e-6).predict(C[1::2])
        left = ((y[1::2] - predicted) ** 2).sum() / ((y[1::2] - y[1::2].mean()) ** 2).sum()
        assert 1.0 - left >= r2 - 5e-4  # published to three digits
