import json
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_COMMON = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {folder}/{name}.search.jsonl, test: {folder}/{name}.held_out.jsonl}}
validation_split: validation
test_split: test
"""
_TASKS = {
    "choice": """output_type: multiple_choice
doc_to_text: "{{question}} ="
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "answer": """output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "writing": """output_type: generate_until
doc_to_text: "{{question}} ="
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["a", "5 ", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - name: whole
    filter: [{function: take_first}]
  - name: first
    filter:
      - {function: regex, regex_pattern: "([a-z0-9])", group_select: 0}
      - {function: take_first}
""",
}


def _question(rng: random.Random, number: int) -> str:
    letters = " ".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 8)))
    return f"{letters} {number}"


def _document(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "question": _question(rng, number),
        "answer": rng.choice(["b", "c 4", "7"]),
        "choices": rng.sample(["b", "c", "d e", "f g h", "i 2 3 4"], rng.randint(2, 5)),
        "label": rng.randint(0, 1),
    }


def write_documents(path: Path, documents: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))


class Tasks:
    """Three lm-eval tasks in a folder, one of each output type, and ways to spoil them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = random.Random(0)
        for name in _TASKS:
            self.write_split(name, "search", [_document(rng, number) for number in range(21)])
            self.write_split(name, "held_out", [_document(rng, number) for number in range(50, 83)])
            self.write(name, self.text(name))

    def text(self, name: str) -> str:
        return _COMMON.format(name=name, folder=self.folder) + _TASKS[name]

    def write(self, name: str, text: str) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.yaml")

    def split(self, name: str, split: str) -> list[dict[str, Any]]:
        lines = (self.folder / f"{name}.{split}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def write_split(self, name: str, split: str, documents: list[dict[str, Any]]) -> None:
        write_documents(self.folder / f"{name}.{split}.jsonl", documents)


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    return Tasks(tmp_path)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, a bos before every text, a token for each letter with the space before it."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    specials = ["<pad>", "<bos>", "<eos>"]
    pairs = [("Ġ", character) for character in "abcdefghijklmnopqrstuvwxyz0123456789="]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [left + right for left, right in pairs]
    inner = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, pairs))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A tiny Llama whose random weights are large enough for varied answers."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(config).eval()
