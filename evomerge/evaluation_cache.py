"""Answers that were paid for already, by what decides them: shared between runs and writers.

One small file per evaluation, written under a temporary name and renamed, so that writers need not
know of each other. A file that does not match its checksum counts as missing.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from evomerge import journal
from evomerge.datatypes import digest_of

Packed = Mapping[str, str]
"""Packed answers by objective (see `packing`)."""


def cache_key(models: Mapping[str, str], settings: str, recipe: str, items: tuple[str, ...]) -> str:
    """The key of an evaluation.

    Args:
        models: Digests of base and experts by name.
        settings: Digest of all that decides an answer besides weights and items: metrics, few-shot
            examples, generation arguments, versions.
        recipe: Digest of the recipe.
        items: Digests of the items' contents, one for each fitness.
    """
    return digest_of([dict(models), settings, recipe, list(items)])


class EvaluationCache:
    """Packed answers by key; a folder, with what this process has seen kept in memory.

    Args:
        folder: Shared by runs; None keeps answers in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder / "evaluations"
        self._seen: dict[str, Packed] = {}
        self._made: set[Path] = set()
        self.damaged: list[Path] = []
        """Files met that did not match their checksum."""

    def get(self, key: str) -> Packed | None:
        """The answers under a key, or None."""
        if key in self._seen or self._folder is None:
            return self._seen.get(key)
        try:
            plain = journal.decode(self._path(key).read_bytes())
        except OSError:
            return None
        if plain is None or plain.get("key") != key:
            self.damaged.append(self._path(key))
            return None  # it is made again and written over
        self._seen[key] = plain["responses"]
        return self._seen[key]

    def put(self, key: str, responses: Packed) -> None:
        """Keep answers; a disk that is full or read-only costs later runs the evaluation only."""
        self._seen[key] = responses
        if self._folder is None:
            return
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            if path.parent not in self._made:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._made.add(path.parent)
            temporary.write_bytes(journal.encode({"key": key, "responses": dict(responses)}))
            temporary.replace(path)

    def remember(self, key: str, responses: Packed) -> None:
        """Keep answers that a journal holds already for the life of this process."""
        self._seen[key] = responses

    def _path(self, key: str) -> Path:
        assert self._folder is not None  # only asked for where there is one
        return self._folder / key[:2] / f"{key}.json"
