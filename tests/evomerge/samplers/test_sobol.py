import subprocess
import sys

import numpy as np
import pytest

from evomerge.datatypes import Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.sobol import MAX_DIMENSIONS, SobolSampler


def problem_of(n_dimensions: int) -> Problem:
    dimensions = tuple(Dimension(f"x{i}") for i in range(n_dimensions))
    return Problem(dimensions, 1, ((0.4,) * n_dimensions,), budget=100)


@pytest.mark.parametrize("scramble", [True, False])
def test_after_the_anchor_every_dimension_is_covered_evenly(scramble: bool) -> None:
    sampler = SobolSampler(problem_of(5), seed=3, scramble=scramble)
    points = np.array([sampler.ask().u for _ in range(257)])
    assert points[0].tolist() == [0.4] * 5
    cells = np.sort(np.minimum(points[1:] * 256, 255).astype(int), axis=0)
    assert (cells == np.arange(256)[:, None]).all()  # one point in each of 256 slices


def test_more_dimensions_than_the_sequence_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"at most 21201 dimensions.*uniform"):
        SobolSampler(problem_of(MAX_DIMENSIONS + 1), seed=1)


def test_importing_the_samplers_loads_no_library() -> None:
    code = (
        "import sys\n"
        "from evomerge.samplers import cma_es, design, nsga2, sobol, uniform\n"
        "assert not {'cmaes', 'pymoo', 'scipy', 'moocore', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
