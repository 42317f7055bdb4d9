"""Estimators from few items: published numbers, recovery, errors and rankings.

    python experiments/benchmarks/irt.py [--worlds 20]

Simulated answers are chance draws from the model that item response theory assumes, except in the
last table, whose answers are real. Kendall's tau-b is of estimated scores against the scores on
the whole pool, over the candidates of a world, and rewards ties: a mean of 8 answers has many.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from evomerge.datatypes import Answers, Estimate, FloatArray
from evomerge.protocols import Estimator
from fitness.estimators import MeanEstimator, RegressionEstimator
from fitness.irt import (
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
from fitness.irt_fit import choose_n_dimensions, fit_item_bank
from fitness.item_bank import ItemBank
from fitness.readout import RidgeReadout, greedy_items

CONSOLE = Console(width=110)


def published() -> None:
    """p-IRT, gp-IRT (tinyBenchmarks) and mp-IRT, gmp-IRT (MERGE3) on simulated items."""
    rng = np.random.default_rng(0)
    A = np.exp(rng.normal(0, 0.3, (1, 3, 1000)))[0].T
    B = rng.normal(0, 1, (1, 3, 1000))[0].T
    seen = np.sort(rng.choice(1000, 100, replace=False))
    w = rng.random(100)
    w /= w.sum()
    P = probabilities(A, B, rng.normal(0, 1, (1, 3, 1))[0, :, 0])
    y = (np.random.default_rng(1).random(1000) < P).astype(float)
    theta, _ = fit_ability(A[seen], B[seen], y[seen], None)
    irt = irt_mean(y[seen], w)
    p = p_irt(probabilities(A, B, theta), seen, y[seen], balance_of(np.arange(1000) >= 300))
    rows = [
        ("IRT", irt, 0.13594700930103762),
        ("p-IRT", p, 0.12911334250937445),
        ("gp-IRT", 0.3 * irt + 0.7 * p, 0.1311634425468734),
    ]
    rng = np.random.default_rng(0)
    A = np.exp(rng.normal(-1, 0.4, (1, 5, 5575)))[0].T
    B = rng.normal(0, 0.6, (1, 5, 5575))[0].T
    endpoints = np.stack([rng.normal(0, 1, (1, 5, 1))[0, :, 0] for _ in range(2)])
    P = probabilities(A, B, np.array([0.6, 0.5]) @ endpoints)
    part = slice(817, 817 + 1319)
    y = (np.random.default_rng(7).random(5575) < P).astype(float)[part]
    A, B = A[part], B[part]
    seen = np.sort(np.random.default_rng(3).choice(1319, 20, replace=False))
    at, _ = fit_in_span(A[seen], B[seen], y[seen], endpoints, np.full(2, 0.5), None)
    mp = p_irt(probabilities(A, B, at @ endpoints), seen, y[seen])
    rows += [
        ("mp-IRT", mp, 0.4118110157515246),
        ("gmp-IRT", (mp + y[seen].mean()) / 2, 0.45590550787576234),
    ]
    table = Table("number", "ours", "published code", "difference", title="(a) parity, no prior")
    for name, ours, theirs in rows:
        table.add_row(name, f"{ours:.9f}", f"{theirs:.9f}", f"{ours - theirs:.1e}")
    CONSOLE.print(table)


def recovery() -> None:
    """Items fitted to 500 subjects x 200 items."""
    table = Table("seed", "difficulty r", "discrimination r", title="(b) recovery, 500 x 200, 1-D")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        A, b = np.exp(rng.normal(0, 0.4, 200)), rng.normal(0, 1, 200)
        P = 1 / (1 + np.exp(b - np.outer(rng.normal(size=500), A)))
        bank = fit_item_bank((rng.random(P.shape) < P).astype(float))
        figures = (np.corrcoef(bank.B[:, 0], b)[0, 1], np.corrcoef(bank.A[:, 0], A)[0, 1])
        table.add_row(str(seed), *(f"{figure:.3f}" for figure in figures))
    CONSOLE.print(table)


class Scores:
    """Errors, rank correlations and coverage by estimator, paired with the plain mean's."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, float, float]]] = {}

    def add(
        self, name: str, estimator: Estimator, answers: list[Answers], known: FloatArray,
        truth: FloatArray,
    ) -> None:  # fmt: skip
        """One ranking: several models that answered some items, and their true scores."""
        estimates = estimator.estimate(answers, known)
        scores = np.array([estimate.score for estimate in estimates])
        away = np.abs(scores - truth)
        sd = np.array([estimate.standard_error for estimate in estimates])
        # Rounded: the same score summed in another order is a tie.
        tau = np.nan_to_num(kendalltau(np.round(scores, 9), truth)[0])
        seen = self._seen.setdefault(name, [])
        seen.append((float(away.mean()), float(tau), float((away <= 2 * sd).mean())))

    def show(self, title: str) -> None:
        """A row for each estimator; the first one added is the plain mean."""
        table = Table(
            "estimator", "error", "of the mean's", "tau-b", "tau - mean's tau: mean +- se",
            "worst", "within 2 se", title=title,
        )  # fmt: skip
        plain = np.array(next(iter(self._seen.values())))
        for name, rows in self._seen.items():
            figures = np.array(rows)
            gain = figures[:, 1] - plain[:, 1]
            error = figures[:, 0].mean()
            table.add_row(
                name,
                f"{error:.4f}",
                f"{error / plain[:, 0].mean():.0%}",
                f"{figures[:, 1].mean():.3f}",
                f"{gain.mean():+.3f} +- {gain.std(ddof=1) / np.sqrt(len(gain)):.3f}",
                f"{gain.min():+.3f}",
                f"{figures[:, 2].mean():.0%}",
            )
        CONSOLE.print(table)


