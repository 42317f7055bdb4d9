"""Statistics that we collect ourselves against the same by hand, on tiny real models."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from evomerge.errors import CheckpointError, ConfigError, TaskError
from evomerge.merging.aids import grams as grams_module
from evomerge.merging.aids.collection import Collected, collect, refuse_missing
from evomerge.merging.aids.source import StatisticsSource
from evomerge.merging.aids.texts import read_texts
from evomerge.merging.operators import Statistics
from tests.support.calibrated import (
    TEXTS,
    Calibrated,
    gpt2,
    llama,
    save,
    tokenizer,
    write_texts,
)

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "digests"))
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return save(tmp_path_factory.mktemp("untied"), llama)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return save(tmp_path_factory.mktemp("tied"), lambda: llama(tied=True))


@pytest.fixture(scope="module")
def transposed(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return save(tmp_path_factory.mktemp("gpt2"), gpt2)


@pytest.fixture
def text(tmp_path: Path) -> str:
    return write_texts(tmp_path / "texts.txt")


@pytest.fixture
def aids(tmp_path: Path, text: str) -> Callable[..., Collected]:
    """Collects into a cache of the test's own."""

    def make(models: Calibrated, *needs: str, **source: Any) -> Collected:
        return collect(
            needs,
            StatisticsSource(**{"text": text, **source}),
            models.base,
            models.experts,
            tmp_path / "cache",
            models.live,
        )

    return make


def token_ids(text: str, length: int = 64) -> Tensor:
    return torch.tensor([tokenizer()(text).input_ids[:length]])


def inputs_of(model: Any, *paths: str, length: int = 64) -> list[Tensor]:
    """All that each module reads, `(n_tokens, in)` in float64."""
    read: dict[str, list[Tensor]] = {path: [] for path in paths}
    for path in paths:

        def hook(module: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
            read[path].append(args[0].reshape(-1, args[0].shape[-1]))

        model.get_submodule(path).register_forward_pre_hook(hook)
    with torch.no_grad():
        for text in TEXTS:
            model(token_ids(text, length))
    return [torch.cat(read[path]) for path in paths]


def gram(X: Tensor) -> Tensor:
    return X.T @ X / len(X)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        actual.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )


def test_grams_are_those_of_what_each_expert_reads(untied, aids):
    collected = aids(untied, "gram")
    n_linear = 0
    for k, expert in enumerate(untied.experts):
        model = untied.model_of(expert.name)
        paths = [p for p, module in model.named_modules() if isinstance(module, nn.Linear)]
        for path, X in zip(paths, inputs_of(model, *paths), strict=True):
            found = collected.of(f"{path}.weight")[k]
            close(found["gram"], gram(X))
            assert int(found["input_axis"]) == 1
            n_linear += 1
    assert n_linear == 2 * (2 * 7 + 1)  # the head of its own too


def test_only_linear_weights_have_grams(untied, aids):
    collected = aids(untied, "gram")
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert collected.of(name) == ({}, {})


def test_a_head_that_is_the_embedding_has_none(tied, aids):
    collected = aids(tied, "gram")
    assert collected.of("model.embed_tokens.weight") == ({}, {})
    assert "gram" in collected.of(Q)[0]


def test_layers_that_read_the_same_share_a_gram_on_the_disk(untied, aids, tmp_path):
    aids(untied, "gram")
    for facts in sorted((tmp_path / "cache" / "aids").glob("*/aids.json")):
        tensors = json.loads(facts.read_text())["tensors"]
        for layer in (0, 1):
            stem = f"model.layers.{layer}"
            owners = {tensors[f"{stem}.self_attn.{part}_proj.weight"] for part in "qkv"}
            assert owners == {f"{stem}.self_attn.q_proj.weight"}
            owners = {tensors[f"{stem}.mlp.{part}_proj.weight"] for part in ("gate", "up")}
            assert owners == {f"{stem}.mlp.gate_proj.weight"}
        assert len(set(tensors.values())) == 2 * 4 + 1


def test_weights_that_are_stored_transposed_have_their_inputs_on_the_first_axis(transposed, aids):
    collected = aids(transposed, "gram")
    model = transposed.model_of("expert1")
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    paths = [f"transformer.h.0.{part}" for part in parts]
    for path, X in zip(paths, inputs_of(model, *paths), strict=True):
        found = collected.of(f"{path}.weight")[1]
        close(found["gram"], gram(X))
        assert int(found["input_axis"]) == 0
        assert model.get_submodule(path).weight.shape[0] == X.shape[1]
    assert collected.of("transformer.wte.weight") == ({}, {})


def test_grams_that_do_not_fit_at_once_are_collected_in_several_runs(untied, aids, monkeypatch):
    before = aids(untied, "gram")
    monkeypatch.setattr(grams_module, "_MOST_BYTES", 1)
    shutil.rmtree(Path(before._kept["gram"][0].path).parent)
    after = aids(untied, "gram")
    assert after.digest == before.digest


