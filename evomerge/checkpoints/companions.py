"""What belongs to a model besides its weights: configuration, tokenizer, licence."""

from collections.abc import Iterable
from pathlib import Path

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
)
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
)
CODE = ("*.py",)


def read_files(folder: Path, patterns: Iterable[str]) -> dict[str, bytes]:
    """The contents of the files that match, by name, sorted."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """The inverse of `read_files`."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
