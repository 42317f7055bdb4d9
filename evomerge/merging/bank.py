"""The prepared bases of one operator variant: made once, kept on disk, mapped by every worker."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from filelock import FileLock
from torch import Tensor

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.checkpoints.weights import TensorFacts, open_weights
from evomerge.datatypes import Knob, digest_of
from evomerge.errors import CheckpointError
from evomerge.merging.deltas import rounded_deltas
from evomerge.merging.inner_product import inner_product
from evomerge.merging.low_rank.stacks import Stacks
from evomerge.merging.pieces import Flat
from evomerge.merging.serial_threads import in_order
from evomerge.merging.survey import Survey
from evomerge.merging.tensor_file import TensorFile
from evomerge.merging.variant import Aids, Source, Variant

# Part of the key: to be raised when the same experts would give other bytes or another layout.
_FORMAT = 4
NOBODY = 255
"""The owner of places where all bases are zero."""

# Stores the bases of a piece: name of the tensor, where the piece starts, one basis per expert.
Put = Callable[[str, int, Sequence[Tensor | None]], None]


class Bank:
    """The bases of every tensor, in the base's dtype, memory-mapped and read-only.

    On disk `<cache>/banks/<key>/` holds `bank.json` and, without the tensors that no expert
    changes, either one safetensors file per expert (`dense`), or, where at most one basis is not
    zero in any place, the values and who owns them (`owner`: traffic and size do not grow with the
    number of experts). The key is a digest of everything that the bytes depend on. A folder of
    that name is complete: it is written beside, synced, then renamed.

    Attributes:
        path: The folder.
        variant: The operator with its knobs and seed.
        experts: The names that the experts have in this run, in order.
        base_digest: Of the checkpoint that the bases are added to.
        storage: `dense` or `owner`.
        in_factors: Tensors that are not here, because only adapters change them: a bank of plain
            deltas leaves them in their factors.
        norms: Euclidean norm of each expert's whole delta as it is merged, before any operator.
    """

    def __init__(self, path: Path, variant: Variant, experts: Sequence[Expert]) -> None:
        facts = json.loads((path / "bank.json").read_text(encoding="utf-8"))
        self.path = path
        self.variant = variant
        self.experts = tuple(expert.name for expert in experts)
        self.base_digest: str = facts["base"]
        self.storage: str = facts["storage"]
        self.in_factors = frozenset[str](facts["in_factors"])
        self.norms: Mapping[str, float] = dict(zip(self.experts, facts["norms"], strict=True))
        stems = _stems(self.storage, len(self.experts))
        try:
            self._files = [open_weights(path, stem) for stem in stems]
        except CheckpointError as error:
            raise CheckpointError(
                f"a bank must be complete, but {path} is not ({error}): delete that folder, it is "
                "made again"
            ) from error
        in_use = os.open(path / "bank.json", os.O_RDONLY)
        weakref.finalize(self, os.close, in_use)
        fcntl.flock(in_use, fcntl.LOCK_SH)  # until this object, or the process, is gone
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(path)  # what was used last is evicted last

    @property
    def key(self) -> str:
        """Content address: 16 hex digits."""
        return self.path.name

    @property
    def n_bytes(self) -> int:
        """The size of its tensors."""
        return sum(facts.n_bytes for file in self._files for facts in file.facts.values())

    def bases(self, name: str) -> list[Tensor | None]:
        """The bases of a tensor, one per expert in order; None is zero. Not to be written to."""
        if self.storage == "dense":
            return [file.read(name) if name in file.facts else None for file in self._files]
        owned = self.owned(name)
        if owned is None:
            return [None for _ in self.experts]
        values, owners = owned
        return [torch.where(owners == k, values, 0) for k in range(len(self.experts))]

    def owned(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Of an `owner` bank the values of a tensor and whose they are, uint8; None is zero."""
        values, owners = self._files
        return (values.read(name), owners.read(name)) if name in values.facts else None

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
        *,
        aids: Aids | None = None,
    ) -> Self:
        """Open the bank, after making it if it is not there; one process makes, others wait.

        Raises:
            ConfigError: There is no such operator or knob, or it needs other experts or aids.
            CheckpointError: A delta is NaN or infinite, the bank cannot be written, or it is
                damaged.
        """
        names = [expert.name for expert in experts]
        variant = Variant.of(operator, names, knobs or {}, seed, aids=aids)
        return cls.of_variant(cache, base, experts, anatomy, variant)

    @classmethod
    def of_variant(
        cls,
        cache: Path,
        base: Checkpoint,
        experts: Sequence[Expert],
        anatomy: Anatomy,
        variant: Variant,
    ) -> Self:
        """The bank of a variant that is not live; see `open_or_build`."""
        path = cache.expanduser().absolute() / "banks" / _key(base, experts, anatomy, variant)
        for _ in range(3):  # another process may evict it just before it is opened
            if not path.is_dir():
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with FileLock(str(path.parent / f"{path.name}.lock")):
                        if not path.is_dir():
                            _build(path, base, experts, anatomy, variant)
                except OSError as error:
                    raise _unwritable(path, error) from error
            with contextlib.suppress(FileNotFoundError):
                return cls(path, variant, experts)
        raise CheckpointError(
            f"a bank must stay while it is opened, but {path} is deleted again and again: give the "
            "cache more room or this run a cache of its own"
        )


def evict(cache: Path, most_bytes: int) -> list[Path]:
    """Delete the banks used longest ago until those that are left fit; returns what went.

    Those that some process has open stay, whatever they take.
    """
    folder = cache.expanduser().absolute() / "banks"
    found: list[tuple[float, int, Path]] = []
    for facts in folder.glob("*/bank.json"):
        with contextlib.suppress(OSError):  # another process evicts too
            path = facts.parent
            size = sum(file.stat().st_size for file in path.iterdir())
            found.append((path.stat().st_mtime, size, path))
    total, gone = sum(size for _, size, _ in found), []
    for _, size, path in sorted(found):
        if total <= most_bytes:
            break
        if _delete_unused(path):
            total -= size
            gone.append(path)
    return gone


