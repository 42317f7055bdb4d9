import json
from pathlib import Path

import pytest
import torch

from evomerge.config import read_config
from evomerge.errors import EvomergeError, RunError
from evomerge.export import RECIPE_FILE, export
from evomerge.history import read_history
from evomerge.reporting.rows import best_in_mean
from evomerge.search import start


@pytest.fixture(scope="module")
def run(tiny_zoo, tmp_path_factory):
    """One finished run for all tests of this file."""
    import yaml

    folder = tmp_path_factory.mktemp("export")
    plain = {
        "base": str(tiny_zoo.base),
        "experts": {n: str(p) for n, p in {**tiny_zoo.experts, **tiny_zoo.adapters}.items()},
        "objectives": [
            {"name": s, "lm_eval": str(t), "items": 20} for s, t in tiny_zoo.tasks.items()
        ],
        "budget": {"evaluations": 6},
        "workers": {"threads": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    start(read_config(path), folder / "run")
    return folder / "run"


def test_an_export_loads_and_scores_exactly_as_journaled(run, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = export(run, "3", tmp_path / "merged")
    search = read_history(run).trials["3"].search or {}
    assert done.rescored == {name: pytest.approx(e.score) for name, e in search.items()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer("sort: b a =", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()


def test_the_exported_bytes_are_base_plus_coefficients_times_deltas(run, tmp_path, tiny_zoo):
    from safetensors.torch import load_file

    export(run, "expert:sort", tmp_path / "expert", verify=False)
    merged = load_file(tmp_path / "expert" / "model.safetensors")
    expert = load_file(tiny_zoo.experts["sort"] / "model.safetensors")
    assert set(merged) == set(expert)
    for name, tensor in expert.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7)
    export(run, "base", tmp_path / "base", verify=False)
    merged = load_file(tmp_path / "base" / "model.safetensors")
    for name, tensor in load_file(tiny_zoo.base / "model.safetensors").items():
        assert torch.equal(merged[name], tensor)


def test_the_folder_tells_what_it_is(run, tmp_path):
    export(run, "2", tmp_path / "merged", max_shard_bytes=20_000, verify=False)
    card = (tmp_path / "merged" / "README.md").read_text()
    history = read_history(run)
    estimate = (history.trials["2"].search or {})["sort"]
    assert f"{estimate.score:.4f} ± {estimate.standard_error:.4f} (20)" in card
    assert history.trials["2"].recipe_digest in card
    assert str(run.parent) not in card
    recipe = json.loads((tmp_path / "merged" / RECIPE_FILE).read_text())
    assert recipe["experts"] == list(history.started.experts)
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    assert (tmp_path / "merged" / "generation_config.json").exists()


def test_refusals(run, tmp_path):
    with pytest.raises(RunError, match=r"a number below 6 or one of base, .*but got '99'"):
        export(run, "99", tmp_path / "x")
    with pytest.raises(RunError, match="no run directory"):
        export(tmp_path, "1", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    with pytest.raises(EvomergeError, match="full"):
        export(run, "1", tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["precious"]


def test_a_model_that_scores_otherwise_is_refused(run, tmp_path, monkeypatch):
    from evomerge import export as module

    real = module.rescore

    def other(folder: Path, *arguments):
        """As if the weights on disk had been written wrongly."""
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors = {name: torch.zeros_like(t) for name, t in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return real(folder, *arguments)

    monkeypatch.setattr(module, "rescore", other)
    history = read_history(run)
    best = best_in_mean(history.scored(), history.objectives)
    with pytest.raises(RunError, match="scores as journaled, but"):
        export(run, best.name, tmp_path / "merged")
