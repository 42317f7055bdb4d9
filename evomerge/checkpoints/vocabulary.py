"""What a tokenizer folder says about its tokens, without loading the tokenizer."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.checkpoints.weights import read_json
from evomerge.datatypes import digest_of
from evomerge.errors import CheckpointError


@dataclass(frozen=True)
class Vocabulary:
    """Token to id (added tokens included) and the merge rules in order.

    `tokens` is empty when only a binary file is there (`tokenizer.model`); then only the digest
    can be compared.
    """

    tokens: Mapping[str, int] = field(repr=False)
    merges: tuple[str, ...] = field(repr=False)
    digest: str


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a folder, or None if it holds no tokenizer.

    Raises:
        CheckpointError: A tokenizer file is there and cannot be read.
    """
    if (folder / "tokenizer.json").is_file():
        return _from_tokenizer_json(folder / "tokenizer.json")
    if (folder / "vocab.json").is_file():
        tokens = {str(token): int(i) for token, i in read_json(folder / "vocab.json").items()}
        merges = _lines(folder / "merges.txt")
        return _vocabulary(tokens | _added(folder), [m for m in merges if not m.startswith("#")])
    if (folder / "vocab.txt").is_file():
        tokens = {token: i for i, token in enumerate(_lines(folder / "vocab.txt"))}
        return _vocabulary(tokens | _added(folder), [])
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).is_file():
            binary = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            return Vocabulary({}, (), digest_of([binary, _added(folder)]))
    return None


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a folder, stripped, or None."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8").strip()
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_json(folder / name).get("chat_template")
            if template is not None:
                return template.strip() if isinstance(template, str) else json.dumps(template)
    return None


def _from_tokenizer_json(file: Path) -> Vocabulary:
    plain = read_json(file)
    try:
        model: dict[str, Any] = plain["model"]
        entries = model["vocab"]
        if isinstance(entries, dict):
            tokens = {str(token): int(i) for token, i in entries.items()}
        else:  # Unigram: [piece, score] in the order of ids
            tokens = {str(piece): i for i, (piece, _) in enumerate(entries)}
        for added in plain.get("added_tokens") or []:
            tokens[str(added["content"])] = int(added["id"])
        # Written as "a b" by old versions of tokenizers and as ["a", "b"] by new ones.
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"tokenizer.json must hold a model with a vocabulary, but {file} does not: "
            "copy or download it again"
        ) from error
    return _vocabulary(tokens, merges)


def _vocabulary(tokens: dict[str, int], merges: list[str]) -> Vocabulary:
    return Vocabulary(tokens, tuple(merges), digest_of([tokens, merges]))


def _added(folder: Path) -> dict[str, int]:
    file = folder / "added_tokens.json"
    return {str(t): int(i) for t, i in read_json(file).items()} if file.is_file() else {}


def _lines(file: Path) -> list[str]:
    # Not splitlines: a token may be one of the exotic line separators.
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return text.removesuffix("\n").split("\n") if text else []
