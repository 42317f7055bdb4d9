"""Results on their way to the journal: one file per evaluation, written by the worker.

A worker writes its result here before it answers, so that a driver that dies loses nothing that
was finished. Once told in the journal the file moves to `responses/`, where it stays as the record
of the answers item by item.
"""

import json
import os
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
    target = folder / f"{evaluation.key}.json"
    temporary = folder / f".{evaluation.key}.{os.getpid()}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(canonical_json(plain))
        file.flush()
        os.fsync(file.fileno())
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


def sweep(folder: Path) -> None:
    """Remove what writers left that were killed while they wrote."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def settle(run: Path, key: str) -> None:
    """Move a told result from the spool to the responses; nothing to do if it is there already."""
    source = run / "spool" / f"{key}.json"
    if source.exists():
        source.replace(run / "responses" / source.name)
