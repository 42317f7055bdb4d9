"""Trains the zoo's models: the base on a mixture of all skills, experts from it with replay."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from evomerge.demo.skills import Item, items

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Lengths: TypeAlias = Mapping[str, tuple[int, int]]
OnStep: TypeAlias = Callable[[], None]

_IGNORED = -100
_WARM_UP_STEPS = 20
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the zoo's Llama models."""

    width: int = 128
    mlp_width: int = 256
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 2
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Course:
    """One training run: a mixture of skills, and how long and how strongly it is trained."""

    weights: Mapping[str, float]
    n_steps: int
    batch_size: int
    learning_rate: float
    seed: int


@contextmanager
def local_torch_state(seed: int, n_threads: int) -> Iterator[None]:
    """Seeds torch and sets its threads, and puts both back at the end."""
    threads_before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # inside the fork: nothing leaks
        torch.set_num_threads(n_threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)


def new_base(shape: Shape, tokenizer: "PreTrainedTokenizerFast") -> LlamaForCausalLM:
    """A Llama with random weights drawn from torch's global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.max_tokens,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def load(folder: Path) -> "PreTrainedModel":
    """The fp32 model in `folder`."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def encode(
    tokenizer: "PreTrainedTokenizerFast", batch: Sequence[Item]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both `(n_items, n_tokens)`; labels are set on answers only."""
    texts = [f"{item.prompt} {item.answer}\n" for item in batch]
    ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    answers = (ids == tokenizer.convert_tokens_to_ids("Ġ=")).cumsum(1)[:, :-1] > 0
    answers &= ids[:, 1:] != tokenizer.pad_token_id
    return ids[:, :-1], torch.where(answers, ids[:, 1:], _IGNORED)


def answer_logits(
    model: "PreTrainedModel", ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The logits `(n_answer_tokens, vocabulary)` where `labels` are set, row by row."""
    # padding is on the right, so a causal model needs no mask for it
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[labels != _IGNORED])  # type: ignore[operator] # a Module


def mixture(lengths: Lengths, course: Course) -> Iterator[list[Item]]:
    """Batches of training items, each item's skill drawn by the course's weights."""
    names = sorted(course.weights)
    weights = [course.weights[name] for name in names]
    streams = {name: items(name, lengths[name], "training", course.seed) for name in names}
    rng = random.Random(course.seed)
    for _ in range(course.n_steps):
        yield [next(streams[name]) for name in rng.choices(names, weights, k=course.batch_size)]


def train(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    lengths: Lengths,
    course: Course,
    on_step: OnStep,
) -> None:
    """Trains what requires a gradient, in place: AdamW, short warm-up, linear decay to zero."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=course.learning_rate, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY
    )
    warm_up = min(_WARM_UP_STEPS, max(1, course.n_steps // 5))
    model.train()
    for step, batch in enumerate(mixture(lengths, course)):
        rate = min((step + 1) / warm_up, (course.n_steps - step) / (course.n_steps - warm_up + 1))
        optimizer.param_groups[0]["lr"] = course.learning_rate * min(1.0, rate)
        ids, labels = encode(tokenizer, batch)
        logits = answer_logits(model, ids, labels)
        loss = torch.nn.functional.cross_entropy(logits, labels[labels != _IGNORED])
        loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_step()
    model.eval()


@torch.inference_mode()
def exact_match(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", asked: Sequence[Item]
) -> float:
    """The part of `asked` whose greedy answer, newline included, is right to the token.

    By teacher forcing: a greedy decode equals the answer exactly if every token of the answer is
    the likeliest after the right ones before it.
    """
    n_right = 0
    for start in range(0, len(asked), 256):
        ids, labels = encode(tokenizer, asked[start : start + 256])
        here = labels != _IGNORED
        right = torch.ones_like(here)
        right[here] = answer_logits(model, ids, labels).argmax(-1) == labels[here]
        n_right += int(right.all(1).sum())
    return n_right / len(asked)
