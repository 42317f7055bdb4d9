"""Reading YAML that was written for mergekit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        ConfigError: It cannot be read, is no YAML or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"a mergekit file is a readable YAML file, but {path} is not ({error.strerror})"
        ) from error
    return parse_mapping(text, str(path))


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """The keys of a YAML text.

    Raises:
        ConfigError: It is no YAML or no mapping.
    """
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{name} must be YAML, but it is not: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{name} must be a mapping of keys, but it is {type(plain).__name__}")
    return plain


def unknown_keys(
    plain: Mapping[str, Any], known: Mapping[str, Any] | set[str], where: str
) -> list[str]:
    """A note for each key that mergekit itself ignores."""
    return [
        f"`{where}{key}` is no key of mergekit's: ignored, there as here"
        for key in plain
        if key not in known
    ]
