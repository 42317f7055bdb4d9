"""Objectives of a user for models that are no language models; importable by workers."""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy


class Sentences:
    """For a sequence classifier: is it right, and how sure. The label: is the first token even?"""

    def items(self, split: str) -> list[tuple[list[int], int]]:
        rng = np.random.default_rng(0 if split == "search" else 1)
        rows = rng.integers(2, 30, (24, 6)).tolist()
        return [(row, 1 - row[0] % 2) for row in rows]

    def respond(self, model: Any, tokenizer: Any, items: list[Any]) -> torch.Tensor:
        assert tokenizer is None
        tokens, labels = (torch.tensor(column) for column in zip(*items, strict=True))
        logits = model(input_ids=tokens).logits
        losses = cross_entropy(logits, labels, reduction="none")
        return torch.stack([logits.argmax(-1) == labels, -losses], 1)


class Images:
    """For an image classifier: the log-probability of the brightest channel of a PIL image.

    The answer to the first item is NaN where the classifier's bias is changed at all, if told so.
    """

    def __init__(self, size: int, *, breaks: bool = False) -> None:
        self.size = size
        self.breaks = breaks

    def items(self, split: str) -> list[dict[str, Any]]:
        rng = np.random.default_rng(0 if split == "search" else 1)
        items = []
        for number in range(18):
            pixels = rng.integers(0, 128, (self.size, self.size, 3), dtype=np.uint8)
            pixels[..., number % 3] += 100
            items.append({"image": Image.fromarray(pixels), "label": number % 3})
        return items

    def respond(self, model: Any, tokenizer: Any, items: list[Any]) -> list[torch.Tensor]:  # noqa: ARG002 - the signature of the protocol
        pixels = np.stack([np.asarray(item["image"], dtype=np.float32) for item in items])
        labels = torch.tensor([item["label"] for item in items])
        logits = model(pixel_values=torch.from_numpy(pixels / 128 - 1).permute(0, 3, 1, 2)).logits
        answers = list(-cross_entropy(logits, labels, reduction="none"))
        if self.breaks and bool(model.classifier.bias.any()):
            answers[0] = torch.tensor(math.nan)
        return answers
