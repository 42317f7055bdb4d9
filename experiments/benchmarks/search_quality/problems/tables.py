"""Published tables of merges as surfaces, between the merges that were really made.

The tables and their licences: `tests/data/SOURCES.md`.
"""

import csv
from pathlib import Path

import numpy as np

from evomerge.datatypes import Evidence, FloatArray

from .surface import Binomial

DATA = Path(__file__).parents[4] / "tests" / "data"

LOGS = ("taskwise", "plusplus")
SWEEPS = {
    "gpt2": ("gpt2", "task_arithmetic"),
    "gpt2_ties": ("gpt2", "ties_merging"),
    "flan_t5": ("flan-t5-base-lora16", "task_arithmetic"),
}

RIDGE = 1e-3
"""The best on every other row of both logs (R2 at least .98); at a thousandth, accuracies above 1
would be extrapolated."""

PAIR = (0, 5)
"""With two objectives: SUN397 and GTSRB, which conflict."""


class Log:
    """AdaMerging on CLIP ViT-B/32 (`taskwise`; `plusplus` on TIES): 8 coefficients, 8 tasks.

    A ridge quadratic of the 50 merges in the log, in the box of their coefficients. They are an
    optimiser's path, no design: most of the box is smooth extrapolation. What no merge of the log
    falls short of does not count.
    """

    n_dimensions = 8

    def __init__(self, name: str, n_objectives: int) -> None:
        table = np.load(DATA / "adamerging_vit_b32_taskwise.npz")
        tasks = list(PAIR) if n_objectives == len(PAIR) else list(range(n_objectives))
        c, accuracy = table[f"{name}_coef"], table[f"{name}_acc"][:, tasks]
        low, high = c.min(axis=0), c.max(axis=0)
        G = _features((c - low) / (high - low))
        self._mean = accuracy.mean(axis=0)
        self._weights = np.linalg.solve(
            G.T @ G + RIDGE * np.eye(G.shape[1]), G.T @ (accuracy - self._mean)
        )
        self._noise = Binomial()
        self.reference = -accuracy.min(axis=0)

    def truth(self, points: FloatArray) -> FloatArray:
        """Minus the accuracies."""
        return -np.clip(_features(points) @ self._weights + self._mean, 0.0, 1.0)

    def observe(self, losses: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, Evidence]:
        """Counts over 500 items."""
        return self._noise.observe(losses, rng)


class Sweep:
    """One coefficient for all experts, 0 to 1 in tenths, straight lines in between (FusionBench).

    Flan-T5 falls off cliffs: MNLI goes from .6 at .1 to 0 at .6.
    """

    n_dimensions = 1

    def __init__(self, name: str, n_objectives: int) -> None:
        model, method = SWEEPS[name]
        scores: dict[str, list[float]] = {}
        with (DATA / "fusionbench_sweeps.csv").open(encoding="utf-8", newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: float(row["lambda"]))
        for row in rows:
            if (row["model"], row["method"]) == (model, method):
                scores.setdefault(row["task"], []).append(float(row["score"]))
        self._scores = [scores[task] for task in sorted(scores)[:n_objectives]]
        self._noise = Binomial()
        self.reference = np.zeros(n_objectives)

    def truth(self, points: FloatArray) -> FloatArray:
        """Minus the scores."""
        grid = np.linspace(0.0, 1.0, 11)
        return -np.stack([np.interp(points[:, 0], grid, row) for row in self._scores], axis=1)

    def observe(self, losses: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, Evidence]:
        """Counts over 500 items."""
        return self._noise.observe(losses, rng)


def _features(points: FloatArray) -> FloatArray:
    """All terms of a quadratic around the centre: `(n_points, 45)` with eight coefficients."""
    x = points - 0.5
    i, j = np.triu_indices(x.shape[1])
    return np.hstack([np.ones((len(x), 1)), x, x[:, i] * x[:, j]])
