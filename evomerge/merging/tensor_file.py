"""A safetensors file whose tensors are written in parts, in any order."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from evomerge.checkpoints.reading import TensorFacts

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"}
_ALIGNMENT = 64


class TensorFile:
    """Room for the tensors announced; every element of them must be written.

    Used as a context manager; the file is complete and on the disk after a normal exit. Several
    threads may write at once.
    """

    def __init__(self, path: Path, announced: Iterable[TensorFacts]) -> None:
        # Widest first keeps every tensor aligned to its dtype.
        facts = sorted(announced, key=_item_bytes, reverse=True)
        entries: dict[str, Any] = {}
        self._offsets: dict[str, int] = {}
        end = 0
        for fact in facts:
            start, end = end, end + fact.n_bytes
            entries[fact.name] = {
                "dtype": _DTYPES[fact.dtype],
                "shape": list(fact.shape),
                "data_offsets": [start, end],
            }
            self._offsets[fact.name] = start
        header = json.dumps(entries).encode()
        self._start = -(-(8 + len(header)) // _ALIGNMENT) * _ALIGNMENT
        self._file = path.open("wb")
        header = header.ljust(self._start - 8)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def write(self, name: str, start: int, elements: Tensor) -> None:
        """Elements of an announced tensor from `start` on; flat, in its dtype."""
        content: Any = elements.contiguous().view(torch.uint8).numpy()
        offset = self._start + self._offsets[name] + start * elements.itemsize
        left = memoryview(content)
        while left:
            n_bytes = os.pwrite(self._file.fileno(), left, offset)
            left, offset = left[n_bytes:], offset + n_bytes

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                os.fsync(self._file.fileno())


def _item_bytes(fact: TensorFacts) -> int:
    return int(getattr(torch, fact.dtype).itemsize)
