"""A safetensors file that is written tensor by tensor, so that memory holds one at a time."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

from evomerge.checkpoints.reading import TensorFacts

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ALIGNMENT = 64


def file_order(tensors: Mapping[str, TensorFacts]) -> list[str]:
    """Names in the order that keeps every tensor aligned to its dtype: widest first."""
    return sorted(tensors, key=lambda name: -_item_bytes(tensors[name]))


class TensorFile:
    """Room for the tensors announced; those that never come take no space.

    Used as a context manager; the file is complete and on the disk after a normal exit.
    """

    def __init__(self, path: Path, announced: Iterable[TensorFacts]) -> None:
        facts = list(announced)
        # The header comes first but is known last: room for all tensors with the longest offsets.
        n_bytes = sum(fact.n_bytes for fact in facts)
        longest = {fact.name: _entry(fact, n_bytes, n_bytes) for fact in facts}
        length = 8 + len(json.dumps(longest).encode())
        self._start = (length + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
        self._announced = {fact.name: fact for fact in facts}
        self._written: dict[str, Any] = {}
        self._n_bytes = 0
        self._file: BinaryIO = path.open("wb")
        self._file.seek(self._start)

    def __enter__(self) -> Self:
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Append an announced tensor; names come in `file_order`."""
        fact = self._announced[name]
        content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        self._file.write(content.data)
        end = self._n_bytes + fact.n_bytes
        self._written[name] = _entry(fact, self._n_bytes, end)
        self._n_bytes = end

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                header = json.dumps(self._written).encode().ljust(self._start - 8)
                self._file.seek(0)
                self._file.write(len(header).to_bytes(8, "little") + header)
                self._file.flush()
                os.fsync(self._file.fileno())


def _entry(fact: TensorFacts, start: int, end: int) -> dict[str, Any]:
    return {
        "dtype": _DTYPES[fact.dtype],
        "shape": list(fact.shape),
        "data_offsets": [start, end],
    }


def _item_bytes(fact: TensorFacts) -> int:
    return int(getattr(torch, fact.dtype).itemsize)
