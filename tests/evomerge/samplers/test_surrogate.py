import json

import numpy as np
import pytest

from evomerge import pareto
from evomerge.datatypes import Dimension, Evidence, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.surrogate.boxes import open_boxes
from evomerge.samplers.surrogate.encoding import Encoding
from evomerge.samplers.surrogate.improvement import (
    ExactImprovement,
    SampledImprovement,
    improvement_over,
)
from evomerge.samplers.surrogate.links import Identity, Logit
from evomerge.samplers.surrogate.models import FORMS, Model, Observed, choose, without_collapses
from evomerge.samplers.surrogate.regression import GaussianProcess, Noise, fitted
from evomerge.samplers.surrogate.sampler import SurrogateSampler
from experiments.benchmarks.search_quality.problems.t0 import T0


def problem_of(d, m, budget=60, **fields):
    return Problem(tuple(Dimension(f"x{i}") for i in range(d)), m, ((0.5,) * d,), budget, **fields)


def slope(function, x, step=1e-6):
    """Central differences of a scalar function at `(n,)`."""
    return np.array(
        [(function(x + step * e) - function(x - step * e)) / (2 * step) for e in np.eye(len(x))]
    )


def accuracies(points, rng, n=200, steepness=1.0):
    """Binomial scores of a task whose optimum is off the centre, with their evidence."""
    q = 12.0 * ((points - 0.62) ** 2).mean(axis=1)
    p = 0.1 + 0.85 / (1.0 + np.exp(steepness * (q - 1.0)))
    share = rng.binomial(n, p) / n
    return -share, np.sqrt(np.maximum(share * (1 - share), 1 / n) / n)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_boxes_are_disjoint_and_fill_what_the_front_leaves_open(m):
    rng = np.random.default_rng(m)
    losses = rng.random((25, m))
    losses = losses / losses.sum(axis=1, keepdims=True) ** 0.7 if m > 1 else losses
    reference = np.full(m, 1.2)
    lower, upper = open_boxes(losses, reference)
    sizes = upper - np.maximum(lower, 0.0)  # everything is above 0
    open_volume = np.clip(sizes, 0.0, None).prod(axis=1).sum()
    dominated = pareto.hypervolume(losses, reference)
    assert open_volume + dominated == pytest.approx(1.2**m, rel=1e-9)
    probes = rng.uniform(0.0, 1.2, (500, m))
    inside = ((lower[None] < probes[:, None]) & (probes[:, None] <= upper[None])).all(axis=2)
    is_open = ~(losses[None] <= probes[:, None]).all(axis=2).any(axis=1)
    assert (inside.sum(axis=1) == is_open).all()


@pytest.mark.parametrize("m", [1, 2, 3])
def test_exact_improvement_is_the_mean_of_sampled_gains_in_hypervolume(m):
    rng = np.random.default_rng(7)
    front = rng.random((6, m))
    reference = np.full(m, 1.1)
    mean, variance = np.full(m, 0.35), np.full(m, 0.04)
    exact = ExactImprovement(*open_boxes(front, reference))
    before = pareto.hypervolume(front, reference)
    draws = mean + np.sqrt(variance) * rng.normal(size=(4000, m))
    gains = [pareto.hypervolume(np.vstack([front, y]), reference) - before for y in draws]
    value = exact.value(mean[None], variance[None])[0]
    assert value == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / np.sqrt(4000))


@pytest.mark.parametrize("m", [1, 2, 3, 6])
def test_gradients_of_the_improvement_are_its_slopes(m):
    rng = np.random.default_rng(3)
    front, reference = rng.random((8, m)), np.full(m, 1.1)
    improvement = improvement_over(front, reference, np.random.default_rng(0))
    assert isinstance(improvement, SampledImprovement if m == 6 else ExactImprovement)
    mean, variance = rng.uniform(0.2, 0.5, m), rng.uniform(0.01, 0.05, m)
    value, by_mean, by_variance = improvement.gradient(mean, variance)
    assert value == pytest.approx(improvement.value(mean[None], variance[None])[0])
    np.testing.assert_allclose(
        by_mean, slope(lambda x: improvement.value(x[None], variance[None])[0], mean), rtol=1e-3
    )
    np.testing.assert_allclose(
        by_variance, slope(lambda x: improvement.value(mean[None], x[None])[0], variance), rtol=1e-3
    )


def test_the_sampled_improvement_orders_candidates_as_the_exact_one():
    rng = np.random.default_rng(5)
    front, reference = rng.random((10, 3)), np.full(3, 1.1)
    mean, variance = rng.uniform(0.0, 0.9, (40, 3)), np.full((40, 3), 0.01)
    exact = ExactImprovement(*open_boxes(front, reference)).value(mean, variance)
    sampled = SampledImprovement(front, reference, rng).value(mean, variance)
    ranks = [np.argsort(np.argsort(values)) for values in (exact, sampled)]
    assert np.corrcoef(*ranks)[0, 1] > 0.97


@pytest.mark.parametrize("link", [Identity(), Logit(-1.0)])
def test_moments_of_a_link_are_those_of_samples_and_their_slopes(link):
    rng = np.random.default_rng(0)
    mean, variance = np.array(-0.8), np.array(0.3)
    losses = link.losses(mean + np.sqrt(variance) * rng.normal(size=200_000))
    moments = link.moments(mean, variance)
    assert moments.mean == pytest.approx(losses.mean(), abs=4e-3)
    assert moments.variance == pytest.approx(losses.var(), rel=0.03)
    pairs = [
        (moments.mean_by_mean, "mean", 0),
        (moments.mean_by_variance, "mean", 1),
        (moments.variance_by_mean, "variance", 0),
        (moments.variance_by_variance, "variance", 1),
    ]
    for value, name, argument in pairs:
        at = np.array([float(mean), float(variance)])
        slopes = slope(lambda x: float(getattr(link.moments(x[0], x[1]), name)), at)  # noqa: B023
        assert value == pytest.approx(slopes[argument], rel=1e-5, abs=1e-7)
    some = np.array([-0.9, -0.5, -0.2])
    np.testing.assert_allclose(link.losses(link.latent(some)), some)


def test_a_logit_is_only_for_losses_that_are_shares():
    assert Logit.fitting(np.array([-1.0, -0.2])) is not None
    assert Logit.fitting(np.array([0.0, 0.7])) is not None
    assert Logit.fitting(np.array([-0.2, 0.3])) is None
    assert Logit.fitting(np.array([0.1, 1.2])) is None


