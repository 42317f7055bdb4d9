"""PEFT adapters: deltas must be what PEFT merges."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import adapters
from evomerge.checkpoints.adapters import Adapter
from evomerge.checkpoints.experts import open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.errors import CheckpointError, IncompatibleError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

Make = Callable[..., Any]
MIXED = {"r": 2, "target_modules": ["q_proj", "down_proj"], "lora_alpha": 6}


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", MIXED),
        ("llama", MIXED | {"use_rslora": True}),
        (
            "llama",
            MIXED
            | {
                "rank_pattern": {"layers.1.self_attn.q_proj": 4},
                "alpha_pattern": {"down_proj": 3, "^model.layers.1.self_attn.q_proj": 5},
            },
        ),
        ("llama", MIXED | {"modules_to_save": ["lm_head", "embed_tokens"]}),
        ("llama", {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}),
        ("llama", MIXED | {"init_lora_weights": "gaussian"}),
        ("qwen2", MIXED | {"bias": "all"}),
        ("qwen2", MIXED | {"bias": "lora_only"}),
        ("qwen2", {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
        ("qwen2", {"r": 2, "target_modules": ["lm_head"]}),
        ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("gpt2", {"r": 2, "target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
        ("gpt_neox", {"r": 2, "target_modules": ["query_key_value", "dense"]}),
        ("phi3", {"r": 2, "target_modules": ["qkv_proj", "gate_up_proj"]}),
        ("bert", {"r": 2, "target_modules": ["query"], "modules_to_save": ["classifier"]}),
    ],
)
def test_deltas_are_what_peft_merges(
    make_folder: Make, make_adapter: Make, family: str, settings: dict[str, Any]
) -> None:
    folder = make_folder("base", family)
    base = Checkpoint.open(folder)
    path, peft_model = make_adapter("math", folder, **settings)
    adapter = open_expert("math", path, base)
    assert isinstance(adapter, Adapter)
    merged = peft_model.merge_and_unload().state_dict()
    touched = 0
    for name in base.tensors:
        expected = merged[name] - base.read(name)
        delta = adapter.delta(name)
        if delta is None:
            assert not expected.any(), name
            continue
        touched += 1
        assert delta.dtype == torch.float32
        delta = delta.reshape(expected.shape)
        torch.testing.assert_close(delta, expected, atol=1e-6, rtol=1e-5)
        factors = adapter.factors(name)
        if factors is not None:
            A, B, scale = factors
            assert A.shape[0] == B.shape[1] <= 4
            torch.testing.assert_close(scale * (B @ A), delta)
    assert touched > 0


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", MIXED | {"modules_to_save": ["lm_head"]}),
        ("llama", {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}),
        ("qwen2", MIXED | {"bias": "all"}),
        ("gpt2", {"r": 2, "target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
    ],
)
def test_parts_of_a_delta_are_the_delta(
    make_folder: Make,
    make_adapter: Make,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    settings: dict[str, Any],
) -> None:
    monkeypatch.setattr(adapters, "_BLOCK", 100)
    folder = make_folder("base", family)
    base = Checkpoint.open(folder)
    path, _ = make_adapter("math", folder, **settings)
    adapter = Adapter.open(path, base)
    for name, facts in base.tensors.items():
        whole = adapter.delta(name)
        if whole is None:
            continue
        for length in (1000, 256, 37):
            for i in range(0, facts.n_parameters, length):
                part = adapter.delta(name, i, min(i + length, facts.n_parameters))
                assert part is not None
                assert torch.equal(part, whole[i : i + length])


def test_vocabulary_rows_of_a_resized_adapter_are_shared(
    make_folder: Make, make_adapter: Make
) -> None:
    folder = make_folder("base")
    path, _ = make_adapter("math", folder, **MIXED, modules_to_save=["embed_tokens"])
    tensors = load_file(path / "adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens.weight"
    tensors[key] = torch.cat([tensors[key], torch.ones(3, 16)])
    save_file(tensors, path / "adapter_model.safetensors")
    base = Checkpoint.open(folder)
    adapter = open_expert("math", path, base)
    assert "has 35 vocabulary rows and the base 32" in adapter.warnings[-1]
    delta = adapter.delta("model.embed_tokens.weight")
    assert delta is not None
    assert delta.shape == (32 * 16,)


def test_the_digest_depends_on_tensors_and_scale(make_folder: Make, make_adapter: Make) -> None:
    folder = make_folder("base")
    base = Checkpoint.open(folder)
    path, _ = make_adapter("a", folder, **MIXED)
    again, _ = make_adapter("b", folder, **MIXED)
    other, _ = make_adapter("c", folder, **MIXED, seed=2)
    digest = Adapter.open(path, base).digest
    assert Adapter.open(again, base).digest == digest
    assert Adapter.open(other, base).digest != digest
    _edit(path / "adapter_config.json", lora_alpha=7)
    assert Adapter.open(path, base).digest != digest


def test_an_adapter_of_another_base_is_warned_of(make_folder: Make, make_adapter: Make) -> None:
    folder = make_folder("base")
    path, _ = make_adapter("math", folder, **MIXED)
    assert Adapter.open(path, Checkpoint.open(folder)).warnings == ()
    other = Checkpoint.open(make_folder("other"))
    assert "was trained on" in Adapter.open(path, other).warnings[0]


def test_a_tokenizer_beside_an_adapter_is_compared(
    make_folder: Make, make_adapter: Make, save_tokenizer: Make
) -> None:
    folder = make_folder("base")
    path, _ = make_adapter("math", folder, **MIXED)
    save_tokenizer(folder, ["a", "b"])
    save_tokenizer(path, ["b", "a"])
    base = Checkpoint.open(folder)
    with pytest.raises(IncompatibleError, match="the same id must mean the same token"):
        open_expert("math", path, base)
    assert open_expert("math", path, base, allow_tokenizer_mismatch=True).warnings


# Refusals


def _refusal(path: Path, base: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_expert("math", path, Checkpoint.open(base))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"peft_type": "IA3"}, "is IA3"),
        ({"use_dora": True}, "uses DoRA (use_dora)"),
        ({"trainable_token_indices": [1]}, "uses trainable tokens (trainable_token_indices)"),
        ({"init_lora_weights": "pissa_niter_4"}, "was initialised with pissa_niter_4"),
    ],
)
def test_other_adapters_are_refused(
    make_folder: Make, make_adapter: Make, change: dict[str, Any], fact: str
) -> None:
    folder = make_folder("base")
    path, _ = make_adapter("math", folder, **MIXED)
    _edit(path / "adapter_config.json", **change)
    message = _refusal(path, folder)
    assert message.startswith("an adapter must be ")
    assert fact in message
    assert "merge it" in message


def test_unknown_tensors_are_refused(make_folder: Make, make_adapter: Make) -> None:
    folder = make_folder("base")
    path, _ = make_adapter("math", folder, **MIXED)
    tensors = load_file(path / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    save_file(tensors | {key: torch.ones(16)}, path / "adapter_model.safetensors")
    assert _refusal(path, folder) == (
        "an adapter must hold pairs of LoRA factors and whole weights, but "
        f"{path} holds {key}: merge it into its base with PEFT and give the result"
    )


def test_half_a_pair_is_refused(make_folder: Make, make_adapter: Make) -> None:
    folder = make_folder("base")
    path, _ = make_adapter("math", folder, **MIXED)
    tensors = load_file(path / "adapter_model.safetensors")
    tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")
    save_file(tensors, path / "adapter_model.safetensors")
    assert "an adapter must hold pairs of LoRA factors" in _refusal(path, folder)


def test_a_module_that_the_base_lacks_is_refused(make_folder: Make, make_adapter: Make) -> None:
    path, _ = make_adapter("math", make_folder("three", num_hidden_layers=3), **MIXED)
    folder = make_folder("base")
    assert _refusal(path, folder) == (
        f"an adapter must fit its base, but adapter math ({path}) changes "
        f"model.layers.2.mlp.down_proj.weight, which {folder} (LlamaForCausalLM) lacks: give the "
        "base it was trained on"
    )


def test_factors_of_another_shape_are_refused(make_folder: Make, make_adapter: Make) -> None:
    path, _ = make_adapter("math", make_folder("wide", intermediate_size=32), **MIXED)
    message = _refusal(path, make_folder("base"))
    assert "has ((2, 32), (16, 2)) for model.layers.0.mlp.down_proj.weight" in message
    assert "give the base it was trained on (" in message


def test_a_truncated_adapter_is_refused(make_folder: Make, make_adapter: Make) -> None:
    folder = make_folder("base")
    path, _ = make_adapter("math", folder, **MIXED)
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert f"a safetensors file must be complete, but {file}" in _refusal(path, folder)


def test_a_pickled_adapter_only_by_the_flag(make_folder: Make, make_adapter: Make) -> None:
    folder = make_folder("base")
    path, _ = make_adapter("math", folder, **MIXED)
    digest = Adapter.open(path, Checkpoint.open(folder)).digest
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    assert "`allow_pickle: true`" in _refusal(path, folder)
    base = Checkpoint.open(folder)
    assert open_expert("math", path, base, allow_pickle=True).digest == digest


def test_nan_in_an_adapter_is_refused(make_folder: Make, make_adapter: Make) -> None:
    folder = make_folder("base")
    path, _ = make_adapter("math", folder, **MIXED)
    tensors = load_file(path / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    tensors[key][0, 0] = float("nan")
    save_file(tensors, path / "adapter_model.safetensors")
    adapter = open_expert("math", path, Checkpoint.open(folder))
    with pytest.raises(CheckpointError, match="weights must be finite, but 1 of 32 values"):
        adapter.delta("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(CheckpointError, match="weights must be finite"):
        _ = adapter.digest
