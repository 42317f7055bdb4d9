"""The models that a mergekit file names, as those of a configuration."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Reference:
    """`path[@revision][+adapter[@revision]]`, taken apart."""

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @classmethod
    def of(cls, text: str) -> "Reference":
        """Cut where mergekit cuts."""
        model, _, adapter = text.partition("+")
        path, _, revision = model.partition("@")
        adapter_path, _, adapter_revision = adapter.partition("@")
        return cls(path, revision or None, adapter_path or None, adapter_revision or None)


class Models:
    """Base and experts of a file, with names of their own.

    Relative paths in a mergekit file are relative to where mergekit runs: here to the working
    directory, else to the file's folder; what is neither is a Hub id.

    Args:
        base: The reference of the base.
        experts: Those of the experts, in order.
        folder: The file's.
        name: The file's, for messages.

    Raises:
        ConfigError: The base is an adapter, there is no expert, or an adapter is of another base.
    """

    def __init__(self, base: str, experts: Sequence[str], folder: Path, name: str) -> None:
        if not experts:
            raise ConfigError(
                f"a merge needs an expert beside its base, but {name} has {base} only: add a model"
            )
        self.notes: list[str] = []
        self._folder = folder
        of_base = Reference.of(base)
        if of_base.adapter:
            raise ConfigError(
                f"a base must be a full model, but that of {name} is {base}: merge the adapter "
                "into it first"
            )
        self.base = self._plain(of_base.path, of_base.revision)
        self.experts: dict[str, Any] = {}
        self.spelled: dict[str, str] = {}
        for text in experts:
            one = Reference.of(text)
            if one.adapter and (one.path, one.revision) != (of_base.path, of_base.revision):
                raise ConfigError(
                    f"an adapter is merged into the base of the merge, but {text} in {name} is of "
                    f"another one than {base}: merge it into its own model first"
                )
            path, revision = (
                (one.adapter, one.adapter_revision) if one.adapter else (one.path, one.revision)
            )
            expert = _distinct(_plain_name(path), self.experts)
            self.experts[expert] = self._plain(path, revision)
            self.spelled[expert] = text

    def _plain(self, path: str, revision: str | None) -> Any:
        for place in (Path.cwd(), self._folder):
            if (place / Path(path).expanduser()).is_dir():
                path = str((place / Path(path).expanduser()).resolve())
                break
        else:
            if path.startswith((".", "/", "~")):
                self.notes.append(f"{path} is no folder that is there: correct the path")
        if re.search(r"input_models/.+_[0-9a-f]{1,8}$", path):
            self.notes.append(
                f"{path} is a copy that mergekit-evolve made: give the model that it was made of"
            )
        return path if revision is None else {"path": path, "revision": revision}

    @property
    def base_folder(self) -> Path | None:
        """The base's folder if it is on this machine."""
        path = Path(self.base if isinstance(self.base, str) else self.base["path"])
        return path if path.is_dir() else None

    @property
    def n_layers(self) -> int | None:
        """What the base's `config.json` says, if it is on this machine."""
        folder = self.base_folder
        if folder is None or not (folder / "config.json").is_file():
            return None
        n_layers = json.loads((folder / "config.json").read_text()).get("num_hidden_layers")
        return n_layers if isinstance(n_layers, int) else None


def _plain_name(path: str) -> str:
    """The last part of a path as an expert's name: letters, digits, dots, dashes, underscores."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.rstrip("/").rpartition("/")[2]).strip("-._")
    return name or "expert"


def _distinct(name: str, taken: dict[str, Any]) -> str:
    number = 2
    distinct = name
    while distinct in taken or distinct == "base":
        distinct = f"{name}-{number}"
        number += 1
    return distinct
