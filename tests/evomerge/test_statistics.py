"""A search over an operator that needs statistics: collected once, resumed, exported, refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.config import read_config
from evomerge.datatypes import Job, Split
from evomerge.errors import ConfigError, RunError
from evomerge.evaluation import Worker, worker_setup
from evomerge.export import export
from evomerge.search import resume, start


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("sort: c b a = a b c\ntwice: g c c b a k = c\nlast: a b g = b\n")
    return path


def config_of(write_config, operator: str, text: Path | None, **changes: object):
    statistics = {} if text is None else {"text": str(text), "samples": 3}
    space = {"operator": operator, "statistics": statistics}
    plain = {"space": space, "budget": {"evaluations": 2}, "fidelity": "off", **changes}
    return read_config(write_config(**plain))


@pytest.mark.parametrize("operator", ["regmean", "fisher_exact"])
def test_a_trial_is_exported_as_it_was_scored_and_statistics_are_collected_once(
    operator, write_config, cache, text, tmp_path
):
    config = config_of(write_config, operator, text)
    history = start(config, tmp_path / "run")
    kept = sorted((cache / "aids").glob("*/aids.json"))
    assert len(kept) == len(config.experts)
    times = [file.stat().st_mtime_ns for file in kept]
    aid = "gram" if operator == "regmean" else "fisher"
    assert f"{aid} of the experts" in history.started.model_digests

    continued = resume(tmp_path / "run", evaluations=3)
    assert "2" in continued.trials
    exported = export(tmp_path / "run", "2", tmp_path / "model")  # refuses other scores
    assert exported.rescored is not None
    merged = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.isfinite(tensor.float()).all() for tensor in merged.values())
    assert [file.stat().st_mtime_ns for file in kept] == times


def test_other_texts_are_not_the_runs(write_config, cache, text, tmp_path):
    start(config_of(write_config, "regmean", text), tmp_path / "run")
    text.write_text("sort: b a = a b\n")
    with pytest.raises(RunError, match="gram of the experts changed"):
        export(tmp_path / "run", "1", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_lost_statistics_are_collected_again_for_an_export(write_config, cache, text, tmp_path):
    start(config_of(write_config, "regmean", text), tmp_path / "run")
    shutil.rmtree(cache / "aids")
    export(tmp_path / "run", "1", tmp_path / "model", verify=False)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_an_operator_without_its_statistics_is_refused_before_a_run_is_made(
    write_config, cache, tmp_path
):
    with pytest.raises(ConfigError, match=r"regmean .* no gram: .* space\.statistics\.text"):
        start(config_of(write_config, "regmean", None), tmp_path / "run")
    assert not (cache / "aids").exists()


def test_a_workers_recipe_without_statistics_costs_that_candidate_only(
    write_config, cache, text, tmp_path
):
    config = config_of(write_config, "regmean", text)
    worker = Worker(worker_setup(config))
    recipe = replace(worker._recipe_of("base"), operator="regmean")
    evaluation = worker.evaluate(Job("one", recipe, Split.SEARCH, None))
    assert evaluation.failure is not None
    assert "space.statistics" in evaluation.failure.message
