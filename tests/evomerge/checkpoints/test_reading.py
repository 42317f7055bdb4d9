"""Opening model folders: names, ties, digests, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import reading
from evomerge.checkpoints.reading import Checkpoint, TensorFacts
from evomerge.errors import CheckpointError

Make = Callable[..., Any]

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "bert",
    "mixtral",
    "xlm",
)


def _edit(file: Path, **changes: Any) -> None:
    plain = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in plain.items() if v is not ...}))


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_values_are_those_of_the_loaded_model(make_folder: Make, family: str) -> None:
    folder = make_folder("m", family)
    checkpoint = Checkpoint.open(folder)
    model = getattr(transformers, checkpoint.architecture).from_pretrained(folder)
    state = model.state_dict()
    floats = {name for name, tensor in state.items() if tensor.is_floating_point()}

    assert set(checkpoint.tensors) | set(checkpoint.tied) == floats
    assert not set(checkpoint.tensors) & set(checkpoint.tied)
    for name, facts in checkpoint.tensors.items():
        assert torch.equal(checkpoint.read(name), state[name])
        assert facts == TensorFacts(name, tuple(state[name].shape), "float32")
    for alias, owner in checkpoint.tied.items():
        assert state[alias].data_ptr() == state[owner].data_ptr()
    assert checkpoint.n_bytes == sum(p.nbytes for p in model.parameters())
    assert checkpoint.vocab_size == 32
    assert checkpoint.dtype == "float32"
    assert checkpoint.model_class is type(model)


def test_sharded_and_single_have_the_same_tensors_and_digest(make_folder: Make) -> None:
    single = Checkpoint.open(make_folder("single"))
    sharded = Checkpoint.open(make_folder("sharded", shard="4KB"))
    assert len(sharded.files) > 2
    assert dict(sharded.tensors) == dict(single.tensors)
    assert all(torch.equal(sharded.read(n), single.read(n)) for n in single.tensors)
    assert sharded.digest == single.digest


def test_reading_maps_the_file_and_does_not_copy(make_folder: Make) -> None:
    checkpoint = Checkpoint.open(make_folder("m"))
    name = next(iter(checkpoint.tensors))
    assert checkpoint.read(name).data_ptr() == checkpoint.read(name).data_ptr()


def test_a_hub_style_gpt2_without_prefix_and_with_mask_buffers_opens(make_folder: Make) -> None:
    folder = make_folder("hub", "gpt2")
    plain = Checkpoint.open(folder)
    digest = plain.digest

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)

    _rewrite(folder, rename)
    checkpoint = Checkpoint.open(folder)
    assert dict(checkpoint.tensors) == dict(plain.tensors)
    assert checkpoint.digest == digest
    assert checkpoint.notes == ("ignored computed buffers: h.0.attn.bias",)


def test_norms_of_the_first_berts_are_found_under_their_old_names(make_folder: Make) -> None:
    folder = make_folder("old", "bert")
    digest = Checkpoint.open(folder).digest

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            tensors[old.replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(name)

    _rewrite(folder, rename)
    assert Checkpoint.open(folder).digest == digest


def test_tied_weights_are_found_under_either_name(make_folder: Make) -> None:
    owner, alias = "model.embed_tokens.weight", "lm_head.weight"
    folder = make_folder("m", "qwen2")
    digest = Checkpoint.open(folder).digest
    for change in (
        lambda tensors: tensors.update({alias: tensors[owner].clone()}),  # both
        lambda tensors: tensors.pop(owner),  # the alias only
    ):
        _rewrite(folder, change)
        checkpoint = Checkpoint.open(folder)
        assert dict(checkpoint.tied) == {alias: owner}
        assert alias not in checkpoint.tensors
        assert checkpoint.digest == digest
        assert checkpoint.canonical(alias) == owner


def test_weights_that_should_be_tied_and_differ_are_kept_apart(make_folder: Make) -> None:
    folder = make_folder("m", "qwen2")
    _rewrite(folder, lambda t: t.update({"lm_head.weight": torch.ones(32, 16)}))
    checkpoint = Checkpoint.open(folder)
    assert not checkpoint.tied
    assert "lm_head.weight" in checkpoint.tensors
    assert "should be tied and differ" in checkpoint.notes[0]


def test_an_unknown_model_type_keeps_the_names_of_the_file(make_folder: Make) -> None:
    folder = make_folder("m")
    _edit(folder / "config.json", model_type="martian", architectures=["MartianLM"])
    checkpoint = Checkpoint.open(folder)
    assert "model.layers.0.self_attn.q_proj.weight" in checkpoint.tensors
    assert "no model type 'martian'" in checkpoint.notes[0]
    assert checkpoint.model_class is None


def test_fused_experts_are_converted_as_transformers_does(make_folder: Make) -> None:
    checkpoint = Checkpoint.open(make_folder("m", "mixtral"))
    assert "model.layers.0.mlp.experts.gate_up_proj" in checkpoint.tensors
    assert "converted by transformers" in checkpoint.notes[0]


def test_a_missing_architecture_means_a_causal_language_model(make_folder: Make) -> None:
    folder = make_folder("m")
    _edit(folder / "config.json", architectures=...)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.architecture == "llama"
    assert checkpoint.model_class is transformers.LlamaForCausalLM


def test_the_architecture_of_an_untrusted_file_must_be_a_model_class(make_folder: Make) -> None:
    folder = make_folder("m")
    _edit(folder / "config.json", architectures=["pipeline"])
    assert Checkpoint.open(folder).model_class is transformers.LlamaForCausalLM


# Digests


def test_the_digest_is_content_not_place(make_folder: Make) -> None:
    first, second = Checkpoint.open(make_folder("a")), Checkpoint.open(make_folder("b"))
    assert first.digest == second.digest
    assert len(first.digest) >= 16
    assert Checkpoint.open(make_folder("c", seed=1)).digest != first.digest


def test_one_changed_value_changes_the_digest(make_folder: Make) -> None:
    folder = make_folder("a")
    digest = Checkpoint.open(folder).digest
    _rewrite(folder, lambda t: t["model.norm.weight"][0].add_(1e-3))
    assert Checkpoint.open(folder).digest != digest


def test_the_digest_is_remembered_and_the_memory_may_be_lost(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder("a")
    digest = Checkpoint.open(folder).digest
    (memo,) = (tmp_path / "cache" / "digests").iterdir()

    def forbidden(*_: object) -> str:
        raise AssertionError("the weights were read again")

    with monkeypatch.context() as patched:
        patched.setattr(reading, "digest_tensors", forbidden)
        assert Checkpoint.open(folder).digest == digest
    memo.write_text("torn")
    assert Checkpoint.open(folder).digest == digest
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("EVOMERGE_CACHE", str(blocked))
    assert Checkpoint.open(folder).digest == digest


def test_the_tokenizer_digest_ignores_what_does_not_change_tokens(
    make_folder: Make, save_tokenizer: Make
) -> None:
    folder = make_folder("m")
    assert Checkpoint.open(folder).tokenizer_digest is None
    save_tokenizer(folder, ["a", "b"])
    digest = Checkpoint.open(folder).tokenizer_digest
    _edit(folder / "tokenizer.json", truncation=None, version="2.0")
    assert Checkpoint.open(folder).tokenizer_digest == digest
    save_tokenizer(folder, ["a", "c"])
    assert Checkpoint.open(folder).tokenizer_digest != digest


def test_merges_as_text_and_as_pairs_are_the_same(make_folder: Make) -> None:
    folder = make_folder("m")
    digests = set()
    for merges in (["a b"], [["a", "b"]]):
        model = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges}
        (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
        digests.add(Checkpoint.open(folder).tokenizer_digest)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    digests.add(Checkpoint.open(folder).tokenizer_digest)
    assert len(digests) == 1


# Refusals: rule, fact, remedy


def _refusal(folder: Path | str, **flags: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder, **flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    message = _refusal(tmp_path / "nowhere")
    assert message == (
        f"a model must be a folder or a Hub id, but {tmp_path / 'nowhere'} is no existing folder: "
        "correct the path"
    )


def test_a_missing_config_is_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    (folder / "config.json").unlink()
    assert _refusal(folder) == (
        f"a model folder must hold config.json, but {folder} does not: give the folder that "
        "save_pretrained wrote"
    )


def test_a_torn_config_is_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    (folder / "config.json").write_text('{"model_type": ')
    message = _refusal(folder)
    assert "config.json must be readable JSON" in message
    assert message.endswith("copy or download it again")


def test_an_impossible_config_is_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    _edit(folder / "config.json", hidden_size="wide")
    message = _refusal(folder)
    assert "config.json must describe a model that transformers can build" in message
    assert message.endswith("copy or download it again")


def test_a_folder_without_weights_is_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    (folder / "model.safetensors").unlink()
    assert _refusal(folder) == (
        "a model folder must hold model.safetensors or model.safetensors.index.json, but "
        f"{folder} holds neither: give the folder that save_pretrained wrote"
    )


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(make_folder: Make, keep: float) -> None:
    file = make_folder("m") / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    message = _refusal(file.parent)
    assert message.startswith(f"a safetensors file must be complete, but {file} (")
    assert message.endswith("copy or download it again")


def test_a_missing_shard_is_refused(make_folder: Make) -> None:
    folder = make_folder("m", shard="4KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert _refusal(folder) == (
        f"every shard that the index names must be there, but {shard.name} is missing in "
        f"{folder}: copy or download the model again"
    )


def test_an_index_that_leaves_the_folder_is_refused(make_folder: Make) -> None:
    folder = make_folder("m", shard="4KB")
    _edit(folder / "model.safetensors.index.json", weight_map={"a": "../../secret"})
    assert "must lie beside their index, but" in _refusal(folder)


def test_a_missing_tensor_is_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    _rewrite(folder, lambda t: t.pop("model.norm.weight"))
    assert _refusal(folder) == (
        f"files must hold every weight of the model, but {folder} lacks model.norm.weight of "
        "LlamaForCausalLM: copy or download it again"
    )


def test_a_misspelled_tensor_is_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    _rewrite(folder, lambda t: t.update({"model.nrm.weight": t.pop("model.norm.weight")}))
    assert f"{folder} lacks model.norm.weight of" in _refusal(folder)


def test_shapes_that_contradict_the_config_are_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    _rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(15)}))
    assert _refusal(folder) == (
        f"shapes must be those of config.json, but model.norm.weight in {folder} is [15] instead "
        "of [16]: copy or download config.json and weights of the same version"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_the_digest(make_folder: Make, bad: float) -> None:
    folder = make_folder("m")
    _rewrite(folder, lambda t: t["model.norm.weight"][:3].fill_(bad))
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError) as caught:
        _ = checkpoint.digest
    assert str(caught.value) == (
        f"weights must be finite, but 3 of 16 values of model.norm.weight in {folder} are NaN or "
        "infinite: download the checkpoint again, or use one from before the training diverged"
    )


def test_quantised_weights_are_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    _edit(folder / "config.json", quantization_config={"quant_method": "gptq"})
    assert _refusal(folder) == (
        f"weights must be floating-point numbers, but {folder} is quantised (gptq): give the "
        "original, or load it, call dequantize() and save it"
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_eight_bit_weights_are_refused(make_folder: Make, dtype: torch.dtype) -> None:
    folder = make_folder("m")
    _rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(16).to(dtype)}))
    message = _refusal(folder)
    assert message.startswith("weights must be float64, float32, float16, bfloat16, but model.norm")
    assert message.endswith("give a checkpoint that is not quantised")


def test_an_adapter_as_base_is_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "is a PEFT adapter: list it under experts" in _refusal(folder)


# Untrusted files


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_only_by_the_flag(make_folder: Make, zipped: bool) -> None:
    folder = make_folder("m")
    digest = Checkpoint.open(folder).digest
    torch.save(
        load_file(folder / "model.safetensors"),
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    (folder / "model.safetensors").unlink()
    message = _refusal(folder)
    assert "pickled files can run code" in message
    assert "`allow_pickle: true`" in message
    assert Checkpoint.open(folder, allow_pickle=True).digest == digest


def test_a_pickle_with_code_is_refused_even_with_the_flag(
    make_folder: Make, tmp_path: Path
) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "attacked",))

    folder = make_folder("m")
    (folder / "model.safetensors").unlink()
    torch.save({"w": Attack()}, folder / "pytorch_model.bin")
    assert "tensors only" in _refusal(folder, allow_pickle=True)
    assert not (tmp_path / "attacked").exists()


def test_a_truncated_pickle_is_refused(make_folder: Make) -> None:
    folder = make_folder("m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    assert "copy or download it again" in _refusal(folder, allow_pickle=True)


def test_remote_code_only_by_the_flag(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = make_folder("m")
    digest = Checkpoint.open(folder).digest
    (folder / "martian.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MartianConfig(LlamaConfig):\n    model_type = 'martian'\n"
        "class MartianForCausalLM(LlamaForCausalLM):\n    config_class = MartianConfig\n"
    )
    _edit(
        folder / "config.json",
        model_type="martian",
        architectures=["MartianForCausalLM"],
        auto_map={
            "AutoConfig": "martian.MartianConfig",
            "AutoModelForCausalLM": "martian.MartianForCausalLM",
        },
    )
    message = _refusal(folder)
    assert "code from a model folder can do anything" in message
    assert "`trust_remote_code: true`" in message
    checkpoint = Checkpoint.open(folder, trust_remote_code=True)
    assert checkpoint.model_class.__name__ == "MartianForCausalLM"
    assert checkpoint.digest == digest


# The Hub


def test_what_is_no_folder_is_downloaded(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder("snapshot")
    calls: list[dict[str, Any]] = []

    def download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = Checkpoint.open("some/model", revision="abc")
    assert checkpoint.path == folder
    assert checkpoint.source == "some/model"
    assert calls[0]["repo_id"] == "some/model"
    assert calls[0]["revision"] == "abc"
    assert not {"*.bin", "*.py"} & set(calls[0]["allow_patterns"])
    Checkpoint.open("some/model", allow_pickle=True, trust_remote_code=True)
    assert {"*.bin", "*.py"} <= set(calls[1]["allow_patterns"])


def test_a_hub_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo_id: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("no network.\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert _refusal("some/model") == (
        "a model must be a folder or a Hub id, but some/model is no existing folder and the Hub "
        "answers: no network: correct the path, or check the network and `hf auth login`"
    )
