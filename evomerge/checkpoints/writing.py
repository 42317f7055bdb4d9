"""A merged model as a folder that from_pretrained loads: complete, or not there at all."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.companions import write_files
from evomerge.checkpoints.reading import Checkpoint
from evomerge.errors import CheckpointError


def write_model(
    folder: Path,
    base: Checkpoint,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    card: str,
    max_shard_bytes: int = 5_000_000_000,
    extra_files: Mapping[str, str] | None = None,
) -> Path:
    """Write weights, the base's configuration and tokenizer, and the card; return the folder.

    Args:
        folder: Where to; must not exist or be empty.
        base: Gives names in files, shapes, dtypes, configuration and tokenizer.
        tensors: Every weight of `base.tensors` once, in any order, in the base's shape and dtype;
            at most `max_shard_bytes` of them are held in memory.
        card: The text of README.md.
        max_shard_bytes: The size of a weight file is below it, unless one tensor alone is above.
        extra_files: Texts of more files, by name.

    Raises:
        CheckpointError: The folder is not empty or cannot be written, or the tensors are not those
            of the base. Nothing is left behind.
    """
    with new_folder(folder) as partial:
        _write_shards(partial, base, tensors, max_shard_bytes)
        write_files(partial, base.companions())
        for name, text in {"README.md": card, **(extra_files or {})}.items():
            (partial / name).write_text(text, encoding="utf-8")
    return folder.expanduser().absolute()


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which is on the disk under its own name after a normal exit.

    Raises:
        CheckpointError: The folder is not empty or cannot be written. Nothing is left behind.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"a model is written to a new or empty folder, but {folder} is there already: give "
            "another one, or remove it"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private
        for file in sorted(partial.iterdir()):
            _sync(file)
        _sync(partial)
        partial.replace(folder)
        _sync(folder.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_shards(
    partial: Path,
    base: Checkpoint,
    tensors: Iterable[tuple[str, torch.Tensor]],
    max_shard_bytes: int,
) -> None:
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    n_pending = n_total = 0

    def flush() -> None:
        nonlocal n_pending
        if pending:
            file = partial / f"shard-{len(shards)}"
            save_file(pending, str(file), metadata={"format": "pt"})
            shards.append(list(pending))
            pending.clear()
            n_pending = 0

    for name, tensor in _checked(base, tensors):
        if n_pending + tensor.nbytes > max_shard_bytes:
            flush()
        pending[base.file_name(name)] = tensor.detach().cpu().contiguous()
        n_pending += tensor.nbytes
        n_total += tensor.nbytes
    flush()

    if len(shards) == 1:
        (partial / "shard-0").replace(partial / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file_name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (partial / f"shard-{i}").replace(partial / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {"total_size": n_total}, "weight_map": dict(sorted(weight_map.items()))}
    (partial / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2) + "\n", encoding="utf-8"
    )


def _checked(
    base: Checkpoint, tensors: Iterable[tuple[str, torch.Tensor]]
) -> Iterable[tuple[str, torch.Tensor]]:
    """Every weight of the base exactly once, then its constants."""
    missing = set(base.tensors)
    for name, tensor in tensors:
        if name not in missing:
            what = "comes twice" if name in base.tensors else "is not one of the base's"
            raise CheckpointError(
                f"a merged model has the base's weights once each, but {name} {what}: this is a "
                "bug in what produced the tensors"
            )
        missing.remove(name)
        facts = base.tensors[name]
        found = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if found != (facts.shape, facts.dtype):
            raise CheckpointError(
                f"a merged weight has the base's shape and dtype, but {name} is {found} instead "
                f"of {(facts.shape, facts.dtype)}: cast it before writing"
            )
        yield name, tensor
    if missing:
        raise CheckpointError(
            f"a merged model has the base's weights once each, but {min(missing)} is missing "
            f"({len(missing)} in all): this is a bug in what produced the tensors"
        )
    for name in base.constants:
        yield name, base.read(name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(folder: Path, error: Exception) -> CheckpointError:
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    remedy = "free some space" if full or "os error 28" in str(error) else "give another folder"
    return CheckpointError(
        f"the merged model must be written completely, but {folder} cannot be ({error}): {remedy}; "
        "nothing was left behind"
    )
