"""The prepared bases of one operator variant: made once, kept on disk, mapped by every worker."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from filelock import FileLock
from torch import Tensor

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.checkpoints.weights import open_weights
from evomerge.datatypes import Knob, digest_of
from evomerge.errors import CheckpointError
from evomerge.merging.deltas import rounded_deltas
from evomerge.merging.inner_product import inner_product
from evomerge.merging.serial_threads import in_order
from evomerge.merging.tensor_file import TensorFile
from evomerge.merging.variant import Variant

# Part of the key: to be raised when the same experts would give other bytes or another layout.
_FORMAT = 2


class Bank:
    """One basis per expert and tensor, in the base's dtype, memory-mapped and read-only.

    On disk `<cache>/banks/<key>/` holds `bank.json` and one safetensors file per expert, without
    the tensors that it leaves alone. The key is a digest of everything that the bytes depend on. A
    folder of that name is complete: it is written beside, synced, then renamed.

    Attributes:
        path: The folder.
        variant: The operator with its knobs and seed.
        experts: The names that the experts have in this run, in order.
        base_digest: Of the checkpoint that the bases are added to.
        norms: Euclidean norm of each expert's whole delta as it is merged, before any operator.
    """

    def __init__(self, path: Path, variant: Variant, experts: Sequence[Expert]) -> None:
        facts = json.loads((path / "bank.json").read_text(encoding="utf-8"))
        self.path = path
        self.variant = variant
        self.experts = tuple(expert.name for expert in experts)
        self.base_digest: str = facts["base"]
        self.norms: Mapping[str, float] = dict(zip(self.experts, facts["norms"], strict=True))
        try:
            self._files = [open_weights(path, _stem(k)) for k in range(len(self.experts))]
        except CheckpointError as error:
            raise CheckpointError(
                f"a bank must be complete, but {path} is not ({error}): delete that folder, it is "
                "made again"
            ) from error

    @property
    def key(self) -> str:
        """Content address: 16 hex digits."""
        return self.path.name

    def bases(self, name: str) -> list[Tensor | None]:
        """The bases of a tensor, one per expert in order; None is zero. Not to be written to."""
        return [file.read(name) if name in file.facts else None for file in self._files]

    def release(self) -> None:
        """Unmap the files as soon as nothing read from them is in use; reading maps them again."""
        for file in self._files:
            file.release()

    @classmethod
    def open_or_build(
        cls,
        cache: Path,
        base: Checkpoint,
        experts: Sequence[Expert],
        anatomy: Anatomy,
        operator: str = "task_arithmetic",
        knobs: Mapping[str, Knob] | None = None,
        seed: int = 0,
    ) -> Self:
        """Open the bank, after making it if it is not there; one process makes, others wait.

        Raises:
            ConfigError: There is no such operator or knob.
            CheckpointError: A delta is NaN or infinite, the bank cannot be written, or it is
                damaged.
        """
        variant = Variant.of(operator, knobs or {}, seed)
        path = cache.expanduser().absolute() / "banks" / _key(base, experts, anatomy, variant)
        if not path.is_dir():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(str(path.parent / f"{path.name}.lock")):
                    if not path.is_dir():
                        _build(path, base, experts, anatomy, variant)
            except OSError as error:
                raise _unwritable(path, error) from error
        return cls(path, variant, experts)


def _key(base: Checkpoint, experts: Sequence[Expert], anatomy: Anatomy, variant: Variant) -> str:
    tensors = [
        [name, list(facts.shape), facts.dtype, anatomy.roles[name].kind, anatomy.roles[name].layer]
        for name, facts in sorted(base.tensors.items())
    ]
    return digest_of(
        {
            "format": _FORMAT,
            "base": base.digest,
            "experts": [expert.digest for expert in experts],
            "operator": variant.operator.name,
            "knobs": dict(variant.knobs),
            "seed": variant.seed,
            "tensors": tensors,
        }
    )


def _build(
    path: Path, base: Checkpoint, experts: Sequence[Expert], anatomy: Anatomy, variant: Variant
) -> None:
    """Write beside, then rename. The caller has the lock: leftovers are of a dead process."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        squares = _write_bases(partial, base, experts, anatomy, variant)
        facts = {
            "format": _FORMAT,
            "operator": variant.operator.name,
            "knobs": dict(variant.knobs),
            "seed": variant.seed,
            "base": base.digest,
            "experts": [expert.digest for expert in experts],
            "norms": [square**0.5 for square in squares],
        }
        with (partial / "bank.json").open("w", encoding="utf-8") as file:
            json.dump(facts, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_bases(
    folder: Path, base: Checkpoint, experts: Sequence[Expert], anatomy: Anatomy, variant: Variant
) -> list[float]:
    """One file per expert, piece by piece; returns the squared norms of the experts' deltas."""
    names = list(base.tensors)
    deltas = dict(zip(names, in_order(partial(rounded_deltas, base, experts), names), strict=True))
    squares = [0.0] * len(experts)
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(
                TensorFile(
                    folder / f"{_stem(k)}.safetensors",
                    [base.tensors[name] for name in names if deltas[name][k] is not None],
                )
            )
            for k in range(len(experts))
        ]

        def write(name: str) -> list[float]:
            of_tensor = [0.0] * len(experts)
            pieces = variant.bases(base.read(name), deltas[name], anatomy.roles[name])
            for piece, bases in pieces:
                for k, basis in enumerate(bases):
                    if basis is not None:
                        files[k].write(name, piece.start, basis)
                        delta = piece.deltas[k]
                        of_tensor[k] = inner_product(delta, delta, of_tensor[k])
            return of_tensor

        for of_tensor in in_order(write, names):
            squares = [a + b for a, b in zip(squares, of_tensor, strict=True)]
    return squares


def _stem(k: int) -> str:
    return f"basis_{k}"


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    remedy = "free some space" if error.errno == errno.ENOSPC else "choose another cache folder"
    return CheckpointError(
        f"the bank of deltas must be written once, but {path} cannot be ({error}): {remedy}; "
        "nothing was left behind"
    )
