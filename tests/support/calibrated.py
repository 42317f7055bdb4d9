"""Tiny real models on the disk with a tokenizer, for collecting statistics of them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from evomerge.checkpoints.experts import Expert, open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.demo.tokenizer import zoo_tokenizer
from evomerge.live_model import LoadedModel

TEXTS = ("add: 3 + 4 = 7", "sort: c a b = a b c", "reverse: x y = y x", "count: a ? a b a = 2")


@functools.cache
def tokenizer() -> Any:
    return zoo_tokenizer()


def llama(*, tied: bool = False) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer()),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
        )
    )


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(tokenizer()), n_embd=16, n_layer=1, n_head=2, n_positions=64
        )
    )


@dataclass
class Calibrated:
    """A base and its experts, opened, with a live model that they are written into.

    Attributes:
        written: Which experts were, in order.
    """

    folder: Path
    base: Checkpoint
    experts: tuple[Expert, ...]
    written: list[str] = field(default_factory=list)

    def model_of(self, name: str) -> Any:
        """Loaded by transformers itself, in float64."""
        folder = self.folder / name
        return self.base.model_class.from_pretrained(folder, dtype=torch.float64).eval()

    def live(self) -> LoadedModel:
        model = self.base.model_class.from_pretrained(self.base.path, dtype="auto")
        model.eval().requires_grad_(False)

        def write(name: str) -> None:
            self.written.append(name)
            model.load_state_dict(self.model_of(name).state_dict())

        has = self.base.tokenizer_digest is not None
        return LoadedModel(model, tokenizer() if has else None, writer=write)


def save(
    folder: Path, make: Callable[[], nn.Module], *, experts: int = 2, with_tokenizer: bool = True
) -> Calibrated:
    """A base of random weights and experts beside it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: Any = make()
    model.save_pretrained(folder / "base")
    if with_tokenizer:
        tokenizer().save_pretrained(folder / "base")
    base_weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = [f"expert{k}" for k in range(experts)]
    generator = torch.Generator().manual_seed(4)
    for name in names:
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                change = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(base_weights[key] + 0.05 * change)
        model.save_pretrained(folder / name)
    base = Checkpoint.open(folder / "base")
    return Calibrated(folder, base, tuple(open_expert(n, folder / n, base) for n in names))


def write_texts(path: Path, texts: tuple[str, ...] = TEXTS) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)
