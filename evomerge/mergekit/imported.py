"""What an import makes: a configuration, notes on what became of the rest, a recipe to start at."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.config import parse
from evomerge.datatypes import Recipe


@dataclass(frozen=True, slots=True)
class Imported:
    """The result.

    Attributes:
        config: The configuration as plain YAML types.
        notes: A sentence for everything that has no counterpart or another meaning here.
        start: The merge itself, if the file was one.
        has_objectives: Whether the configuration says what is searched for.
    """

    config: Mapping[str, Any]
    notes: Sequence[str]
    start: Recipe | None = None
    has_objectives: bool = field(default=True)

    def files(self, source: str, out: Path) -> dict[Path, str]:
        """What is to be written: the configuration, and beside it the recipe to start at.

        Raises:
            ConfigError: It is complete and still breaks a rule of configurations.
        """
        if self.start is None:
            return {out: self.to_yaml(source)}
        beside = out.with_suffix(".start.json")
        text = json.dumps(self.start.to_json(), indent=1) + "\n"
        return {out: self.to_yaml(source, start=f"./{beside.name}"), beside: text}

    def to_yaml(self, source: str, start: str | None = None) -> str:
        """The configuration with the notes above it; `start` is the file of the recipe.

        Raises:
            ConfigError: It is complete and still breaks a rule of configurations.
        """
        config = dict(self.config)
        head = [f"# imported from {source}", *(f"# - {note}" for note in self.notes)]
        if self.has_objectives:
            parse(_dumped(config), folder=Path("/"), name=f"what was imported from {source}")
        if start is not None:
            config["space"] = {**config["space"], "start": start}
        text = "\n".join(head) + "\n" + _dumped(config)
        return text if self.has_objectives else text + _NO_OBJECTIVES


def _dumped(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)


_NO_OBJECTIVES = """\
# A merge file does not say what is searched for: name it, or import again with --task.
# objectives:
#   - {name: math, lm_eval: gsm8k_cot, metric: "exact_match,flexible-extract", items: 200}
"""
