"""A live model with experts in memory, for what a fitness does with one."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.live_model import LoadedModel


class Zoo:
    """A live model with two experts, whose writes are counted."""

    def __init__(self, model: nn.Module, tokenizer: Any, cache: Path) -> None:
        self.weights = {"base": copy_of(model)}
        for seed, name in enumerate(["sort", "sum"]):
            generator = torch.Generator().manual_seed(seed)
            self.weights[name] = {
                key: value + 0.1 * torch.randn(value.shape, generator=generator).to(value)
                for key, value in self.weights["base"].items()
            }
        self.written: list[str] = []
        self.live = LoadedModel(
            model.requires_grad_(False),
            tokenizer,
            experts=("sort", "sum"),
            digest="abc",
            cache=cache,
            writer=self.write,
        )

    def write(self, name: str) -> None:
        self.written.append(name)
        self.live.model.load_state_dict(self.weights[name])

    def merge(self, share: float = 0.4) -> None:
        """Something between base and experts."""
        base = self.weights["base"]
        merged = {
            key: value + share * (self.weights["sort"][key] + self.weights["sum"][key] - 2 * value)
            for key, value in base.items()
        }
        self.live.model.load_state_dict(merged)

    def forward(self, tokens: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Log-probabilities `(n, n_tokens)` and hidden states `(layers, n, size)` in fp64."""
        with torch.no_grad():
            output = self.live.model.double()(torch.tensor([tokens]), output_hidden_states=True)
        self.live.model.float()
        hidden = torch.stack(output.hidden_states[1:])[:, 0]
        return output.logits[0].log_softmax(-1), hidden


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def write_texts(path: Path, texts: list[str], key: str = "text") -> str:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return str(path)
