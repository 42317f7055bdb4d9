"""Real local Ray: same results as in process, and workers that die or hang."""

import os
from pathlib import Path

import pytest

from evomerge.config import read_config
from evomerge.datatypes import Split
from evomerge.errors import ExecutorError, TaskError
from evomerge.search import start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RAY = {"executor": "ray", "count": 2, "threads": 1}


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch):
    """A user's own fitness is found through PYTHONPATH, by Ray's workers too."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


@pytest.mark.parametrize("fidelity", ["off", {"first": 4, "contest": 4, "finalists": 3}])
def test_two_ray_workers_give_the_results_of_one_process(
    fidelity, write_config, tmp_path, monkeypatch
):
    # Beside the user lies a file with the name of one of our packages: it must not be imported.
    stray = tmp_path / "beside the user"
    stray.mkdir()
    (stray / "fitness.py").write_text("raise RuntimeError('a stray file was imported')\n")
    monkeypatch.chdir(stray)
    # generations do not depend on what is pending
    changes = {"fidelity": fidelity, "sampler": "nsga2"}
    expected = start(read_config(write_config(**changes)), tmp_path / "one")
    history = start(read_config(write_config(**changes, workers=RAY)), tmp_path / "two")
    assert set(history.trials) == set(expected.trials)
    for name, trial in expected.trials.items():
        assert history.trials[name].u == trial.u
        assert history.trials[name].search == trial.search
    assert history.front is not None
    assert expected.front is not None
    assert set(history.front.trials) == set(expected.front.trials)
    assert {t.name for t in history.scored(Split.HELD_OUT)} == {
        t.name for t in expected.scored(Split.HELD_OUT)
    }
    for objective in history.objectives:
        one, two = (h.answers("5", Split.SEARCH, objective.name) for h in (expected, history))
        assert one.values.tolist() == two.values.tolist()


def test_lost_and_hung_workers_are_replaced_and_their_candidates_tried_again(
    write_config, python_objective, tmp_path
):
    for how, timeout in [("die", 600), ("hang", 3)]:
        objective = python_objective(
            "misbehave", how=how, when=[4, 15], counter=str(tmp_path / how)
        )
        config = write_config(
            objectives=[objective],
            budget={"evaluations": 8},
            workers={**RAY, "timeout_seconds": timeout},
        )
        history = start(read_config(config), tmp_path / f"run-{how}")
        assert history.finished == "budget spent"
        assert not [t for t in history.trials.values() if t.failure is not None]
        calm = write_config(
            "calm.yaml", objectives=[python_objective("weight_norm")], budget={"evaluations": 8}
        )
        expected = start(read_config(calm), tmp_path / f"calm-{how}")
        for name, trial in expected.trials.items():
            assert trial.search is not None
            scores = history.trials[name].search
            assert scores is not None
            assert scores["misbehave"] == trial.search["weight_norm"]


def test_a_candidate_that_kills_every_worker_fails_alone(write_config, python_objective, tmp_path):
    # Calls 5, 6 and 7 die with one worker: the first try and both retries of one candidate.
    objective = python_objective(
        "misbehave", how="die", when=[5, 6, 7], counter=str(tmp_path / "calls")
    )
    config = write_config(
        objectives=[objective], budget={"evaluations": 3}, workers={**RAY, "count": 1}
    )
    history = start(read_config(config), tmp_path / "run")
    failed = {t.name: t.failure.kind for t in history.trials.values() if t.failure is not None}
    assert failed == {"uniform_average": "worker_lost"}
    assert history.finished == "budget spent"


def test_what_a_worker_refuses_comes_back_as_its_own_error(write_config, tmp_path):
    config = read_config(write_config(workers=RAY))
    objective = config.objectives[0].model_copy(update={"metric": "accuracy"})
    config = config.model_copy(update={"objectives": [objective]})
    with pytest.raises(TaskError, match="accuracy"):
        start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_many_gpus_are_refused(write_config, tmp_path):
    config = write_config(workers={**RAY, "gpus": 0.5})
    with pytest.raises(ExecutorError, match=r"2 workers need 1 GPU, but Ray has 0"):
        start(read_config(config), tmp_path / "run")


def test_an_address_without_ray_is_refused(write_config, tmp_path):
    config = write_config(workers={**RAY, "address": "127.0.0.1:1"})
    with pytest.raises(ExecutorError, match="does not answer"):
        start(read_config(config), tmp_path / "run")


def test_no_ray_is_left_behind():
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized()
    assert "RAY_ADDRESS" not in os.environ
