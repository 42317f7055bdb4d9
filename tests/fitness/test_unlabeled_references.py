"""What experts say about texts is computed once, whoever asks and whatever happened to the file."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evomerge.datatypes import Objective, Split
from fitness.kept_tensors import Room, read_or_make
from fitness.unlabeled import UnlabeledFitness
from tests.support.live_zoo import Zoo, write_texts

TEXTS = ["a b c d e f", "b", "c d e", "f e d 1 2"]
MEASURES = ["kl_to_experts", "alignment_to:sum"]


@pytest.fixture
def zoo(model, tokenizer, tmp_path):
    return Zoo(model, tokenizer, tmp_path / "cache")


@pytest.fixture
def text(tmp_path):
    return write_texts(tmp_path / "texts.jsonl", TEXTS)


def bound(zoo: Zoo, text: str, measures: list[str] = MEASURES, **options: Any) -> UnlabeledFitness:
    objectives = [Objective(f"o{number}") for number in range(len(measures))]
    options = {"positions": 4, "held_out": 1, **options}
    fitness = UnlabeledFitness(objectives, measures=measures, text=text, **options)
    fitness.bind(zoo.live)
    return fitness


def files(zoo: Zoo) -> list[Path]:
    return sorted((zoo.live.cache / "references").glob("*.safetensors"))


def answers(zoo: Zoo, fitness: UnlabeledFitness) -> list[list[float]]:
    zoo.merge()
    found = [fitness.respond(split, range(len(fitness.items(split)))) for split in Split]
    zoo.live.model.load_state_dict(zoo.weights["base"])
    return np.concatenate(found).tolist()


def test_experts_are_written_once_and_never_again(zoo, text):
    first = answers(zoo, bound(zoo, text))
    assert zoo.written == ["sort", "sum", "base"]
    assert len(files(zoo)) == 4  # two experts, two splits
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    zoo.live.model.register_forward_hook(count)
    second = bound(zoo, text)
    assert zoo.written == ["sort", "sum", "base"]
    assert forwards == 2  # a look at the first text of each split, by the base
    assert answers(zoo, second) == first


@pytest.mark.parametrize(
    "options",
    [{"positions": 3}, {"max_tokens": 3}, {"reference_dtype": "float32"}, {"seed": 5}],
)
def test_other_settings_have_other_files(zoo, text, options):
    bound(zoo, text, held_out=2)
    before = {file: file.read_bytes() for file in files(zoo)}
    bound(zoo, text, **{"held_out": 2, **options})
    assert len(files(zoo)) > len(before)
    assert all(file.read_bytes() == content for file, content in before.items())


def test_other_models_have_other_files(zoo, text):
    bound(zoo, text)
    zoo.live.digest = "other"
    bound(zoo, text)
    assert len(files(zoo)) == 8


def _flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]


@pytest.mark.parametrize(
    "damage",
    [_flip, lambda content: content[:-9], lambda content: content[:0], lambda content: content[1:]],
    ids=["a flipped bit", "torn", "empty", "something else"],
)
def test_a_damaged_file_is_made_again(zoo, text, damage):
    fitness = bound(zoo, text)
    expected = answers(zoo, fitness)
    whole = [file.read_bytes() for file in files(zoo)]
    del fitness
    for file, content in zip(files(zoo)[:2], whole, strict=False):
        file.unlink()  # a file that is mapped must not change
        file.write_bytes(damage(content))
    zoo.written.clear()
    assert answers(zoo, bound(zoo, text)) == expected
    assert zoo.written != []
    assert [file.read_bytes() for file in files(zoo)] == whole


def test_the_files_are_safetensors_that_others_can_read(zoo, text):
    bound(zoo, text, measures=["js_to:sum"], held_out=None)
    (file,) = files(zoo)
    tensors = load_file(file)
    n_positions = sum(min(4, len(zoo.live.tokenizer(one).input_ids)) for one in TEXTS)
    told = tensors["log_probabilities"].float().exp().sum(dim=-1)
    assert told.shape == (n_positions,)
    assert told == pytest.approx(1.0, abs=2e-3)


def test_nothing_is_written_without_a_comparison(zoo, text):
    bound(zoo, text, measures=["entropy", "perplexity"])
    assert zoo.written == []
    assert files(zoo) == []


def test_several_writers_make_one_file(tmp_path):
    path = tmp_path / "deep" / "file.safetensors"
    barrier, made = threading.Barrier(4), []

    def fill(tensors: dict[str, torch.Tensor]) -> None:
        made.append(len(list(path.parent.glob("*.safetensors"))))
        tensors["numbers"].copy_(torch.arange(1000.0))

    def want(_: int) -> torch.Tensor:
        barrier.wait()
        return read_or_make(path, {"numbers": Room((1000,), torch.float32)}, fill)["numbers"]

    with ThreadPoolExecutor(4) as pool:
        for numbers in pool.map(want, range(4)):
            assert torch.equal(numbers, torch.arange(1000.0))
    assert made == [0]  # once, and under another name while it was not complete
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def fill(tensors: dict[str, torch.Tensor]) -> None:
        raise ValueError("no")

    path = tmp_path / "file.safetensors"
    with pytest.raises(ValueError, match="no"):
        read_or_make(path, {"numbers": Room((3, 2), torch.bfloat16)}, fill)
    assert not [file for file in tmp_path.iterdir() if not file.name.endswith(".lock")]
