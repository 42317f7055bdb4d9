"""Weight files as they lie in a folder: names, shapes and dtypes first, bytes on demand."""

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch

from evomerge.errors import CheckpointError

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}
FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What is known of a tensor without its values; `dtype` as torch spells it: "bfloat16"."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def n_parameters(self) -> int:
        """How many numbers it holds."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def n_bytes(self) -> int:
        """How many bytes it takes."""
        return self.n_parameters * int(getattr(torch, self.dtype).itemsize)


Read = Callable[[str], torch.Tensor]
# What is in a file, and how a tensor of it is read by its name.
Opened = tuple[Mapping[str, TensorFacts], Read]


class WeightFile:
    """A file that is open while it is read from, and can be let go of in between."""

    def __init__(self, open_file: Callable[[], Opened]) -> None:
        self._open_file = open_file
        self.facts, read = open_file()
        self._read: Read | None = read

    def read(self, name: str) -> torch.Tensor:
        """A tensor, backed by the file if it can be memory-mapped."""
        read = self._read
        if read is None:  # in two threads at once: harmless
            _, read = self._open_file()
            self._read = read
        return read(name)

    def release(self) -> None:
        """Close it; its memory is free as soon as no tensor read from it is in use."""
        self._read = None


class Weights:
    """Opened weight files; every name is the file's own."""

    def __init__(self, files: tuple[Path, ...], sources: Sequence[WeightFile]) -> None:
        self.files = files
        self._sources = sources
        self._source_of = {name: source for source in sources for name in source.facts}
        self.facts: Mapping[str, TensorFacts] = {
            name: source.facts[name] for name, source in self._source_of.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, backed by the memory-mapped file."""
        return self._source_of[name].read(name)

    def release(self) -> None:
        """Unmap the files as soon as no tensor read from them is in use; reading maps them again.

        Mapped pages that were read count as memory of this process for as long as they are mapped.
        """
        for source in self._sources:
            source.release()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        CheckpointError: The file is missing, torn or holds something else.
    """
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"a model folder must hold {file.name}, but {file.parent} does not: "
            "give the folder that save_pretrained wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file.name} must be readable JSON, but {file} is not ({error}): copy or download it "
            "again"
        ) from error
    if not isinstance(plain, dict):
        raise CheckpointError(
            f"{file.name} must be a JSON object, but {file} is not: copy or download it again"
        )
    return plain


def open_weights(folder: Path, stem: str = "model", *, allow_pickle: bool = False) -> Weights:
    """Open `stem`.safetensors or its shards; pickled weights only when allowed.

    Raises:
        CheckpointError: Files are missing, truncated, or only pickled ones are there.
    """
    files = _files(folder, f"{stem}.safetensors")
    if files:
        return Weights(files, [WeightFile(partial(_open_safetensors, f)) for f in files])
    pickled = "pytorch_model.bin" if stem == "model" else f"{stem}.bin"
    files = _files(folder, pickled)
    if not files:
        raise CheckpointError(
            f"a model folder must hold {stem}.safetensors or {stem}.safetensors.index.json, but "
            f"{folder} holds neither: give the folder that save_pretrained wrote"
        )
    if not allow_pickle:
        raise CheckpointError(
            f"weights must be safetensors, because pickled files can run code, but {folder} holds "
            f"only {files[0].name}: convert it, or set `allow_pickle: true` if you trust its author"
        )
    return Weights(files, [WeightFile(partial(_open_pickled, f)) for f in files])


def _files(folder: Path, single: str) -> tuple[Path, ...]:
    """The single file or the shards its index names; empty if there are neither."""
    if (folder / single).is_file():
        return (folder / single,)
    index_file = folder / f"{single}.index.json"
    if not index_file.is_file():
        return ()
    weight_map = read_json(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"a shard index must have a weight_map, but {index_file} has none: "
            "copy or download the model again"
        )
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                f"shards must lie beside their index, but {index_file} names {name}: "
                "do not use this model"
            )
        if not (folder / name).is_file():
            raise CheckpointError(
                f"every shard that the index names must be there, but {name} is missing in "
                f"{folder}: copy or download the model again"
            )
    return tuple(folder / name for name in names)


def _open_safetensors(file: Path) -> Opened:
    facts: dict[str, TensorFacts] = {}
    try:
        handle: Any = safetensors.safe_open(str(file), framework="pt")
        for name in handle.keys():  # noqa: SIM118 (not a mapping)
            view = handle.get_slice(name)
            dtype = str(view.get_dtype())
            facts[name] = TensorFacts(
                name, tuple(view.get_shape()), _DTYPES.get(dtype, dtype.lower())
            )
    except (safetensors.SafetensorError, OSError) as error:
        n_bytes = file.stat().st_size if file.exists() else 0
        raise CheckpointError(
            f"a safetensors file must be complete, but {file} ({n_bytes} bytes) is not ({error}): "
            "copy or download it again"
        ) from error
    return facts, handle.get_tensor


def _open_pickled(file: Path) -> Opened:
    try:
        # Files from before torch 1.6 are no zip archives and cannot be memory-mapped.
        state: dict[str, Any] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise CheckpointError(
            f"pickled weights must be a complete file of tensors only, but {file} is not "
            f"({type(error).__name__}): copy or download it again, or convert it to safetensors"
        ) from error
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    return facts_of(tensors), tensors.__getitem__


def facts_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorFacts]:
    """The facts of tensors in memory."""
    return {
        name: TensorFacts(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }
