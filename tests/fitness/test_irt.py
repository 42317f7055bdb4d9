import numpy as np
import pytest

from evomerge.datatypes import Answers
from evomerge.errors import TaskError
from fitness.estimators import MeanEstimator
from fitness.irt import (
    Gaussian,
    GmpIrt,
    GpIrt,
    MpIrt,
    PIrt,
    balance_of,
    fit_ability,
    fit_in_span,
    irt_mean,
    p_irt,
    probabilities,
)
from fitness.item_bank import ItemBank

ESTIMATORS = (PIrt, GpIrt, MpIrt, GmpIrt)


def test_published_p_irt_and_gp_irt():
    rng = np.random.default_rng(0)
    A = np.exp(rng.normal(0, 0.3, (1, 3, 1000)))[0].T
    B = rng.normal(0, 1, (1, 3, 1000))[0].T
    seen = np.sort(rng.choice(1000, 100, replace=False))
    w = rng.random(100)
    w /= w.sum()
    theta = rng.normal(0, 1, (1, 3, 1))[0, :, 0]
    y = (np.random.default_rng(1).random(1000) < probabilities(A, B, theta)).astype(float)
    fitted, _ = fit_ability(A[seen], B[seen], y[seen], prior=None)
    assert fitted == pytest.approx([0.773349, -1.960074, -1.503340], abs=2e-6)
    balance = balance_of(np.arange(1000) >= 300)
    irt = irt_mean(y[seen], w)
    p = p_irt(probabilities(A, B, fitted), seen, y[seen], balance)
    assert irt == pytest.approx(0.13594700930103762, abs=1e-6)
    assert p == pytest.approx(0.12911334250937445, abs=1e-6)
    assert 0.3 * irt + 0.7 * p == pytest.approx(0.1311634425468734, abs=1e-6)
    assert (y.mean(), (balance * y).mean()) == pytest.approx((0.204, 0.201905), abs=1e-6)


@pytest.fixture(scope="module")
def scenario():
    """The gsm8k items of a simulated pool of five scenarios, and two endpoints."""
    rng = np.random.default_rng(0)
    A = np.exp(rng.normal(-1, 0.4, (1, 5, 5575)))[0].T
    B = rng.normal(0, 0.6, (1, 5, 5575))[0].T
    endpoints = np.stack([rng.normal(0, 1, (1, 5, 1))[0, :, 0] for _ in range(2)])
    return A, B, endpoints, slice(817, 817 + 1319)


def test_published_mp_irt_and_gmp_irt(scenario):
    A, B, endpoints, part = scenario
    P = probabilities(A, B, np.array([0.6, 0.5]) @ endpoints)
    y = (np.random.default_rng(7).random(5575) < P).astype(float)[part]
    seen = np.sort(np.random.default_rng(3).choice(1319, 20, replace=False))
    A, B = A[part], B[part]
    at, _ = fit_in_span(A[seen], B[seen], y[seen], endpoints, np.full(2, 0.5), prior=None)
    assert at == pytest.approx([0.326056, -0.507908], abs=2e-6)
    mp = p_irt(probabilities(A, B, at @ endpoints), seen, y[seen])
    weighted = irt_mean(y[seen], np.full(20, 1 / 20))
    assert weighted == pytest.approx(0.5)
    assert mp == pytest.approx(0.4118110157515246, abs=1e-6)
    assert (weighted + mp) / 2 == pytest.approx(0.45590550787576234, abs=1e-6)
    theta, _ = fit_ability(A[seen], B[seen], y[seen], prior=None)
    p = p_irt(probabilities(A, B, theta), seen, y[seen])
    assert p == pytest.approx(0.41204148105562993, abs=1e-6)


def test_published_mean_errors_of_simulated_merges(scenario):
    A, B, endpoints, part = scenario
    errors = []
    for s in range(40):
        rng = np.random.default_rng(100 + s)
        P = probabilities(A, B, rng.uniform(0, 1, 2) @ endpoints)
        y = (rng.random(5575) < P).astype(float)[part]
        seen = np.sort(rng.choice(1319, 20, replace=False))
        a, b = A[part], B[part]
        theta, _ = fit_ability(a[seen], b[seen], y[seen], prior=None)
        at, _ = fit_in_span(a[seen], b[seen], y[seen], endpoints, np.full(2, 0.5), prior=None)
        p, mp = (p_irt(probabilities(a, b, t), seen, y[seen]) for t in (theta, at @ endpoints))
        raw = y[seen].mean()
        errors.append(np.abs(np.array([raw, p, mp, (raw + mp) / 2]) - y.mean()))
    assert np.mean(errors, axis=0) == pytest.approx([0.0846, 0.0790, 0.0817, 0.0771], abs=6e-5)


