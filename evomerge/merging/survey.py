"""The statistics of all tensors for one operator: found once, kept on disk beside the banks."""

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evomerge.datatypes import digest_of
from evomerge.merging.operators import Statistics
from evomerge.merging.operators.operator import NOTHING
from evomerge.merging.serial_threads import in_order
from evomerge.merging.variant import Source, Variant

_FORMAT = 1
_SEPARATOR = "|"
_MODEL = ""
_MOST_OPEN = 4


@dataclass(frozen=True)
class Survey:
    """What an operator's `scan` found in each tensor and its `gather` in all of them."""

    tensors: Mapping[str, Statistics]
    model: Statistics

    def of(self, name: str) -> Statistics:
        """Of one tensor; nothing if no expert changes it."""
        return self.tensors.get(name, NOTHING)

    @classmethod
    def make(cls, variant: Variant, names: Iterable[str], read: Callable[[str], Source]) -> Self:
        """Look at every tensor, on as many threads as torch would use."""
        operator = variant.operator
        if not variant.looks:
            return cls({}, NOTHING)
        named = list(names)
        found = in_order(lambda name: variant.look(read(name)), named)
        tensors = {name: seen for name, seen in zip(named, found, strict=True) if seen}
        if operator.gather is None:
            return cls(tensors, NOTHING)
        return cls(tensors, operator.gather(list(tensors.values()), variant.knobs))


class Surveys:
    """Surveys of the same checkpoints: a few in memory, all of them in a folder.

    Args:
        names: The tensors.
        read: From a name to the tensor with its deltas.
        folder: Where they are kept; None keeps none.
        key: Digest of the checkpoints.
    """

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], Source],
        folder: Path | None = None,
        key: str = "",
    ) -> None:
        self._names = tuple(names)
        self._read = read
        self._folder = folder
        self._key = key
        self._open: OrderedDict[str, Survey] = OrderedDict()

    def of(self, variant: Variant) -> Survey:
        """The survey of a variant, made if need be."""
        key = digest_of([_FORMAT, self._key, variant.identity_of_statistics])
        if key not in self._open:
            self._open[key] = self._load_or_make(variant, key)
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def _load_or_make(self, variant: Variant, key: str) -> Survey:
        if self._folder is None or not variant.looks:
            return Survey.make(variant, self._names, self._read)
        path = self._folder / f"{key}.safetensors"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(self._folder / f"{key}.lock")):
                return _load(path) or _save(self._make(variant), path)
        except OSError:  # a cache that may only be read
            return self._make(variant)

    def _make(self, variant: Variant) -> Survey:
        return Survey.make(variant, self._names, self._read)


def _save(survey: Survey, path: Path) -> Survey:
    """Keep a survey if there is room, and return it: what is not kept is only made again."""
    parts: dict[str, Tensor] = {}
    for name, statistics in {_MODEL: survey.model, **survey.tensors}.items():
        for what, tensor in statistics.items():
            parts[f"{name}{_SEPARATOR}{what}"] = tensor.contiguous()
    partial = path.with_suffix(".partial")
    try:
        save_file(parts, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return survey


def _load(path: Path) -> Survey | None:
    """A kept survey; None if it is not there, or damaged."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it has no __iter__
                name, _, what = key.rpartition(_SEPARATOR)
                found.setdefault(name, {})[what] = file.get_tensor(key)
    except (OSError, SafetensorError):
        return None
    model = found.pop(_MODEL, {})
    return Survey(found, model)
