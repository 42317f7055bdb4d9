"""Tiny real models, tokenizers and adapters, made on the fly."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

VOCABULARY = 32

_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_ONE_HEAD_SIZE = _LLAMA | {"num_key_value_heads": 2}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA),
    "mistral": ("MistralConfig", "MistralForCausalLM", _LLAMA),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _LLAMA | {"head_dim": 8}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _LLAMA | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _LLAMA | {"head_dim": 8}),
    "phi": ("PhiConfig", "PhiForCausalLM", _ONE_HEAD_SIZE),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _ONE_HEAD_SIZE | {"pad_token_id": 0} | _SPECIAL),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT2 | _SPECIAL),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"},
    ),
    "bert": (
        "BertConfig",
        "BertForSequenceClassification",
        {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"},
    ),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _LLAMA | {"num_local_experts": 2}),
    # Neither layers nor kinds are spelled as elsewhere.
    "xlm": (
        "XLMConfig",
        "XLMWithLMHeadModel",
        {"vocab_size": VOCABULARY, "emb_dim": 16, "n_layers": 2, "n_heads": 2},
    ),
}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """`make_model(family, seed=0, **settings)`: a tiny model with random weights."""

    def make(family: str, seed: int = 0, **settings: Any) -> Any:
        config_name, model_name, defaults = FAMILIES[family]
        config = getattr(transformers, config_name)(**defaults | settings)
        generator = torch.Generator().manual_seed(seed)
        model = getattr(transformers, model_name)(config)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return model.eval()

    return make


@pytest.fixture
def make_folder(tmp_path: Path, make_model: Callable[..., Any]) -> Callable[..., Path]:
    """`make_folder(name, family, seed=0, shard=None, **settings)`: a saved tiny model."""

    def make(
        name: str, family: str = "llama", seed: int = 0, shard: str | None = None, **settings: Any
    ) -> Path:
        folder = tmp_path / name
        model = make_model(family, seed, **settings)
        model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        return folder

    return make


@pytest.fixture
def save_tokenizer() -> Callable[..., None]:
    """`save_tokenizer(folder, words, template)`: a word-level tokenizer beside a model."""

    def save(folder: Path, words: list[str], template: str | None = None) -> None:
        vocabulary = {"<unk>": 0} | {word: i + 1 for i, word in enumerate(words)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
            unk_token="<unk>",
        )
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)

    return save


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """`make_adapter(name, base folder, **LoraConfig)`: a saved adapter and its PEFT model."""

    def make(name: str, base: Path, *, seed: int = 1, **settings: Any) -> tuple[Path, Any]:
        config = transformers.AutoConfig.from_pretrained(base)
        model_class = getattr(transformers, config.architectures[0])
        model = get_peft_model(model_class.from_pretrained(base), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        folder = tmp_path / name
        model.save_pretrained(folder)
        return folder, model

    return make
