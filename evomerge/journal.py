"""The journal of a run: append-only JSON lines with checksums, one writer, torn tails cut on open.

What cannot be made again is on disk (`fsync`) before `append` returns. Every line is a JSON object
whose `crc` is the CRC-32 of the canonical JSON of the rest, so that a damaged line is never taken
for a true one.
"""

import fcntl
import json
import os
import socket
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from evomerge.datatypes import canonical_json
from evomerge.errors import JournalError, RunError, RunLockedError

Event = dict[str, Any]


def encode(event: Mapping[str, Any]) -> bytes:
    """One journal line."""
    body = canonical_json(event)
    crc = zlib.crc32(body.encode())
    return f'{body[:-1]}{"," if len(body) > 2 else ""}"crc":"{crc:08x}"}}\n'.encode()


def decode(line: bytes) -> Event | None:
    """The event of a line, or None if the line is torn or damaged."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict):
        return None
    crc = event.pop("crc", None)
    if crc != f"{zlib.crc32(canonical_json(event).encode()):08x}":
        return None
    return event


def read_events(path: Path) -> tuple[list[Event], int]:
    """All events of a journal and the number of bytes they fill; a torn last line is left out.

    Raises:
        JournalError: when there is no journal, or a line before the last is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise JournalError(
            f"a run directory holds a journal, but {path} does not exist: check the path of the run"
        ) from error
    events: list[Event] = []
    position = 0
    while position < len(content):
        end = content.find(b"\n", position) + 1
        event = decode(content[position:end]) if end else None
        if event is None:
            if end and content[end:].strip(b"\0\n "):
                raise JournalError(
                    f"journal lines must match their checksums, but line {len(events) + 1} of "
                    f"{path} does not: restore the file from a copy"
                )
            break
        events.append(event)
        position = end
    return events, position


class RunLock:
    """Exclusive hold on a run directory for the life of this process (or until `release`).

    `lockf` rather than `flock`: it is not inherited by children, so that a worker that outlives
    its driver cannot keep the run locked. The file names the holder for the refusal's message.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(
                f"a run directory must be writable, but {path.parent} is not ({error.strerror}): "
                "choose another one with --run"
            ) from error
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._descriptor, 200).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise RunLockedError(
                f"a run has one driver at a time, but {path.parent} is held by {holder}: "
                "wait for it or stop it"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{socket.gethostname()}, process {os.getpid()}\n".encode())

    def release(self) -> None:
        """Let another driver take the run."""
        os.close(self._descriptor)


class Journal:
    """The one writer of a run's journal; also holds the run's lock.

    Args:
        folder: The run directory; it exists.

    Raises:
        RunLockedError: when another driver holds the run.
        JournalError: when the journal is damaged before its last line.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = RunLock(folder / "lock")
        self._path = folder / "journal.jsonl"
        try:
            self.events: list[Event] = []
            """What was in the journal when it was opened."""
            length = 0
            if self._path.exists():
                self.events, length = read_events(self._path)
            self._descriptor = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
            os.ftruncate(self._descriptor, length)
        except BaseException:
            self._lock.release()
            raise

    def append(self, event: Event, *, durable: bool = True) -> None:
        """Write an event and, if `durable`, wait until it and all before it are on disk.

        Without waiting it survives the death of this process all the same, but not a power cut.

        Raises:
            RunError: when the disk does not take it; the torn line is cut again at once.
        """
        line = encode(event)
        start = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError("short write: the disk is full")
            if durable:
                os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            raise RunError(
                f"every event must reach the disk, but {self._path} could not be written "
                f"({error}): make room, then `evomerge resume`"
            ) from error

    def close(self) -> None:
        """Close the file and release the run."""
        os.close(self._descriptor)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