def _delete_unused(path: Path) -> bool:
    """Delete a bank at once, for whoever looks, unless a process has it open."""
    trash = path.with_name(f"{path.name}.evicted")
    try:
        with (path / "bank.json").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(trash, ignore_errors=True)  # of a process that died here
            path.replace(trash)
    except OSError:
        return False
    shutil.rmtree(trash, ignore_errors=True)
    return True


def checkpoints_key(base: Checkpoint, experts: Sequence[Expert], anatomy: Anatomy) -> str:
    """Digest of the models and of what is made of their tensors' names."""
    tensors = [
        [name, list(facts.shape), facts.dtype, anatomy.roles[name].kind, anatomy.roles[name].layer]
        for name, facts in sorted(base.tensors.items())
    ]
    return digest_of(
        {
            "base": base.digest,
            "experts": [expert.digest for expert in experts],
            "tensors": tensors,
        }
    )


def _key(base: Checkpoint, experts: Sequence[Expert], anatomy: Anatomy, variant: Variant) -> str:
    models = checkpoints_key(base, experts, anatomy)
    return digest_of({"format": _FORMAT, "models": models, **variant.identity})


def storage_of(variant: Variant) -> str:
    """How the bases are stored: who owns a place, if nobody shares and that is less to read."""
    return "owner" if variant.operator.disjoint and 2 <= len(variant.experts) < NOBODY else "dense"


def _build(
    path: Path, base: Checkpoint, experts: Sequence[Expert], anatomy: Anatomy, variant: Variant
) -> None:
    """Write beside, then rename. The caller has the lock: leftovers are of a dead process."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        stacks = Stacks(base, experts) if variant.is_plain else Stacks(base, ())
        squares = _write_bases(partial, base, experts, anatomy, variant, stacks)
        facts = {
            "format": _FORMAT,
            **variant.identity,
            "storage": storage_of(variant),
            "in_factors": sorted(stacks),
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
    folder: Path,
    base: Checkpoint,
    experts: Sequence[Expert],
    anatomy: Anatomy,
    variant: Variant,
    stacks: Stacks,
) -> list[float]:
    """Piece by piece; returns the squared norms of the experts' deltas."""
    names = [name for name in base.tensors if name not in stacks]
    deltas = dict(zip(names, in_order(partial(rounded_deltas, base, experts), names), strict=True))

    def read(name: str) -> Source:
        return Source(anatomy.roles[name], base.read(name), deltas[name])

    survey = Survey.make(variant, names, read)
    squares = [0.0] * len(experts)
    with _writer(folder, base, deltas, variant) as put:

        def write(name: str) -> list[float]:
            of_tensor = [0.0] * len(experts)
            source = read(name)
            context = variant.context(source.role, source.base.shape, model=survey.model)
            for piece, bases in variant.bases(source, survey.of(name), context):
                put(name, piece.start, bases)
                for k, basis in enumerate(bases):
                    if basis is not None:
                        delta = piece.deltas[k]
                        of_tensor[k] = inner_product(delta, delta, of_tensor[k])
            return of_tensor

        for of_tensor in in_order(write, names):
            squares = [a + b for a, b in zip(squares, of_tensor, strict=True)]
    for of_tensor in in_order(stacks.squares, stacks):
        squares = [a + b for a, b in zip(squares, of_tensor, strict=True)]
    return squares


def _stems(storage: str, n_experts: int) -> list[str]:
    return [f"basis_{k}" for k in range(n_experts)] if storage == "dense" else ["values", "owners"]


@contextlib.contextmanager
def _writer(
    folder: Path, base: Checkpoint, deltas: Mapping[str, Sequence[Flat | None]], variant: Variant
) -> Iterator[Put]:
    """A function that stores the bases of a piece."""
    storage = storage_of(variant)
    stems = _stems(storage, len(variant.experts))
    with contextlib.ExitStack() as stack:

        def file(stem: str, facts: Sequence[TensorFacts]) -> TensorFile:
            return stack.enter_context(TensorFile(folder / f"{stem}.safetensors", facts))

        if storage == "dense":
            files = [
                file(stem, [base.tensors[n] for n, of in deltas.items() if of[k] is not None])
                for k, stem in enumerate(stems)
            ]

            def put_dense(name: str, start: int, bases: Sequence[Tensor | None]) -> None:
                for k, basis in enumerate(bases):
                    if basis is not None:
                        files[k].write(name, start, basis)

            yield put_dense
            return
        changed = [base.tensors[n] for n, of in deltas.items() if any(d is not None for d in of)]
        values = file(stems[0], changed)
        owners = file(stems[1], [replace(facts, dtype="uint8") for facts in changed])

        def put_owned(name: str, start: int, bases: Sequence[Tensor | None]) -> None:
            present = [(k, basis) for k, basis in enumerate(bases) if basis is not None]
            if not present:
                return
            value = torch.zeros_like(present[0][1])
            owner = torch.full(value.shape, NOBODY, dtype=torch.uint8)
            for k, basis in present:
                owner.masked_fill_(basis != 0, k)
                value += basis  # of others there is nothing
            values.write(name, start, value)
            owners.write(name, start, owner)

        yield put_owned


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    remedy = "free some space" if error.errno == errno.ENOSPC else "choose another cache folder"
    return CheckpointError(
        f"the bank of deltas must be written once, but {path} cannot be ({error}): {remedy}; "
        "nothing was left behind"
    )