def test_fisher_information_is_the_mean_squared_gradient_of_each_texts_likelihood(tied, aids):
    collected = aids(tied, "fisher")
    model = tied.model_of("expert0")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for text in TEXTS:
        ids = token_ids(text)
        log_p = model(ids).logits.log_softmax(-1)[0, :-1]
        likelihood = log_p.gather(-1, ids[0, 1:, None]).sum()
        model.zero_grad()
        likelihood.backward()
        for name, parameter in model.named_parameters():
            expected[name] += parameter.grad.square() / len(TEXTS)
    for name, information in expected.items():
        found = collected.of(name)[0]["fisher"]
        assert found.shape == information.shape
        torch.testing.assert_close(
            found.double(), information, rtol=1e-3, atol=1e-5 * float(information.max())
        )


def test_the_live_model_has_no_gradients_afterwards(tied, aids, tmp_path, text):
    live = tied.live()
    source = StatisticsSource(text)
    collect(["fisher"], source, tied.base, tied.experts, tmp_path / "other", lambda: live)
    assert not any(p.requires_grad or p.grad is not None for p in live.model.parameters())


def test_an_expert_is_run_once_also_for_later_runs(untied, aids, tmp_path, text):
    untied.written.clear()
    first = aids(untied, "gram", "fisher")
    assert untied.written == ["expert0", "expert1"] * 2
    again = aids(untied, "fisher", "gram")
    assert untied.written == ["expert0", "expert1"] * 2
    assert again.digest == first.digest
    assert torch.equal(again.of(Q)[1]["gram"], first.of(Q)[1]["gram"])
    again.release()
    assert torch.equal(again.of(Q)[0]["fisher"], first.of(Q)[0]["fisher"])
    assert not list((tmp_path / "cache" / "aids").glob("*.partial"))


def test_an_aid_has_a_digest_that_does_not_depend_on_others(untied, aids):
    both = aids(untied, "gram", "fisher")
    assert both.only(["gram"]).digest == aids(untied, "gram").digest != both.digest
    assert "fisher" not in both.only(["gram"]).of(Q)[0]
    with pytest.raises(ConfigError, match="second_moment was not"):
        both.only(["gram", "second_moment"])


def test_of_two_that_want_the_same_one_collects(untied, aids):
    untied.written.clear()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: aids(untied, "gram").digest, range(2))
    assert first == second
    assert untied.written == ["expert0", "expert1"]


def test_other_texts_and_lengths_are_other_statistics(untied, aids, tmp_path):
    other = write_texts(tmp_path / "other.txt", TEXTS[:2])
    digests = {
        aids(untied, "gram").digest,
        aids(untied, "gram", text=other).digest,
        aids(untied, "gram", samples=3).digest,
        aids(untied, "gram", max_length=5).digest,
        aids(untied, "fisher").digest,
    }
    assert len(digests) == 5


def test_texts_are_cut_to_their_greatest_length(untied, aids):
    found = aids(untied, "gram", max_length=5).of(Q)[0]["gram"]
    model = untied.model_of("expert0")
    (X,) = inputs_of(model, Q.removesuffix(".weight"), length=5)
    close(found, gram(X))


def test_a_collection_that_dies_leaves_nothing_that_counts(untied, aids, tmp_path):
    live = untied.live()

    def stop(name: str) -> None:
        if name == "expert1":
            raise KeyboardInterrupt

    live.writer = stop
    source = StatisticsSource(write_texts(tmp_path / "t.txt"))
    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        collect(["gram"], source, untied.base, untied.experts, cache, lambda: live)
    assert len([p for p in (cache / "aids").iterdir() if p.is_dir()]) == 1
    untied.written.clear()
    collect(["gram"], source, untied.base, untied.experts, cache, untied.live)
    assert untied.written == ["expert1"]