@pytest.mark.parametrize("part", [None, "quadratic", "rough"])
def test_a_process_predicts_what_it_was_not_shown_and_its_gradients_are_slopes(part):
    rng = np.random.default_rng(1)
    X = rng.uniform(-0.5, 0.5, (60, 4))
    z = 5.0 + 3.0 * ((X - 0.1) ** 2).sum(axis=1) + 0.01 * rng.normal(size=60)
    noise = np.full(60, 1e-4)
    process = GaussianProcess(
        X[:40],
        z[:40],
        noise[:40],
        *fitted(X[:40], z[:40], Noise(noise[:40], 0.7), np.zeros(4), part),
    )
    mean, variance = process.predict(X[40:])
    assert 1.0 - ((mean - z[40:]) ** 2).sum() / ((z[40:] - z[40:].mean()) ** 2).sum() > 0.9
    assert (np.abs(mean - z[40:]) < 5 * np.sqrt(variance + 1e-4)).all()
    m, v, dm, dv = process.predict_with_gradient(X[50])
    assert (m, v) == (pytest.approx(mean[10]), pytest.approx(variance[10]))
    np.testing.assert_allclose(
        dm, slope(lambda x: float(process.predict(x[None])[0][0]), X[50]), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(
        dv, slope(lambda x: float(process.predict(x[None])[1][0]), X[50]), rtol=1e-3, atol=1e-7
    )


def test_leaving_one_out_is_leaving_it_out():
    rng = np.random.default_rng(2)
    X, z = rng.uniform(-0.5, 0.5, (15, 3)), rng.normal(size=15)
    noise = np.full(15, 0.05)
    h, shift, scale = fitted(X, z, Noise(noise, 0.7), np.zeros(3))
    mean, variance, own = GaussianProcess(X, z, noise, h, shift, scale).leave_one_out()
    for i in (0, 7):
        rest = np.arange(15) != i
        m, v = GaussianProcess(X[rest], z[rest], noise[rest], h, shift, scale).predict(X[i : i + 1])
        assert (mean[i], variance[i]) == (pytest.approx(m[0]), pytest.approx(v[0]))
        assert own[i] > 0


def test_a_steep_accuracy_is_modelled_on_its_logit_and_a_loss_without_bounds_is_not():
    rng = np.random.default_rng(0)
    points = rng.random((80, 2))
    losses, errors = accuracies(points, rng, n=2000, steepness=8.0)
    encoding = Encoding(problem_of(2, 1))
    X = encoding.encode(points)
    seen = Observed(losses, errors, np.full(80, 2000.0))
    assert choose(X, seen, encoding.log_scales, FORMS).form.startswith("logit")
    beyond = Observed(10.0 * losses, 10.0 * errors, np.full(80, 2000.0))
    assert choose(X, beyond, encoding.log_scales, FORMS).form.startswith("identity")
    assert choose(X, beyond, encoding.log_scales, ["logit"]).form == "identity"


@pytest.mark.parametrize("form", FORMS)
def test_quality_tells_a_surface_from_noise_and_sees_a_cliff(form):
    rng = np.random.default_rng(4)
    points = rng.random((60, 3))
    encoding = Encoding(problem_of(3, 1))
    X = encoding.encode(points)
    n = np.full(60, 500.0)

    def quality(losses, errors):
        seen = Observed(without_collapses(losses[:, None])[:, 0], errors, n)
        return Model(X, seen, choose(X, seen, encoding.log_scales, [form])).quality()

    losses, errors = accuracies(points, rng, n=500)
    good = quality(losses, errors)
    assert good.rank > 0.85
    assert good.r2 > 0.7
    noise = -rng.binomial(500, 0.5, 60) / 500
    assert quality(noise, np.full(60, 0.022)).rank < 0.3
    fallen = losses.copy()
    fallen[np.argsort(losses)[[5, 11]]] = 0.0  # two of the best collapse
    if form != "identity+rough":  # to which a fall is roughness
        assert quality(fallen, errors).cliffs >= 1
    assert good.cliffs == 0


def test_collapses_are_cut_but_trade_offs_of_the_front_are_not():
    losses = np.array([[-0.9, -0.5], [-0.88, -0.52], [-0.8, -0.6], [-0.2, -0.9], [-0.1, -0.4]])
    cut = without_collapses(losses)
    np.testing.assert_array_equal(cut[:4], losses[:4])
    # the last is dominated, and lies beyond the worst of the front
    np.testing.assert_allclose(cut[4], [-0.2, -0.4])


def test_it_finds_the_front_of_a_real_merge_that_trades_all_of_one_task_away():
    """T0: random search has .8085 after 60 evaluations and .815 after 100."""
    surface = T0()
    found = []
    for seed in range(2):
        sampler = SurrogateSampler(problem_of(2, 2), seed=seed)
        points = []
        for _ in range(60):
            candidate = sampler.ask()
            points.append(candidate.u)
            losses, evidence = surface.observe(
                surface.truth(np.array([candidate.u]))[0], np.random.default_rng(0)
            )
            sampler.tell(candidate, losses.tolist(), evidence)
        found.append(pareto.hypervolume(surface.truth(np.array(points)), [0.0, 0.0]))
    assert np.mean(found) > 0.812


def test_what_is_pending_is_not_proposed_again():
    problem = problem_of(3, 2)
    sampler = SurrogateSampler(problem, seed=1)
    for _ in range(16):
        candidate = sampler.ask()
        u = np.array(candidate.u)
        sampler.tell(candidate, [((u - 0.3) ** 2).sum(), ((u - 0.6) ** 2).sum()])
    at_once = np.array([sampler.ask().u for _ in range(5)])
    distances = np.linalg.norm(at_once[:, None] - at_once[None], axis=2)
    assert distances[np.triu_indices(5, 1)].min() > 0.02


def test_depth_profiles_become_waves_and_distances_stay():
    problem = problem_of(
        7,
        1,
        owners=(0, 0, 0, 1, 1, 1, None),
        depths=(0.0, 0.5, 1.0, 0.0, 0.5, 1.0, None),
    )
    encoding = Encoding(problem)
    points = np.random.default_rng(0).random((5, 7))
    X = encoding.encode(points)
    np.testing.assert_allclose(
        np.linalg.norm(X[:, None] - X[None], axis=2),
        np.linalg.norm(points[:, None] - points[None], axis=2),
    )
    flat = encoding.encode(np.array([[0.9] * 3 + [0.5] * 4]))[0]
    assert np.flatnonzero(np.abs(flat) > 1e-12).tolist() == [0]  # one wave, the slowest
    assert encoding.log_scales[0] < encoding.log_scales[1] < encoding.log_scales[2]
    gradient = encoding.gradient(np.eye(7)[2])
    np.testing.assert_allclose(
        gradient, slope(lambda x: float(encoding.encode(x[None])[0, 2]), points[0]), atol=1e-8
    )


def told(sampler, loss, n, evidence=True):
    rng = np.random.default_rng(9)
    for _ in range(n):
        candidate = sampler.ask()
        values = loss(np.array(candidate.u)[None], rng)
        proof = Evidence(tuple(float(e[0]) for _, e in values), (200,) * len(values))
        losses = [float(v[0]) for v, _ in values]
        sampler.tell(candidate, losses, proof if evidence else None)


def test_it_says_how_good_its_models_are_and_when_not_to_trust_them():
    sampler = SurrogateSampler(problem_of(3, 2, names=("math", "chat")), seed=1)

    def one_is_noise(points, rng):
        return [accuracies(points, rng), (-rng.binomial(200, 0.5, 1) / 200, np.array([0.035]))]

    told(sampler, one_is_noise, 42)
    remarks = sampler.remarks
    assert len(remarks) == 2
    assert all("math R2" in remark and "rank correlation" in remark for remark in remarks)
    assert "not to be trusted where the rank correlation is low" in remarks[-1]
    json.dumps(remarks)


@pytest.mark.parametrize("evidence", [True, False])
def test_it_finds_the_optimum_of_noisy_accuracies(evidence):
    sampler = SurrogateSampler(problem_of(5, 1), seed=2)
    told(sampler, lambda points, rng: [accuracies(points, rng)], 40, evidence)
    late = np.array([sampler.ask().u])
    assert np.abs(late - 0.62).max() < 0.2


def test_evolution_takes_turns_when_no_model_predicts():
    sampler = SurrogateSampler(problem_of(12, 1), seed=3)
    told(sampler, lambda _, rng: [(rng.normal(size=1), np.array([1.0]))], 42)
    assert any("not to be trusted" in remark for remark in sampler.remarks)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"start": 2}, "start must"), ({"forms": ["cubic"]}, "forms must"), ({"forms": []}, "forms")],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        SurrogateSampler(problem_of(2, 1), seed=0, **options)
