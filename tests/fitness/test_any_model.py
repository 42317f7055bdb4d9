"""A search over models that are no language models, from checkpoints on disk to an export."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from evomerge.config import read_config
from evomerge.datatypes import Split
from evomerge.export import export
from evomerge.reporting.rows import best_in_mean
from evomerge.search import start
from tests.support.any_model import Images, Sentences

SIZE = 8


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def vit() -> nn.Module:
    config = ViTConfig(
        image_size=SIZE, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config)


def write_models(folder: Path, base: nn.Module, task: Any, column: int) -> dict[str, str]:
    """A base, an expert trained on the task, and one that is perturbed."""
    base.save_pretrained(folder / "base")
    start_from = {name: value.clone() for name, value in base.state_dict().items()}
    optimizer = torch.optim.Adam(base.parameters(), lr=5e-3)
    for _ in range(40):
        answers = task.respond(base, None, task.items("search"))
        told = torch.stack([answer.reshape(-1)[column] for answer in answers])
        optimizer.zero_grad()
        (-told.mean()).backward()
        optimizer.step()
    base.save_pretrained(folder / "trained")
    generator = torch.Generator().manual_seed(2)
    noise = {n: v + 0.05 * torch.randn(v.shape, generator=generator) for n, v in start_from.items()}
    base.load_state_dict(noise)
    base.save_pretrained(folder / "perturbed")
    return {name: str(folder / name) for name in ("base", "trained", "perturbed")}


@pytest.fixture
def write_run(tmp_path):
    def write(models: dict[str, str], objectives: list[dict[str, Any]], **changes: Any) -> Path:
        plain = {
            "base": models["base"],
            "experts": {name: models[name] for name in ("trained", "perturbed")},
            "objectives": objectives,
            "budget": {"evaluations": 5},
            "workers": {"threads": 1},
            "baselines": {"scales": [0.3]},
            **changes,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(plain))
        return path

    return write


@pytest.fixture
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_a_sequence_classifier_is_searched_and_exported(seeded, write_run, tmp_path):
    models = write_models(tmp_path, bert(), Sentences(), column=1)
    target = "tests.support.any_model:Sentences"
    objectives = [{"name": name, "python": target} for name in ("accuracy", "log_probability")]
    history = start(read_config(write_run(models, objectives)), tmp_path / "run")
    assert history.finished == "budget spent"
    assert not [trial for trial in history.trials.values() if trial.failure is not None]
    search = history.trials["expert:trained"].search
    assert search is not None
    assert search["accuracy"].score > (history.trials["base"].search or {})["accuracy"].score
    held_out = history.trials["expert:trained"].held_out
    assert held_out is not None
    assert held_out["accuracy"].n_items == 24
    candidates = [trial for trial in history.scored(Split.SEARCH) if not trial.is_baseline]
    best = best_in_mean(candidates, history.objectives)
    assert best is not None
    done = export(tmp_path / "run", best.name, tmp_path / "merged")
    assert done.rescored is not None
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert type(merged) is BertForSequenceClassification
    task = Sentences()
    with torch.no_grad():
        answers = task.respond(merged.eval(), None, task.items("search")).double().mean(0)
    for answer, estimate in zip(answers.tolist(), (best.search or {}).values(), strict=True):
        assert answer == pytest.approx(estimate.score, rel=1e-5)


def test_an_image_classifier_is_searched_and_exported(seeded, write_run, tmp_path):
    models = write_models(tmp_path, vit(), Images(SIZE), column=0)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(models["base"])
    options = {"arguments": {"size": SIZE}}
    objectives = [
        {"name": "shades", "python": "tests.support.any_model:Images", "options": options}
    ]
    config = write_run(models, objectives, sampler="sobol")
    history = start(read_config(config), tmp_path / "run")
    assert not [trial for trial in history.trials.values() if trial.failure is not None]
    base = (history.trials["base"].search or {})["shades"]
    trained = (history.trials["expert:trained"].search or {})["shades"]
    assert trained.score > base.score
    assert trained.n_items == 18
    export(tmp_path / "run", "2", tmp_path / "merged")
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    assert type(merged) is ViTForImageClassification
    assert ViTImageProcessor.from_pretrained(tmp_path / "merged").size["height"] == SIZE
    task = Images(SIZE)
    with torch.no_grad():
        answers = torch.stack(task.respond(merged, None, task.items("search")))
    candidate = (history.trials["2"].search or {})["shades"]
    assert float(answers.mean()) == pytest.approx(candidate.score, rel=1e-5)


def test_an_answer_that_is_not_finite_fails_its_candidate_and_names_the_objective(
    seeded, write_run, tmp_path
):
    models = write_models(tmp_path, vit(), Images(SIZE), column=0)
    options = {"arguments": {"size": SIZE, "breaks": True}}
    target = "tests.support.any_model:Images"
    objectives = [{"name": "shades", "python": target, "options": options}]
    config = write_run(models, objectives, budget={"evaluations": 1})
    history = start(read_config(config), tmp_path / "run")
    assert history.trials["base"].failure is None
    failure = history.trials["expert:trained"].failure
    assert failure is not None
    assert (failure.kind, failure.message) == (
        "non_finite",
        "1 of 18 answers to shades are not finite",
    )
