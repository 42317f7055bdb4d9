"""Unlabeled text as items: read from a file, then as token ids of the model's tokenizer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.datatypes import Split, digest_of
from evomerge.errors import TaskError
from fitness.items import choose, divide, refuse_overlap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Text:
    """One item; a prompt is what a chat template may be put around, a plain text is not."""

    content: str
    is_prompt: bool

    @property
    def digest(self) -> str:
        """Content address."""
        return digest_of({"prompt" if self.is_prompt else "text": self.content})


def read_texts(path: str) -> list[Text]:
    """The texts of a file in order, blank lines left out.

    Each line of a JSON-lines file is `{"text": ...}` or `{"prompt": ...}`, further keys are
    ignored; each line of a file that ends in `.txt` is a text.

    Raises:
        TaskError: when the file cannot be read, is empty, or a line is something else.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(
            f"{path}: texts are read from a file in UTF-8, but it cannot be read ({error}): check "
            "the path"
        ) from error
    is_plain = path.endswith(".txt")
    texts = [
        Text(line.strip(), is_prompt=False) if is_plain else _parse(line, f"{path}: line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not texts:
        raise TaskError(f"{path}: a file of texts must have lines, but it is empty: fill it")
    return texts


def divided_texts(
    path: str, items: int | None, held_out: int | str | None, seed: int
) -> dict[Split, list[Text]]:
    """The texts of each split.

    Args:
        path: File of the search items.
        items: How many of them, drawn by the seed; None takes all.
        held_out: File of the held-out items; or how many different texts of `path` to hold out;
            or None for none.
        seed: Draws.

    Raises:
        TaskError: when a file cannot be used, has too few texts, or a text is in both.
    """
    if items is not None and (not isinstance(items, int) or isinstance(items, bool)):
        raise TaskError(
            f"{path}: items of unlabeled text are a number, but {items=}: say how many, or leave "
            "it out to take all; the file itself is named by text"
        )
    texts = read_texts(path)
    if held_out is None or isinstance(held_out, str):
        chosen = choose(len(texts), items, seed, Split.SEARCH, path)
        splits = {
            Split.SEARCH: [texts[position] for position in chosen],
            Split.HELD_OUT: [] if held_out is None else read_texts(held_out),
        }
    else:
        search, other = divide(
            len(texts), lambda position: texts[position].digest, items, held_out, seed, path
        )
        splits = {
            Split.SEARCH: [texts[position] for position in search],
            Split.HELD_OUT: [texts[position] for position in other],
        }
    refuse_overlap(
        [text.digest for text in splits[Split.SEARCH]],
        [text.digest for text in splits[Split.HELD_OUT]],
        lambda position: splits[Split.HELD_OUT][position].content,
        str(held_out),
    )
    return splits


def encode(
    texts: Sequence[Text],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    apply_chat_template: bool,
    name: str,
) -> list[tuple[int, ...]]:
    """Token ids of each text, with the special tokens that the tokenizer puts around one.

    Prompts get the chat template, as the user's turn with the start of an answer, if asked for.

    Raises:
        TaskError: when the tokenizer has no usable template, or a text has no tokens.
    """
    contents = [
        _templated(text.content, tokenizer, name)
        if apply_chat_template and text.is_prompt
        else None
        for text in texts
    ]
    encoded = [
        tuple(tokenizer(text.content).input_ids)
        if templated is None
        # The template writes the special tokens.
        else tuple(tokenizer(templated, add_special_tokens=False).input_ids)
        for text, templated in zip(texts, contents, strict=True)
    ]
    for text, tokens in zip(texts, encoded, strict=True):
        if not tokens:
            raise TaskError(
                f"{name}: each text must have a token, but {text.content[:40]!r} has none: leave "
                "it out"
            )
    return encoded


def _templated(prompt: str, tokenizer: "PreTrainedTokenizerBase", name: str) -> str:
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": prompt}]
    try:
        templated = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, ValueError) as error:
        raise TaskError(
            f"{name}: the base's tokenizer must have a chat template to apply, but it says "
            f"{' '.join(str(error).split())[:200]}: leave apply_chat_template out, or choose a "
            "base with a template"
        ) from error
    return str(templated)


def _parse(line: str, where: str) -> Text:
    try:
        plain = json.loads(line)
    except ValueError as error:
        raise TaskError(
            f"{where}: a line must be JSON, but it is not ({error}): mend it"
        ) from error
    found = [key for key in ("text", "prompt") if isinstance(plain, dict) and key in plain]
    content = plain[found[0]] if len(found) == 1 else None
    if not isinstance(content, str) or not content.strip():
        raise TaskError(
            f'{where}: a line must be {{"text": ...}} or {{"prompt": ...}} with some text, but it '
            f"is {line.strip()[:60]}: mend it"
        )
    return Text(content, is_prompt=found[0] == "prompt")
