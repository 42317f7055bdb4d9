"""What a tokenizer folder says about its tokens, without loading the tokenizer."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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


@dataclass(frozen=True, slots=True)
class VocabularyChoice:
    """What the user decided where base and experts differ; None is no decision.

    Attributes:
        extra_rows: Where rows of tokens come from that the base does not have: `base` (there are
            none beyond its own) or `owner` (whole from the expert that has the token).
        tokenizer: `base` or the expert whose tokenizer and special tokens the merge has.
        chat_template: `base`, an expert, or `none`.
    """

    extra_rows: Literal["base", "owner"] = "base"
    tokenizer: str | None = None
    chat_template: str | None = None


# How vocabularies call the rows that they keep for tokens of later models.
_RESERVED = re.compile(r"reserved|unused|placeholder|<\|extra_\d+\|>", re.IGNORECASE)


def is_reserved(token: str) -> bool:
    """Whether a token's name says that it stands for nothing yet."""
    return _RESERVED.search(token) is not None


def read_special_tokens(folder: Path) -> dict[str, Any]:
    """The tokens that begin, end and pad texts, by role; those that are set.

    `eos_token_id` are the ids that end a generation, sorted.
    """
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        plain = read_json(folder / name) if (folder / name).is_file() else {}
        for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
            token = plain.get(role)
            content = token.get("content") if isinstance(token, dict) else token
            if content is not None:
                found[role] = str(content)
    for name in ("config.json", "generation_config.json"):
        ids = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if ids is not None:
            found["eos_token_id"] = sorted(ids) if isinstance(ids, list) else [ids]
    return found


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
    """The chat template of a folder, stripped, or None; several as the JSON of their list."""
    template = read_raw_template(folder)
    if template is None:
        return None
    return template.strip() if isinstance(template, str) else json.dumps(template)


def read_raw_template(folder: Path) -> Any:
    """The chat template as it is stored: a text, a list of several with names, or None."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_json(folder / name).get("chat_template")
            if template is not None:
                return template
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
