"""Merges in one pass and a model in one call, where the machine has a C compiler."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.checkpoints.digests import cache_folder

# All release the interpreter while they run. Address of the pieces, how many, address of the fp32
# coefficients, how many of them in a row, address of the number of the next piece.
NativeMix = Callable[[int, int, int, int, int], None]
# The same, with the addresses of selections and stages; 0 if memory was short.
NativeSelect = Callable[[int, int, int, int, int, int, int], int]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions of mix.c."""

    mix: NativeMix
    own: NativeMix
    select_and_mix: NativeSelect


NATIVE_DTYPES = (torch.bfloat16, torch.float32)
"""What the kernel sums: target, base and bases alike."""

# `struct piece`, `struct selection` and `struct stages` of mix.c.
_PIECE = np.dtype(
    [(name, np.uint64) for name in ("out", "base", "bases", "n", "row", "float32", "start")]
)
SELECTION = np.dtype(
    [
        ("ranks", np.uint64),
        ("low", np.uint32),
        ("high", np.uint32),
        ("floor", np.float32),
        ("slope", np.float32),
        ("key_low", np.uint32),
        ("key_high", np.uint32),
    ]
)
STAGES = np.dtype(
    [
        ("elects", np.uint32),
        ("divides", np.uint32),
        ("scale", np.float32),
        ("is_early", np.uint32),
    ]
)

# Without traps and errno loops over floats become vectors; neither changes a result.
_EXACT = ("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno")
_FLAGS = ("-O3", "-std=gnu11", *_EXACT, "-shared", "-fPIC")
_SECONDS = 60.0


@functools.cache
def kernels() -> Kernels | None:
    """The compiled functions, or None: torch's operations then do the same, more slowly.

    Compiled once per kind of machine into the cache folder, in about a second, unless
    `EVOMERGE_NATIVE` is 0. Nothing here can fail a run, and the bytes are the same either way.
    """
    compiler = shutil.which("cc")
    if os.environ.get("EVOMERGE_NATIVE") == "0" or compiler is None or sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None
    address, size = ctypes.c_void_p, ctypes.c_size_t
    arguments = (address, size, address, size, address)
    mix = ctypes.CFUNCTYPE(None, *arguments)
    select = ctypes.CFUNCTYPE(ctypes.c_int, *arguments, address, address)
    return Kernels(
        mix(("mix", library)), mix(("own", library)), select(("select_and_mix", library))
    )


class NativePieces:
    """Where the kernels find the pieces of a model: looked up once, merged in one call.

    Memory is not kept alive: whoever holds this holds the tensors too.

    Args:
        pieces: For each the row of its coefficients, its place in the flattened tensor, base,
            bases (for `own` the values and their owners) and target: contiguous and flat, on the
            CPU, of one of `NATIVE_DTYPES`.
    """

    def __init__(
        self, pieces: Sequence[tuple[int, int, Tensor, Sequence[Tensor | None], Tensor]]
    ) -> None:
        self._table = np.empty(len(pieces), dtype=_PIECE)
        self._bases = np.array(
            [[0 if b is None else b.data_ptr() for b in bases] for _, _, _, bases, _ in pieces],
            dtype=np.uint64,
        )
        first, step = self._bases.ctypes.data, self._bases.strides[0]
        for i, (row, start, base, _, target) in enumerate(pieces):
            is_float32 = target.dtype == torch.float32
            self._table[i] = (
                target.data_ptr(),
                base.data_ptr(),
                first + i * step,
                target.numel(),
                row,
                is_float32,
                start,
            )

    def __len__(self) -> int:
        return len(self._table)

    def mix(
        self, native: NativeMix, rows: NDArray[np.float32], following: "ctypes.c_size_t"
    ) -> None:
        """Merge those pieces that no other thread with the same `following` takes.

        Args:
            native: The kernel `mix` or `own`.
            rows: The coefficients, contiguous, `(n_rows, n_bases)`.
            following: The number of the next piece, 0 at first.
        """
        native(
            self._table.ctypes.data,
            len(self._table),
            rows.ctypes.data,
            rows.shape[1],
            ctypes.addressof(following),
        )

    def select_and_mix(
        self,
        native: NativeSelect,
        rows: NDArray[np.float32],
        following: "ctypes.c_size_t",
        selections: NDArray[np.void],
        stages: NDArray[np.void],
    ) -> None:
        """The same with bases that are made on the way.

        Args:
            native: The kernel.
            rows: The coefficients, contiguous, `(n_rows, n_deltas + 1)`; the last is not used.
            following: The number of the next piece, 0 at first.
            selections: Of `SELECTION`, `(n_rows, n_deltas)`.
            stages: Of `STAGES`, `(n_rows,)`.
        """
        done = native(
            self._table.ctypes.data,
            len(self._table),
            rows.ctypes.data,
            rows.shape[1] - 1,
            ctypes.addressof(following),
            selections.ctypes.data,
            stages.ctypes.data,
        )
        if not done:
            raise MemoryError("a block of every delta must fit into memory, but it does not")


def _compiled(compiler: str) -> Path:
    source = Path(__file__).with_name("mix.c")
    identity = source.read_bytes() + " ".join((*_FLAGS, os.uname().machine)).encode()
    folder = cache_folder() / "native"
    library = folder / f"mix-{hashlib.sha256(identity).hexdigest()[:16]}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / library.name
            subprocess.run(
                [compiler, *_FLAGS, "-o", str(made), str(source), "-lm"],
                check=True,
                capture_output=True,
                timeout=_SECONDS,
            )
            made.replace(library)
    return library
