"""What is wrong with the input is said before any work, in a sentence, and nothing is left."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from evomerge.config import read_config
from evomerge.errors import CheckpointError, EvomergeError, IncompatibleError, RunError, TaskError
from evomerge.search import start


@pytest.fixture
def expert(tiny_zoo, tmp_path):
    """A copy of an expert, to be damaged."""
    folder = tmp_path / "expert"
    shutil.copytree(tiny_zoo.experts["sort"], folder)
    return folder


def damage_weights(folder: Path, name: str, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def other_shape(folder: Path) -> None:
    damage_weights(folder, "model.norm.weight", lambda t: t[:-1].clone())


def not_finite(folder: Path) -> None:
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = float("nan")
        return tensor

    damage_weights(folder, "model.layers.1.mlp.up_proj.weight", change)


def other_architecture(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.rmtree(folder)
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(
        folder
    )


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    (first, one), (second, two) = list(vocabulary.items())[-2:]
    vocabulary[first], vocabulary[second] = two, one
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (missing, CheckpointError, "expert"),
        (truncated, CheckpointError, "model.safetensors"),
        (other_shape, CheckpointError, "model.norm.weight"),
        (not_finite, CheckpointError, "model.layers.1.mlp.up_proj.weight"),
        (other_architecture, IncompatibleError, "gpt2"),
        (other_tokenizer, IncompatibleError, "tokenizer"),
    ],
)
def test_a_bad_expert_is_refused(write_config, expert, tmp_path, damage, error, message):
    damage(expert)
    config = read_config(write_config(experts={"sort": str(expert)}))
    refused(config, tmp_path / "run", error, message)


def test_a_missing_base_is_refused(write_config, tmp_path):
    config = read_config(write_config(base=str(tmp_path / "nowhere")))
    refused(config, tmp_path / "run", CheckpointError, "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_eval": "zoo_sorrt.yaml"}, "zoo_sorrt.yaml"),
        ({"metric": "f1"}, "f1"),
        ({"items": 10_000}, "10000"),
    ],
)
def test_a_bad_task_is_refused(write_config, tmp_path, change, message):
    config = read_config(write_config())
    objective = config.objectives[0].model_copy(update=change)
    config = config.model_copy(update={"objectives": [objective]})
    refused(config, tmp_path / "run", TaskError, message)


def test_a_task_whose_items_overlap_is_refused(write_config, tiny_zoo, tmp_path):
    text = tiny_zoo.tasks["sort"].read_text()
    search = tiny_zoo.folder / "data" / "sort.search.jsonl"
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(search.read_text().splitlines(keepends=True)[:3]))
    task = tmp_path / "overlapping.yaml"
    task.write_text(
        text.replace(str(tiny_zoo.folder / "data" / "sort.held_out.jsonl"), str(held_out))
    )
    objective = {"name": "sort", "lm_eval": str(task)}
    config = read_config(write_config(objectives=[objective]))
    refused(config, tmp_path / "run", TaskError, "held-out")


def test_items_that_one_objective_searches_and_another_holds_out_are_refused(
    write_config, tiny_zoo, tmp_path
):
    text = tiny_zoo.tasks["sort"].read_text()
    swapped = tmp_path / "swapped.yaml"
    swapped.write_text(
        text.replace("zoo_sort", "swapped")
        .replace("sort.search", "sort.X")
        .replace("sort.held_out", "sort.search")
        .replace("sort.X", "sort.held_out")
    )
    objectives = [
        {"name": "a", "lm_eval": str(tiny_zoo.tasks["sort"])},
        {"name": "b", "lm_eval": str(swapped)},
    ]
    config = read_config(write_config(objectives=objectives))
    refused(config, tmp_path / "run", TaskError, "is held out in")


def test_an_unwritable_run_directory_is_refused(write_config, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="must be writable, but"):
        start(read_config(write_config()), tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"coefficients": {"map": "depth_splin"}}}, "depth_spline"),
        ({"space": {"coefficients": {"low": 1.0, "high": 0.0}}}, "low"),
        ({"space": {"operator": "task_arithmetik"}}, "task_arithmetic"),
        ({"sampler": "nsga_2"}, "nsga2"),
        ({"sampler": {"name": "nsga2", "populatoin": 8}}, "populatoin"),
        ({"sampler": {"name": "nsga2", "population": 1}}, "population"),
        ({"sampler": "cma_es"}, "weights"),
        ({"sampler": {"name": "cma_es", "weights": {"sort": 1}}}, "sort, twice, last"),
        ({"workers": {"device": "abacus"}}, "abacus"),
    ],
)
def test_a_bad_option_is_refused(write_config, tmp_path, changes, message):
    refused(read_config(write_config(**changes)), tmp_path / "run", EvomergeError, message)


def refused(config, run: Path, error: type[EvomergeError], message: str) -> None:
    with pytest.raises(error) as caught:
        start(config, run)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not run.exists()
