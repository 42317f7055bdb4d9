"""T0, a real merge in two coefficients: published values, and random search on it."""

import numpy as np
import pytest

from evomerge import pareto
from experiments.benchmarks.search_quality.problems.t0 import BEST_KNOWN, T0

NAMED = {
    (0.0, 0.0): (0.844444, 0.811111),  # the base
    (1.0, 0.0): (0.911111, 0.0),
    (0.0, 1.0): (0.0, 0.955556),
    (0.5, 0.5): (0.838889, 0.838889),
    (1.0, 1.0): (0.827778, 0.805556),
}


def test_base_experts_and_averages_have_the_published_accuracies() -> None:
    losses = T0().truth(np.array(list(NAMED)))
    assert -losses == pytest.approx(np.array(list(NAMED.values())), abs=1e-6)


def test_the_grid_has_the_published_front() -> None:
    axis = np.linspace(0.0, 1.0, 21)
    grid = np.array([(first, second) for first in axis for second in axis])
    losses = T0().truth(grid)
    assert pareto.hypervolume(losses, T0.reference) == pytest.approx(0.818272, abs=1e-6)
    front = np.unique(losses[pareto.non_dominated(losses)], axis=0)
    assert len(front) == 17
    assert (losses[:, None] == front).all(axis=2).any(axis=1).sum() == 52  # ties on the front count
    means = -losses.mean(axis=1)
    assert means.max() == pytest.approx(0.847222, abs=1e-6)
    assert grid[means.argmax()] == pytest.approx([0.80, 0.85])


def test_random_search_finds_the_published_hypervolumes() -> None:
    losses = [T0().truth(np.random.default_rng(seed).random((70, 2))) for seed in range(10)]
    for n, mean in ((52, 0.8074), (60, 0.8092), (70, 0.8117)):
        found = [pareto.hypervolume(known[:n], T0.reference) for known in losses]
        assert np.mean(found) == pytest.approx(mean, abs=1e-4)
        assert max(found) < BEST_KNOWN