def of_bank(bank: ItemBank) -> Mapping[str, Callable[[], Estimator]]:
    """Every estimator that needs items' parameters."""
    return {
        "p-IRT": lambda: PIrt(bank),
        "gp-IRT": lambda: GpIrt(bank),
        "mp-IRT": lambda: MpIrt(bank),
        "gmp-IRT": lambda: GmpIrt(bank),
    }


def held_out(n_worlds: int) -> None:
    """Subjects that the fit has not seen: 30 of 1,000 items, 100 subjects to learn from."""
    scores = Scores()
    for seed in range(n_worlds):
        rng = np.random.default_rng(seed)
        A, b = np.exp(rng.normal(-0.3, 0.4, (1000, 2))), rng.normal(0, 1.2, 1000)
        theta = rng.normal(0, 0.7, (130, 2))
        y = (rng.random((130, 1000)) < 1 / (1 + np.exp(b - theta @ A.T))).astype(float)
        known, models = y[:100], y[100:]
        bank = fit_item_bank(known, 2)
        truth = models.mean(axis=1)
        common = rng.choice(1000, 30, replace=False)
        chosen = greedy_items(known, 30, seed)
        for kind, items in (("random", common), ("greedy", chosen)):
            answers = [Answers(items, row[items]) for row in models]
            scores.add(f"mean, {kind}", MeanEstimator(), answers, known, truth)
            scores.add(f"regression, {kind}", RegressionEstimator(), answers, known, truth)
            scores.add(f"ridge, {kind}", RidgeReadout(), answers, known, truth)
            for name, make in of_bank(bank).items():
                scores.add(f"{name}, {kind}", make(), answers, known, truth)
    scores.show("(c) 30 of 1,000 items, 100 known subjects, 30 held out")


