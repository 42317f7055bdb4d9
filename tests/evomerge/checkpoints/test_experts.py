"""Full fine-tunes against their base: deltas, warnings, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.compatibility import check_finite, disparity_warning
from evomerge.checkpoints.experts import Expert, FullExpert, open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.errors import CheckpointError, IncompatibleError

Make = Callable[..., Any]


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _refusal(path: Path, base: Checkpoint, **options: Any) -> str:
    with pytest.raises(IncompatibleError) as caught:
        open_expert("math", path, base, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _warning(expert: Expert, part: str) -> str:
    (found,) = [w for w in expert.warnings if part in w]
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert", "mixtral"])
def test_base_plus_delta_is_the_expert(make_folder: Make, family: str) -> None:
    base = Checkpoint.open(make_folder("base", family))
    path = make_folder("math", family, seed=1, shard="8KB")
    expert = open_expert("math", path, base)
    checkpoint = Checkpoint.open(path)
    assert isinstance(expert, FullExpert)
    assert (expert.name, expert.path, expert.digest) == ("math", path, checkpoint.digest)
    for name in base.tensors:
        delta = expert.delta(name)
        assert delta is not None
        assert delta.dtype == torch.float32
        W0 = base.read(name)
        torch.testing.assert_close(W0 + delta.reshape(W0.shape), checkpoint.read(name))


def test_untouched_tensors_have_no_delta(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base"))
    path = make_folder("math")
    _rewrite(path, lambda t: t["model.norm.weight"].add_(1))
    expert = open_expert("math", path, base)
    touched = [name for name in base.tensors if expert.delta(name) is not None]
    assert touched == ["model.norm.weight"]
    assert not [w for w in expert.warnings if "is identical" in w]


def test_an_expert_identical_to_the_base_is_warned_of(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base"))
    expert = open_expert("math", make_folder("math", shard="4KB"), base)
    assert _warning(expert, "is identical") == (
        "expert math is identical to the base: its coefficients have no effect"
    )


def test_another_dtype_is_warned_of_and_subtracted_in_fp32(
    make_folder: Make, make_model: Make, tmp_path: Path
) -> None:
    base = Checkpoint.open(make_folder("base"))
    make_model("llama", 1).to(torch.bfloat16).save_pretrained(tmp_path / "math")
    expert = open_expert("math", tmp_path / "math", base)
    assert "is bfloat16 and the base float32" in _warning(expert, "bfloat16")
    name = "model.layers.0.mlp.up_proj.weight"
    written = Checkpoint.open(tmp_path / "math").read(name)
    delta = expert.delta(name)
    assert delta is not None
    assert torch.equal(delta, (written.float() - base.read(name)).reshape(-1))


@pytest.mark.parametrize("n_rows", [36, 28])
def test_shared_vocabulary_rows_are_merged_and_extra_rows_are_the_bases(
    make_folder: Make, n_rows: int
) -> None:
    base = Checkpoint.open(make_folder("base"))
    path = make_folder("math", seed=1, vocab_size=n_rows)
    expert = open_expert("math", path, base)
    assert _warning(expert, "vocabulary rows") == (
        f"expert math has {n_rows} vocabulary rows and the base 32: the first {min(n_rows, 32)} "
        "are merged, further ones are the base's"
    )
    n = min(n_rows, 32)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        delta = expert.delta(name)
        assert delta is not None
        delta = delta.reshape(32, 16)
        theirs = Checkpoint.open(path).read(name)
        assert torch.equal(delta[:n], theirs[:n] - base.read(name)[:n])
        assert not delta[n:].any()


@pytest.mark.parametrize("n_rows", [36, 32, 28])
def test_parts_of_a_delta_are_the_delta(make_folder: Make, n_rows: int) -> None:
    base = Checkpoint.open(make_folder("base"))
    expert = open_expert("math", make_folder("math", seed=1, vocab_size=n_rows), base)
    for name, facts in base.tensors.items():
        whole = expert.delta(name)
        assert whole is not None
        for length in (1000, 37):
            starts = range(0, facts.n_parameters, length)
            parts = [expert.delta(name, i, min(i + length, facts.n_parameters)) for i in starts]
            for i, part in zip(starts, parts, strict=True):
                expected = whole[i : i + length]
                assert torch.equal(expected, torch.zeros_like(expected) if part is None else part)


def test_an_expert_with_tied_head_serves_an_untied_base(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base", "qwen2", tie_word_embeddings=False))
    path = make_folder("math", "qwen2", seed=1)
    delta = open_expert("math", path, base).delta("lm_head.weight")
    theirs = Checkpoint.open(path).read("model.embed_tokens.weight")
    assert delta is not None
    assert torch.equal(delta, (theirs - base.read("lm_head.weight")).reshape(-1))


def test_an_untied_expert_of_a_tied_base_is_refused(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base", "qwen2"))
    path = make_folder("math", "qwen2", seed=1, tie_word_embeddings=False)
    message = _refusal(path, base)
    assert "adds lm_head.weight" in message
    assert message.endswith("with the same tied embeddings")


def test_an_expert_trained_for_another_task_lends_its_stack(
    make_folder: Make, make_model: Make, tmp_path: Path
) -> None:
    base = Checkpoint.open(make_folder("base"))
    make_model("llama", 1).model.save_pretrained(tmp_path / "math")  # LlamaModel: no prefix
    expert = open_expert("math", tmp_path / "math", base)
    assert "lacks lm_head.weight" in _warning(expert, "lm_head")
    assert expert.delta("lm_head.weight") is None
    assert expert.delta("model.norm.weight") is not None


# Refusals


def test_another_architecture_is_refused(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base"))
    path = make_folder("math", "qwen2")
    assert _refusal(path, base) == (
        f"an expert must have the base's architecture, but expert math ({path}) has "
        f"model_type=qwen2 and the base ({base.path}) model_type=llama: take models fine-tuned "
        "from this base"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 3), ("intermediate_size", 32), ("num_key_value_heads", 2)],
)
def test_another_size_is_refused_by_name(make_folder: Make, field: str, value: int) -> None:
    base = Checkpoint.open(make_folder("base"))
    path = make_folder("math", **{field: value})
    assert f"has {field}={value} and the base" in _refusal(path, base)


def test_mismatched_shapes_are_refused_by_name(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base", "gpt2"))
    path = make_folder("math", "gpt2", n_positions=12)
    assert _refusal(path, base) == (
        f"shapes must agree, but transformer.wpe.weight is [12, 16] in expert math ({path}) and "
        f"[8, 16] in the base ({base.path}): take models fine-tuned from this base"
    )


def test_tensors_that_the_base_lacks_are_refused(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base"))
    path = make_folder("math", attention_bias=True)
    message = _refusal(path, base)
    assert "adds model.layers.0.self_attn.q_proj.bias (8 in all)" in message


def test_tensors_that_the_expert_lacks_are_refused(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base", attention_bias=True))
    assert "lacks model.layers.0.self_attn.q_proj.bias" in _refusal(make_folder("math"), base)


def test_a_missing_expert_is_refused(make_folder: Make, tmp_path: Path) -> None:
    base = Checkpoint.open(make_folder("base"))
    with pytest.raises(CheckpointError, match="is no existing folder: correct the path"):
        open_expert("math", tmp_path / "nowhere", base)


def test_nan_in_an_expert_is_refused_by_digest_and_delta(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base"))
    path = make_folder("math", seed=1)
    _rewrite(path, lambda t: t["model.norm.weight"][0].fill_(float("nan")))
    expert = open_expert("math", path, base)
    said = f"1 of 16 values of model.norm.weight in {path} are NaN or infinite"
    with pytest.raises(CheckpointError, match=said):
        _ = expert.digest
    with pytest.raises(CheckpointError, match=said):
        expert.delta("model.norm.weight")


def test_infinity_in_the_base_is_blamed_on_the_base(make_folder: Make) -> None:
    path = make_folder("base")
    _rewrite(path, lambda t: t["model.norm.weight"][0].fill_(float("inf")))
    expert = open_expert("math", make_folder("math", seed=1), Checkpoint.open(path))
    with pytest.raises(CheckpointError, match=f"model.norm.weight in {path} are NaN"):
        expert.delta("model.norm.weight")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_only_finite_weights_pass(dtype: torch.dtype) -> None:
    check_finite(torch.ones(3, dtype=dtype), "w")
    check_finite(torch.ones(0, dtype=dtype), "w")
    for bad in ("nan", "inf", "-inf"):
        values = torch.tensor([[1.0, float(bad)], [float("nan"), 2.0]], dtype=dtype)
        with pytest.raises(CheckpointError, match="but 2 of 4 values of w are NaN or infinite"):
            check_finite(values, "w")


# Tokenizers


def test_an_expert_without_tokenizer_is_warned_of(make_folder: Make, save_tokenizer: Make) -> None:
    path = make_folder("base")
    save_tokenizer(path, ["a", "b"])
    expert = open_expert("math", make_folder("math", seed=1), Checkpoint.open(path))
    assert "has no tokenizer: assumed to be the base's" in _warning(expert, "tokenizer")


def test_the_same_tokenizer_is_silent(make_folder: Make, save_tokenizer: Make) -> None:
    base_path, path = make_folder("base"), make_folder("math", seed=1)
    save_tokenizer(base_path, ["a", "b"])
    save_tokenizer(path, ["a", "b"])
    assert open_expert("math", path, Checkpoint.open(base_path)).warnings == ()


def test_another_meaning_of_an_id_is_refused_unless_allowed(
    make_folder: Make, save_tokenizer: Make
) -> None:
    base_path, path = make_folder("base"), make_folder("math", seed=1)
    save_tokenizer(base_path, ["a", "b", "c"])
    save_tokenizer(path, ["a", "c", "b"])
    base = Checkpoint.open(base_path)
    assert _refusal(path, base) == (
        "the same id must mean the same token, but 2 ids differ, the first being 2 ('c' and 'b') "
        f"in expert math ({path}) and the base: take models with the base's tokenizer, or set "
        "`allow_tokenizer_mismatch: true`"
    )
    expert = open_expert("math", path, base, allow_tokenizer_mismatch=True)
    assert "2 ids differ" in _warning(expert, "tokenizer")


def test_added_tokens_are_warned_of_only(make_folder: Make, save_tokenizer: Make) -> None:
    base_path, path = make_folder("base"), make_folder("math", seed=1)
    save_tokenizer(base_path, ["a", "b"])
    save_tokenizer(path, ["a", "b", "<think>"])
    expert = open_expert("math", path, Checkpoint.open(base_path))
    assert "another tokenizer than the base with the same ids" in _warning(expert, "tokenizer")


def test_another_chat_template_is_warned_of(make_folder: Make, save_tokenizer: Make) -> None:
    base_path, path = make_folder("base"), make_folder("math", seed=1)
    save_tokenizer(base_path, ["a"], "{{ messages }}")
    save_tokenizer(path, ["a"], "{{ messages[0] }}")
    expert = open_expert("math", path, Checkpoint.open(base_path))
    assert "another chat template" in _warning(expert, "chat")


def test_another_rotary_base_is_warned_of(make_folder: Make) -> None:
    base = Checkpoint.open(make_folder("base"))
    path = make_folder("math", seed=1)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    _edit(path / "config.json", rope_parameters=rope)
    assert "rope_parameters" in _warning(open_expert("math", path, base), "rope")


# Norms


def test_task_vectors_of_very_different_length_are_warned_of() -> None:
    assert disparity_warning({"a": 1.0, "b": 9.0, "identical": 0.0}) is None
    assert disparity_warning({"a": 1.0}) is None
    message = disparity_warning({"a": 1.0, "b": 25.0, "c": 3.0})
    assert message == (
        "the task vector of b is 25 times as long as that of a (25 and 1): with equal "
        "coefficients b decides"
    )
