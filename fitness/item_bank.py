"""Parameters of items in item response theory, as a value and as a file."""

import hashlib
import os
import pickle
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from evomerge.datatypes import FloatArray
from evomerge.errors import TaskError

FORMAT_VERSION = 1
TINY_BENCHMARKS_SHA256 = "c3b6e426dfe7b100fe6d0ee960398e10a8763254bcead3be80cc6bc15abca284"
"""Of the public `tinyBenchmarks.pkl`: the only pickle that is ever opened."""


@dataclass(frozen=True, slots=True, eq=False)
class ItemBank:
    """Items of the multidimensional two-parameter logistic model (2PL), in the pool's order.

    Args:
        A: Discriminations, shape `(n_items, n_dimensions)`.
        B: Difficulties, same shape; item i is answered right by ability theta with probability
            `sigmoid(sum_d A_id theta_d - B_id)`.
        item_ids: Name of each item, or empty.

    Raises:
        TaskError: when shapes disagree or a parameter is not finite.
    """

    A: FloatArray
    B: FloatArray
    item_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.A.shape != self.B.shape or 0 in self.A.shape:
            raise TaskError(
                "an item bank has discriminations and difficulties of shape (n_items, "
                f"n_dimensions), but got {self.A.shape} and {self.B.shape}"
            )
        if self.item_ids and len(self.item_ids) != len(self.A):
            raise TaskError(
                f"an item bank names every item or none, but {len(self.A)} items have "
                f"{len(self.item_ids)} names"
            )
        if not (np.isfinite(self.A).all() and np.isfinite(self.B).all()):
            bad = np.flatnonzero(~np.isfinite(self.A + self.B).all(axis=1))
            raise TaskError(
                f"the parameters of an item bank are finite numbers, but those of {len(bad)} "
                f"items (first: {bad[0]}) are not: fit the bank again"
            )

    def select(self, item_ids: Sequence[str]) -> "ItemBank":
        """The items of these names, in this order; a bank without names is taken as it is.

        Raises:
            TaskError: when the bank lacks one.
        """
        if not self.item_ids:
            return self
        rows = {name: row for row, name in enumerate(self.item_ids)}
        missing = [name for name in item_ids if name not in rows]
        if missing:
            raise TaskError(
                f"an item bank describes all items of the pool, but {len(missing)} of "
                f"{len(item_ids)} (the first: {missing[0]}) are not in it: fit one on these items"
            )
        order = [rows[name] for name in item_ids]
        return ItemBank(self.A[order], self.B[order], tuple(item_ids))

    def save(self, path: str | Path) -> None:
        """Write the bank as an uncompressed `.npz` without pickle, with its checksum, at once."""
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file,
                    format_version=np.array(FORMAT_VERSION),
                    A=self.A,
                    B=self.B,
                    item_ids=np.array(self.item_ids, dtype=np.str_),
                    checksum=np.array(self._checksum()),
                )
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            TaskError: when the file is missing, is no item bank or is damaged.
        """
        try:
            # Opened here: numpy leaves its own handle open when a file is no archive.
            with Path(path).open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                version = int(file["format_version"])
                A, B = (np.asarray(file[name], dtype=np.float64) for name in ("A", "B"))
                item_ids = tuple(str(name) for name in file["item_ids"])
                checksum = str(file["checksum"])
        except FileNotFoundError as error:
            raise TaskError(f"an item bank is a file, but {path} does not exist") from error
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise TaskError(
                f"an item bank is a file written by ItemBank.save, but {path} is none or is "
                f"damaged: write it again ({type(error).__name__})"
            ) from error
        if version != FORMAT_VERSION:
            raise TaskError(
                f"this version reads item banks of format {FORMAT_VERSION}, but {path} has "
                f"format {version}: write it again"
            )
        bank = cls(A, B, item_ids)
        if bank._checksum() != checksum:
            raise TaskError(
                f"an item bank agrees with its checksum, but {path} does not: write it again"
            )
        return bank

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for array in (self.A, self.B):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        digest.update("\0".join(self.item_ids).encode())
        return digest.hexdigest()


def load_tiny_benchmarks(path: str | Path, scenario: str) -> ItemBank:
    """Items of a scenario (`truthfulqa`, `arc`, `mmlu`) of the public `tinyBenchmarks.pkl`.

    The file is a pickle (Polo et al. 2024), and a pickle can run anything: it is opened only when
    it is byte for byte the published one.

    Raises:
        TaskError: when it is another file, or has no such scenario.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise TaskError(f"tinyBenchmarks' item bank is a file, but got {path}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != TINY_BENCHMARKS_SHA256:
        raise TaskError(
            f"a pickle is opened only if it is the published tinyBenchmarks.pkl (SHA-256 "
            f"{TINY_BENCHMARKS_SHA256[:16]}...), but {path} has {found[:16]}...: download it again"
        )
    return scenario_of(pickle.loads(content), scenario)  # noqa: S301 - its SHA-256 was checked


def scenario_of(benchmarks: dict[str, Any], scenario: str) -> ItemBank:
    """The items of a scenario, from the content of `tinyBenchmarks.pkl`.

    Raises:
        TaskError: when no benchmark has it.
    """
    for benchmark in benchmarks.values():
        if scenario in benchmark["scenarios_position"]:
            positions = np.asarray(benchmark["scenarios_position"][scenario], dtype=np.int64)
            parameters = benchmark["irt_parameters"]
            A, B = (
                np.asarray(parameters[name], dtype=np.float64)[0][:, positions].T.copy()
                for name in ("A", "B")
            )
            return ItemBank(A, B)
    names = sorted({name for one in benchmarks.values() for name in one["scenarios_position"]})
    raise TaskError(f"a scenario is one of {', '.join(names)}, but got {scenario!r}")
