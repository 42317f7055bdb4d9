"""A pool of adapters, from a search to one adapter."""

import numpy as np
import pytest
import torch
import transformers

from evomerge.cli import main
from evomerge.config import read_config
from evomerge.errors import EvomergeError
from evomerge.export import export, export_adapter
from evomerge.history import read_history
from evomerge.search import start
from tests.support.adapters import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def pool_run(tiny_zoo, tmp_path, write_config):
    """A run over 20 adapters with one coefficient each."""

    def run(**space):
        options = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "up_proj"]}
        experts = {}
        for k in range(20):
            folder = tmp_path / "pool" / f"adapter{k}"
            save_adapter(folder, tiny_zoo.base, seed=k, size=0.05, **options)
            experts[f"adapter{k}"] = str(folder)
        config = write_config(
            experts=experts,
            space={"coefficients": {"map": "global", "low": -0.5, "high": 1.0}, **space},
            budget={"evaluations": 6},
        )
        start(read_config(config), tmp_path / "run")
        return tmp_path / "run"

    return run


def test_a_pool_is_searched_and_exported_as_a_model_and_as_one_adapter(
    pool_run, tiny_zoo, tmp_path, monkeypatch, capsys
):
    from peft import PeftModel

    run = pool_run()
    assert len(read_history(run).trials) >= 6
    merged = export(run, "3", tmp_path / "merged")
    assert merged.rescored is not None
    assert export_adapter(run, "3", tmp_path / "adapter") == 0.0
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_zoo.base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    ).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        theirs, ours = adapted(ids).logits.numpy(), whole(ids).logits.numpy()
    np.testing.assert_allclose(theirs, ours, atol=2e-4)

    arguments = ["evomerge", "export", str(run), "3", "--as-adapter", "--rank", "3"]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(tmp_path / "small")])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert "rank 3 leaves out" in capsys.readouterr().out
    assert (tmp_path / "small" / "adapter_model.safetensors").is_file()


def test_what_is_not_in_factors_is_no_adapter(pool_run, tmp_path):
    run = pool_run(operator="ties")
    with pytest.raises(EvomergeError, match="an adapter holds factors"):
        export_adapter(run, "1", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