def test_newton_finds_the_mode_of_the_posterior():
    rng = np.random.default_rng(0)
    A, B = rng.normal(1, 0.3, (30, 3)), rng.normal(size=(30, 3))
    y = rng.random(30)
    prior = Gaussian(np.array([0.5, 0.0, -1.0]), np.diag([1.0, 2.0, 0.5]))
    theta, covariance = fit_ability(A, B, y, prior)
    P = probabilities(A, B, theta)
    slope = A.T @ (P - y) + np.linalg.solve(prior.covariance, theta - prior.mean)
    assert slope == pytest.approx(np.zeros(3), abs=1e-6)
    curvature = (A.T * (P * (1 - P))) @ A + np.linalg.inv(prior.covariance)
    np.testing.assert_allclose(covariance @ curvature, np.eye(3), atol=1e-9)
    # Where every answer is right, maximum likelihood runs away and the prior does not.
    theta, _ = fit_ability(A, B, np.ones(30), Gaussian.around(np.zeros(3), 1.0))
    assert np.abs(theta).max() < 5


def world(seed, n_candidates=20, n_items=400):
    rng = np.random.default_rng(seed)
    A = np.exp(rng.normal(-0.3, 0.4, (n_items, 3)))
    B = rng.normal(0, 0.7, (n_items, 3))
    ends = rng.normal(0, 0.8, (4, 3))
    mixed = np.vstack([np.eye(4), rng.dirichlet(np.ones(4), n_candidates)])
    theta = mixed @ ends + 0.1 * rng.normal(size=(len(mixed), 3))
    y = np.stack([rng.random(n_items) < probabilities(A, B, t) for t in theta]).astype(float)
    return ItemBank(A, B), y[:4], y[4:], rng


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [8, 30])
def test_standard_errors_cover_and_few_items_say_more_than_their_mean(estimator, n):
    errors, plain, covered = [], [], []
    for seed in range(15):
        bank, known, candidates, rng = world(seed)
        answers = []
        for row in candidates:
            items = rng.choice(len(row), n, replace=False)
            answers.append(Answers(items, row[items]))
        truth = candidates.mean(axis=1)
        estimates = estimator(bank).estimate(answers, known)
        for answer, estimate, right in zip(answers, estimates, truth, strict=True):
            errors.append(abs(estimate.score - right))
            plain.append(abs(answer.values.mean() - right))
            covered.append(errors[-1] <= 2 * estimate.standard_error)
    # Half of gmp-IRT is the plain mean, whatever the other half knows.
    most = 0.9 if estimator is GmpIrt else 0.8
    assert np.mean(errors) < most * np.mean(plain)
    assert np.mean(covered) > 0.92


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_items_give_the_mean(estimator):
    bank, known, candidates, _ = world(0)
    answers = [Answers(np.arange(400), row) for row in candidates]
    expected = MeanEstimator().estimate(answers, known)
    assert estimator(bank).estimate(answers, known) == expected
    few = Answers(np.arange(10), candidates[0, :10])
    assert estimator(bank).estimate([few, *answers], known)[1:] == expected


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n_known", [0, 4])
def test_the_order_of_items_changes_nothing(estimator, n_known):
    bank, known, candidates, rng = world(0)
    known = known[:n_known]
    items = rng.choice(400, 15, replace=False)
    order = rng.permutation(15)
    one, other = (
        estimator(bank).estimate([Answers(items[o], candidates[0, items[o]])], known)[0]
        for o in (np.arange(15), order)
    )
    assert one.score == pytest.approx(other.score, abs=1e-9)
    assert one.standard_error == pytest.approx(other.standard_error, abs=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_fractions_and_answers_all_right_are_no_trouble(estimator, tmp_path):
    bank, known, _, rng = world(0)
    bank.save(tmp_path / "bank.npz")
    answers = [
        Answers(np.arange(8), np.ones(8)),
        Answers(np.array([5]), np.zeros(1)),
        Answers(np.arange(40), rng.random(40)),
    ]
    for estimate in estimator(bank=str(tmp_path / "bank.npz")).estimate(answers, known):
        assert 0 < estimate.score < 1
        assert 0 < estimate.standard_error < 0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bad_input_is_told_in_one_sentence(estimator):
    bank, known, candidates, _ = world(0)
    few = [Answers(np.arange(10), candidates[0, :10])]
    with pytest.raises(TaskError, match="has 400 items and the pool 399"):
        estimator(bank).estimate(few, known[:, 1:])
    with pytest.raises(TaskError, match="between 0"):
        estimator(bank).estimate([Answers(np.arange(2), np.array([1.0, 1.5]))], known)
    with pytest.raises(TaskError, match="between 0"):
        estimator(bank).estimate(few, known - 3)
    with pytest.raises(TaskError, match="item_bank"):
        estimator()
    with pytest.raises(TaskError, match="prior_sd"):
        estimator(bank, prior_sd=0.0)
    with pytest.raises(TaskError, match="does not exist"):
        estimator("nowhere.npz")


def test_options_out_of_range_are_refused():
    bank, *_ = world(0)
    with pytest.raises(TaskError, match="bias"):
        GpIrt(bank, bias=-1.0)
    with pytest.raises(TaskError, match="n_endpoints"):
        MpIrt(bank, n_endpoints=0)
