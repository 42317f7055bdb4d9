"""Results on their way to the journal: one file per evaluation, written by the worker.

A worker writes its result here before it answers, so that a driver that dies loses nothing that
was finished. Once told in the journal, which then holds the answers, the file is removed. Files are
not forced to the disk: they outlive any process, and a power cut costs what was in flight.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from evomerge.datatypes import Evaluation, Failure, canonical_json


def write(folder: Path, evaluation: Evaluation) -> Path:
    """Put an evaluation on disk under its key, whole or not at all."""
    plain = {
        "key": evaluation.key,
        "responses": {name: list(values) for name, values in evaluation.responses.items()},
        "seconds": dict(evaluation.seconds),
        "failure": None
        if evaluation.failure is None
        else {"kind": evaluation.failure.kind, "message": evaluation.failure.message},
    }
    target = path_of(folder, evaluation.key)
    temporary = folder / f".{evaluation.key}.{os.getpid()}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(canonical_json(plain))
    temporary.replace(target)
    return target


def read(path: Path) -> Evaluation | None:
    """The evaluation of a file, or None when the file is missing or damaged."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        failure = plain["failure"]
        return Evaluation(
            key=plain["key"],
            responses={name: tuple(values) for name, values in plain["responses"].items()},
            seconds=plain["seconds"],
            failure=None if failure is None else Failure(failure["kind"], failure["message"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def sweep(folder: Path, is_open: Callable[[str], bool]) -> None:
    """Remove what killed writers left, and results that are not waited for any more.

    Args:
        folder: The spool.
        is_open: Whether the question of a key may still need its result.
    """
    for path in folder.iterdir():
        if path.suffix == ".tmp" or not is_open(path.stem):
            path.unlink(missing_ok=True)


def path_of(folder: Path, key: str) -> Path:
    """Where the result of a key is while it waits."""
    return folder / f"{key}.json"


def settle(folder: Path, key: str) -> None:
    """Remove a result that the journal holds now."""
    path_of(folder, key).unlink(missing_ok=True)
