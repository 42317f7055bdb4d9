"""Unlabeled text to run experts over: read from a file, then as token ids."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.errors import ConfigError, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEYS = ("text", "prompt")


def read_texts(path: str, n: int) -> list[str]:
    """Up to `n` texts, evenly spread over the file's, in its order.

    Each line of a JSON-lines file is `{"text": ...}` or `{"prompt": ...}`, further keys are
    ignored; each line of a file that ends in `.txt` is a text. Blank lines are left out.

    Raises:
        ConfigError: The file cannot be read, is empty, or a line is something else.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"statistics are collected on a text file in UTF-8, but {path} cannot be read "
            f"({error}): check space.statistics.text"
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ConfigError(
            f"statistics are collected on texts, but {path} has none: fill it, or name another "
            "file in space.statistics.text"
        )
    n = min(n, len(numbered))
    chosen = [numbered[i * len(numbered) // n] for i in range(n)]
    if path.endswith(".txt"):
        return [line.strip() for _, line in chosen]
    return [_parse(line, f"{path}: line {number}") for number, line in chosen]


def token_ids(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[Tensor]:
    """Each text as `(1, n_tokens)` ids with the tokenizer's special tokens, cut to `max_length`.

    Texts of a single token are left out: there is nothing to predict in them.

    Raises:
        TaskError: No text is left.
    """
    encoded = [
        torch.tensor([tokenizer(text, truncation=True, max_length=max_length).input_ids])
        for text in texts
    ]
    long_enough = [ids for ids in encoded if ids.numel() >= 2]
    if not long_enough:
        raise TaskError(
            "statistics are collected on texts of at least two tokens, but none of the "
            f"{len(texts)} is that long: name another file in space.statistics.text"
        )
    return [ids.to(torch.long) for ids in long_enough]


def _parse(line: str, where: str) -> str:
    try:
        plain = json.loads(line)
    except ValueError as error:
        raise ConfigError(
            f"{where}: a line must be JSON, but it is not ({error}): mend it, or end the file's "
            "name in .txt"
        ) from error
    found = [plain[key] for key in _KEYS if isinstance(plain, dict) and key in plain]
    if len(found) != 1 or not isinstance(found[0], str) or not found[0].strip():
        raise ConfigError(
            f'{where}: a line must be {{"text": ...}} or {{"prompt": ...}} with some text, but it '
            f"is {line.strip()[:60]}: mend it"
        )
    return found[0]
