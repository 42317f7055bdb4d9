"""The picture of the front."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from evomerge.datatypes import Direction, Objective
from evomerge.history import history_of
from evomerge.reporting.plots import BASELINE, front_png

OBJECTIVES = (
    Objective("math"),
    Objective("drift", Direction.MINIMIZE),
    Objective("$chat^_"),
    Objective("law"),
    Objective("fifth"),
)


@pytest.mark.parametrize("n_objectives", [1, 2, 3, 5])
def test_picture_holds_baselines_and_front(
    run_of: Callable[..., Any], tmp_path: Path, n_objectives: int
) -> None:
    _, history = run_of(objectives=OBJECTIVES[:n_objectives])
    path = front_png(history, tmp_path / "views" / "front.png")
    picture = imread(path)
    assert picture.shape[1] >= 1400
    orange = np.array([int(BASELINE[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    assert np.all(np.abs(picture[..., :3] - orange) < 0.01, axis=-1).sum() > 500
    assert [p.name for p in path.parent.iterdir()] == ["front.png"]


@pytest.mark.parametrize("n_events", [1, 9, 30])
def test_picture_of_a_run_that_has_just_begun(
    synthetic: Any, tmp_path: Path, n_events: int
) -> None:
    history = history_of(synthetic().events()[:n_events])
    assert front_png(history, tmp_path / "front.png").exists()


def test_picture_of_a_constant_objective(run_of: Callable[..., Any], tmp_path: Path) -> None:
    _, history = run_of(constant="code", finish=False)
    assert front_png(history, tmp_path / "front.png").exists()


def test_importing_the_drawer_loads_no_matplotlib() -> None:
    code = "import sys, evomerge.reporting.plots\nprint('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