def merges(n_worlds: int, n: int, n_known: int) -> None:
    """Few known baselines; candidates are merges between them; 500 items."""
    scores = Scores()
    for seed in range(n_worlds):
        rng = np.random.default_rng(seed)
        A, b = np.exp(rng.normal(-0.3, 0.4, (500, 3))), rng.normal(0, 1.2, 500)
        endpoints = rng.normal(0, 0.6, (4, 3))
        mixed = np.vstack(
            [np.eye(4), rng.dirichlet(np.ones(4), n_known - 4), rng.dirichlet(np.full(4, 1.5), 30)]
        )
        theta = mixed @ endpoints + 0.15 * rng.normal(size=(len(mixed), 3))
        y = (rng.random((len(mixed), 500)) < 1 / (1 + np.exp(b - theta @ A.T))).astype(float)
        known, models = y[:n_known], y[n_known:]
        truth = models.mean(axis=1)
        bank = fit_item_bank(known, 2)
        same = rng.choice(500, n, replace=False)
        for kind, subsets in (
            ("common", [same] * 30),
            ("different", [rng.choice(500, n, replace=False) for _ in range(30)]),
            ("greedy", [greedy_items(known, n, seed)] * 30),
        ):
            answers = [Answers(i, row[i]) for i, row in zip(subsets, models, strict=True)]
            scores.add(f"mean, {kind}", MeanEstimator(), answers, known, truth)
            scores.add(f"regression, {kind}", RegressionEstimator(), answers, known, truth)
            scores.add(f"ridge, {kind}", RidgeReadout(), answers, known, truth)
            if kind != "greedy":
                for name, make in of_bank(bank).items():
                    scores.add(f"{name}, {kind}", make(), answers, known, truth)
    scores.show(f"(d) merges: {n} of 500 items, {n_known} known models, bank fitted to them")


def real() -> None:
    """8 sentiment classifiers x 1,100 sentences: each one left out, 20 subsets of 100 items."""
    with np.load("tests/data/pyirt_minitest.npz") as file:
        responses = file["responses"].astype(float)
    CONSOLE.print("accuracies", np.round(responses.mean(axis=1), 6))
    CONSOLE.print("dimensions, nats per answer", choose_n_dimensions(responses, (1, 2, 3)))
    truth = responses.mean(axis=1)
    for n in (30, 100):
        scores = Scores()
        rng = np.random.default_rng(0)
        banks = [fit_item_bank(np.delete(responses, k, axis=0), 2) for k in range(8)]
        for _ in range(20):
            items = rng.choice(1100, n, replace=False)
            answers = [Answers(items, row[items]) for row in responses]
            everything: dict[str, Callable[[ItemBank], Estimator]] = {
                "mean": lambda _: MeanEstimator(),
                "regression": lambda _: RegressionEstimator(),
                "ridge": lambda _: RidgeReadout(),
                "p-IRT": PIrt,
                "gp-IRT": GpIrt,
                "mp-IRT": MpIrt,
                "gmp-IRT": GmpIrt,
            }
            for name, make in everything.items():
                scores.add(name, _LeftOut(responses, banks, make), answers, responses, truth)
        scores.show(f"(e) real answers, {n} of 1,100 items, one subject left out of everything")


class _LeftOut:
    """Estimates each model from all others only."""

    def __init__(
        self, rows: FloatArray, banks: list[ItemBank], make: Callable[[ItemBank], Estimator]
    ) -> None:
        self._rows, self._banks, self._make = rows, banks, make

    def estimate(self, answers: Sequence[Answers], known: FloatArray) -> list[Estimate]:  # noqa: ARG002 - it keeps its own
        """The score of model k with a bank and known models that have not seen it."""
        return [
            self._make(bank).estimate([answer], np.delete(self._rows, k, axis=0))[0]
            for k, (answer, bank) in enumerate(zip(answers, self._banks, strict=True))
        ]


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=20, help="simulated worlds per table")
    n_worlds = parser.parse_args().worlds
    published()
    recovery()
    held_out(n_worlds)
    for n_known in (5, 12, 40):
        for n in (8, 16, 30, 60):
            merges(n_worlds, n, n_known)
    real()


if __name__ == "__main__":
    main()
