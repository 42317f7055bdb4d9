"""Tensors that are computed once and kept in a file, which runs and workers share."""

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from filelock import FileLock
from torch import Tensor

_DTYPES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_CHECKSUM = "crc32"


@dataclass(frozen=True, slots=True)
class Room:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """How much of the file it takes."""
        n = self.dtype.itemsize
        for size in self.shape:
            n *= size
        return n


Tensors = dict[str, Tensor]


def read_or_make(path: Path, rooms: Mapping[str, Room], fill: Callable[[Tensors], None]) -> Tensors:
    """The memory-mapped tensors of a safetensors file.

    A file that is missing, damaged (by its checksum) or holds other tensors is made anew: `fill`
    writes every element of the given tensors, which are the file itself. It appears under its name
    when it is complete. Of several processes that want the same file one makes it and the others
    wait.

    Args:
        path: Where it is or will be; parents are made.
        rooms: What it holds, by name.
        fill: Called at most once.
    """
    found = _read(path, rooms)
    if found is not None:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        found = _read(path, rooms)
        if found is not None:
            return found
        _make(path, rooms, fill)
    made = _read(path, rooms)
    if made is None:
        raise OSError(f"what was just written to {path} reads back otherwise")
    return made


def _read(path: Path, rooms: Mapping[str, Room]) -> Tensors | None:
    """The tensors, or None if they are not there whole."""
    expected = {**rooms, _CHECKSUM: Room((1,), torch.int64)}
    try:
        file: Any = safetensors.safe_open(str(path), framework="pt")
        tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError):
        return None
    if {name: Room(tuple(t.shape), t.dtype) for name, t in tensors.items()} != expected:
        return None
    checksum = int(tensors.pop(_CHECKSUM))
    return tensors if _checksum(tensors) == checksum else None


def _make(path: Path, rooms: Mapping[str, Room], fill: Callable[[Tensors], None]) -> None:
    # The file is written as it is filled: it may be larger than the memory.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    partial = Path(name)
    try:
        ordered = {n: rooms[n] for n in sorted(rooms, key=lambda n: (-rooms[n].dtype.itemsize, n))}
        ordered = {_CHECKSUM: Room((1,), torch.int64), **ordered}  # widest first: all aligned
        header, starts, n_bytes = _layout(ordered)
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            file.truncate(n_bytes)
        content = torch.from_file(name, shared=True, size=n_bytes, dtype=torch.uint8)
        tensors = {
            name: content[starts[name] : starts[name] + room.n_bytes]
            .view(room.dtype)
            .view(room.shape)
            for name, room in ordered.items()
        }
        checksum = tensors.pop(_CHECKSUM)
        fill(tensors)
        checksum.fill_(_checksum(tensors))
        del tensors, checksum, content
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _layout(rooms: Mapping[str, Room]) -> tuple[bytes, dict[str, int], int]:
    """The header of a safetensors file, where each tensor starts, and the size of it all."""
    entries: dict[str, Any] = {}
    end = 0
    for name, room in rooms.items():
        start, end = end, end + room.n_bytes
        entries[name] = {
            "dtype": _DTYPES[room.dtype],
            "shape": list(room.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries).encode()
    data = -(-(8 + len(header)) // 64) * 64
    header = header.ljust(data - 8)
    starts = {name: data + entry["data_offsets"][0] for name, entry in entries.items()}
    return len(header).to_bytes(8, "little") + header, starts, data + end


def _checksum(tensors: Tensors) -> int:
    checksum = 0
    for name in sorted(tensors):
        content: Any = tensors[name].reshape(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(content, checksum)
    return checksum
