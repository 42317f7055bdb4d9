"""Aids of one expert on the disk: made once, read tensor by tensor by all runs and workers."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock
from torch import Tensor

from evomerge.checkpoints.weights import TensorFacts, Weights, open_weights
from evomerge.errors import CheckpointError
from evomerge.merging.tensor_file import TensorFile

_STEM = "tensors"
_FACTS = "aids.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """What there will be: fp32 tensors of these shapes, and which of them each weight has.

    `input_axes` are the axes of the weights that Grams belong to.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, str]
    input_axes: Mapping[str, int] = field(default_factory=dict)


class KeptAids:
    """A complete folder: `aids.json` and a memory-mapped safetensors file.

    Attributes:
        path: The folder.
        digest: 16 hex digits of the file's bytes.
        input_axes: By weight, for Grams.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            facts: dict[str, Any] = json.loads((path / _FACTS).read_text(encoding="utf-8"))
            self.digest: str = facts["digest"]
            self.input_axes: Mapping[str, int] = facts["input_axes"]
            self._tensors: Mapping[str, str] = facts["tensors"]
            self._weights: Weights = open_weights(path, _STEM)
        except (OSError, ValueError, KeyError, CheckpointError) as error:
            raise CheckpointError(
                f"collected statistics must be complete, but {path} is not ({error}): delete that "
                "folder, they are collected again"
            ) from error

    @classmethod
    def open_or_make(
        cls, path: Path, make: Callable[[], tuple[Plan, Iterable[tuple[str, Tensor]]]]
    ) -> Self:
        """Open the folder, after making it if it is not there; one process makes, others wait.

        Args:
            path: Named by all that the contents depend on; a folder of that name is complete.
            make: Called at most once: what there will be, then each tensor as it comes.

        Raises:
            CheckpointError: It cannot be written, or is damaged.
        """
        if not path.is_dir():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(str(path.parent / f"{path.name}.lock")):
                    if not path.is_dir():
                        _make(path, *make())
            except OSError as error:
                full = error.errno == errno.ENOSPC
                raise CheckpointError(
                    f"statistics must be written once, but {path} cannot be ({error}): "
                    f"{'free some space' if full else 'choose another cache folder'}; nothing was "
                    "left behind"
                ) from error
        return cls(path)

    def read(self, name: str) -> Tensor | None:
        """What there is for a weight, not to be written to; None if there is nothing."""
        tensor = self._tensors.get(name)
        return None if tensor is None else self._weights.read(tensor)

    def release(self) -> None:
        """Unmap the file as soon as nothing read from it is in use; reading maps it again."""
        self._weights.release()


def _make(path: Path, plan: Plan, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write beside, sync, then rename. The caller has the lock: leftovers are of a dead process."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        file = partial / f"{_STEM}.safetensors"
        announced = [TensorFacts(name, shape, "float32") for name, shape in plan.shapes.items()]
        with TensorFile(file, announced) as room:
            for name, tensor in tensors:
                room.write(name, 0, tensor.reshape(-1))
        with file.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()[:16]
        facts = {
            "digest": digest,
            "tensors": dict(plan.tensors),
            "input_axes": dict(plan.input_axes),
        }
        with (partial / _FACTS).open("w", encoding="utf-8") as json_file:
            json.dump(facts, json_file, indent=1)
            json_file.flush()
            os.fsync(json_file.fileno())
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