def test_a_damaged_folder_is_said_to_be(untied, aids, tmp_path):
    aids(untied, "gram")
    for file in (tmp_path / "cache" / "aids").glob("*/tensors.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="delete that folder"):
        aids(untied, "gram")


def test_activations_that_are_not_finite_are_refused(tmp_path, text):
    models = save(tmp_path / "models", llama, experts=1)
    live = models.live()

    def overflow(name: str) -> None:
        with torch.no_grad():
            live.model.model.layers[1].input_layernorm.weight.fill_(float("inf"))

    live.writer = overflow
    for aid, fact in (("gram", "activations must be finite"), ("fisher", "gradients must be")):
        with pytest.raises(TaskError, match=fact) as caught:
            collect(
                [aid],
                StatisticsSource(text),
                models.base,
                models.experts,
                tmp_path / "cache",
                lambda: live,
            )
        assert "expert0" in str(caught.value)
    assert not [p for p in (tmp_path / "cache" / "aids").iterdir() if p.is_dir()]


def test_a_model_without_a_tokenizer_is_refused(tmp_path, aids):
    models = save(tmp_path / "models", llama, experts=1, with_tokenizer=False)
    with pytest.raises(TaskError, match="has no tokenizer"):
        aids(models, "gram")


def test_models_that_text_alone_tells_too_little_are_refused(tmp_path, aids):
    size = len(tokenizer())
    classifier = save(
        tmp_path / "bert",
        lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=size,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=24,
            )
        ),
        experts=1,
    )
    with pytest.raises(TaskError, match="no causal language model"):
        aids(classifier, "fisher")
    assert "gram" in aids(classifier, "gram").of("bert.pooler.dense.weight")[0]
    translator = save(
        tmp_path / "t5",
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=size, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2
            )
        ),
        experts=1,
    )
    with pytest.raises(TaskError, match="reads a text and writes another"):
        aids(translator, "gram")


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("missing.jsonl", None, "cannot be read"),
        ("empty.txt", "\n \n", "has none"),
        ("broken.jsonl", "{", "line 1: a line must be JSON"),
        ("other.jsonl", '{"question": "?"}', "must be"),
        ("blank.jsonl", '{"text": " "}', "must be"),
        ("binary.txt", b"\xff\xfe\xff", "cannot be read"),
    ],
)
def test_files_that_are_no_texts_are_refused(untied, aids, tmp_path, name, content, fact):
    if content is not None:
        encoded = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(encoded)
    with pytest.raises(ConfigError, match=fact) as caught:
        aids(untied, "gram", text=str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_texts_of_one_token_are_left_out(untied, aids, tmp_path, monkeypatch):
    with pytest.raises(TaskError, match="at least two tokens"):
        aids(untied, "gram", max_length=1)


def test_samples_are_spread_over_the_file(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text" if i % 2 else "prompt": f"t{i}", "id": i}) for i in range(10)]
    path.write_text("\n\n".join(lines))
    assert read_texts(str(path), 4) == ["t0", "t2", "t5", "t7"]
    assert read_texts(str(path), 99) == [f"t{i}" for i in range(10)]


def moments(models: Calibrated) -> Statistics:
    return {
        name: torch.full(facts.shape, 1e-8)
        for name, facts in models.base.tensors.items()
        if "norm" not in name
    }


def test_second_moments_come_from_the_users_files(untied, aids, tmp_path):
    files = {}
    for k, name in enumerate(["expert0", "expert1"]):
        files[name] = str(tmp_path / f"{name}.safetensors")
        tensors = {key: (k + 1) * v for key, v in moments(untied).items()}
        save_file(tensors, files[name])
    collected = aids(untied, "second_moment", text=None, second_moments=files)
    assert float(collected.of(Q)[1]["second_moment"][0, 0]) == pytest.approx(2e-8)
    assert collected.of("model.norm.weight") == ({}, {})
    swapped = dict(zip(files, reversed(files.values()), strict=True))
    other = aids(untied, "second_moment", text=None, second_moments=swapped)
    assert other.digest != collected.digest


@pytest.mark.parametrize(
    ("change", "error", "fact"),
    [
        (lambda t: {"exp_avg_sq.0": t[Q]}, ConfigError, "rename them"),
        (lambda t: {Q: t[Q].reshape(-1)}, ConfigError, "unflattened"),
        (lambda t: {Q: -t[Q]}, ConfigError, "not exp_avg"),
        (lambda t: {Q: t[Q] * float("nan")}, CheckpointError, "finite"),
        (None, ConfigError, "is not: save them"),
    ],
)
def test_second_moments_that_cannot_be_are_refused(untied, aids, tmp_path, change, error, fact):
    path = tmp_path / "moments.safetensors"
    if change is not None:
        save_file({k: v.contiguous() for k, v in change(moments(untied)).items()}, path)
    files = dict.fromkeys(["expert0", "expert1"], str(path))
    with pytest.raises(error, match=fact):
        aids(untied, "second_moment", second_moments=files)


def test_operators_without_what_they_need_are_refused_before_any_work():
    experts = ("math", "code")
    assert refuse_missing(["task_arithmetic"], StatisticsSource(), experts) == ()
    given = StatisticsSource("t.txt", second_moments={"math": "m", "code": "c"})
    every = ["regmean", "regmean_exact", "fisher", "ota"]
    assert refuse_missing(every, given, experts) == ("fisher", "gram", "second_moment")
    with pytest.raises(ConfigError, match=r"regmean .* no gram: .* space.statistics.text"):
        refuse_missing(["regmean"], StatisticsSource(), experts)
    partial = StatisticsSource("t.txt", second_moments={"math": "m"})
    with pytest.raises(ConfigError, match=r"ota .* no second_moment of code: .*second_moments"):
        refuse_missing(["regmean", "ota"], partial, experts)
