"""Merged models on disk: loadable, complete, or absent."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.reading import Checkpoint
from evomerge.checkpoints.writing import write_model
from evomerge.errors import CheckpointError

Make = Callable[..., Any]


def _shifted(base: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    for name in reversed(list(base.tensors)):
        yield name, base.read(name) + 0.5


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 6_000])
@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "gpt2", "gpt_neox", "bert", "phi3", "mixtral"]
)
def test_what_is_written_is_what_from_pretrained_loads(
    make_folder: Make, tmp_path: Path, family: str, shard_bytes: int
) -> None:
    base = Checkpoint.open(make_folder("base", family))
    folder = write_model(
        tmp_path / "deep" / "merged", base, _shifted(base), card="# A", max_shard_bytes=shard_bytes
    )
    model, report = getattr(transformers, base.architecture).from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    state = model.state_dict()
    for name in base.tensors:
        assert torch.equal(state[name], base.read(name) + 0.5)
    for alias, owner in base.tied.items():
        assert torch.equal(state[alias], state[owner])
    written = Checkpoint.open(folder)
    assert dict(written.tensors) == dict(base.tensors)
    assert (len(written.files) > 1) == (shard_bytes == 6_000)
    assert (folder / "README.md").read_text() == "# A"
    if len(written.files) > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == base.n_bytes
        largest = max(facts.n_bytes for facts in base.tensors.values())
        sizes = [sum(t.nbytes for t in load_file(file).values()) for file in written.files]
        assert all(size <= max(shard_bytes, largest) for size in sizes)


def test_the_base_written_unchanged_has_its_digest(make_folder: Make, tmp_path: Path) -> None:
    base = Checkpoint.open(make_folder("base", shard="4KB"))
    same = ((name, base.read(name)) for name in base.tensors)
    assert Checkpoint.open(write_model(tmp_path / "m", base, same, card="")).digest == base.digest


def test_names_are_those_of_the_bases_files(make_folder: Make, tmp_path: Path) -> None:
    path = make_folder("base", "gpt2")
    tensors = load_file(path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, path / "model.safetensors", metadata={"format": "pt"})
    base = Checkpoint.open(path)
    folder = write_model(tmp_path / "m", base, _shifted(base), card="")
    assert set(load_file(folder / "model.safetensors")) == set(bare)


def test_tokenizer_and_configuration_come_along(
    make_folder: Make, save_tokenizer: Make, tmp_path: Path
) -> None:
    path = make_folder("base")
    save_tokenizer(path, ["a", "b"], "{{ messages }}")
    (path / "trainer_state.json").write_text("{}")
    (path / "code.py").write_text("")
    base = Checkpoint.open(path)
    folder = write_model(tmp_path / "m", base, _shifted(base), card="")
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert not {"trainer_state.json", "code.py"} & names
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("b") == 2
    assert tokenizer.chat_template == "{{ messages }}"


def _refusal(folder: Path, base: Checkpoint, tensors: Any) -> str:
    before = set(folder.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        write_model(folder, base, tensors, card="")
    message = str(caught.value)
    assert "\n" not in message
    assert set(folder.parent.iterdir()) == before
    return message


def test_an_existing_folder_is_never_overwritten(make_folder: Make, tmp_path: Path) -> None:
    base = Checkpoint.open(make_folder("base"))
    folder = tmp_path / "merged"
    folder.mkdir()
    write_model(folder, base, _shifted(base), card="")  # empty: fine
    assert _refusal(folder, base, _shifted(base)) == (
        f"a model is written to a new or empty folder, but {folder} is there already: give "
        "another one, or remove it"
    )


def test_incomplete_tensors_leave_nothing_behind(make_folder: Make, tmp_path: Path) -> None:
    base = Checkpoint.open(make_folder("base"))
    everything = list(_shifted(base))
    name = "model.norm.weight"
    lacking = [(n, t) for n, t in everything if n != name]
    for tensors, fact in (
        (lacking, f"but {name} is missing (1 in all)"),
        ([*everything, everything[0]], "comes twice"),
        ([("x", torch.ones(1))], "x is not one of the base's"),
        ([*lacking, (name, torch.ones(3))], f"but {name} is ((3,), 'float32')"),
        ([*lacking, (name, torch.ones(16).bfloat16())], "cast it before writing"),
    ):
        assert fact in _refusal(tmp_path / "merged", base, tensors)


def test_a_crash_of_the_producer_leaves_nothing_behind(make_folder: Make, tmp_path: Path) -> None:
    base = Checkpoint.open(make_folder("base"))

    def crash() -> Iterator[tuple[str, torch.Tensor]]:
        yield next(_shifted(base))
        raise ZeroDivisionError

    before = set(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):
        write_model(tmp_path / "merged", base, crash(), card="", max_shard_bytes=1)
    assert set(tmp_path.iterdir()) == before


def test_a_disk_that_is_full_is_refused_and_cleaned(make_folder: Make, tmp_path: Path) -> None:
    base = Checkpoint.open(make_folder("base"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
    try:
        message = _refusal(tmp_path / "merged", base, _shifted(base))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith(
        f"the merged model must be written completely, but {tmp_path / 'merged'} cannot be ("
    )
    assert message.endswith("nothing was left behind")


def test_a_place_that_cannot_be_written_is_refused(make_folder: Make, tmp_path: Path) -> None:
    base = Checkpoint.open(make_folder("base"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="give another folder; nothing"):
        write_model(tmp_path / "file" / "merged", base, _shifted(base), card="")
