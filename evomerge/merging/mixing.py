"""The sum itself: tensors cut into pieces, and pieces shared among threads."""

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.merging.native import NATIVE_DTYPES, Kernels, NativePieces, kernels
from evomerge.merging.pieces import Piece
from evomerge.merging.serial_threads import serial_threads

# Two fp32 buffers of this length and the bytes they come from stay in a core's L2 cache (2 MiB).
_CHUNK_CPU = 3 << 15
# Below torch's grain size an operation never leaves its thread.
_CHUNK_SERIAL = (1 << 15) - 64
# Long enough to wake a thread for.
_CHUNK_NATIVE = 1 << 20
_CHUNK_GPU = 1 << 24

# The fp32 coefficients, contiguous: a row per tensor, of each basis in order and at last of what is
# added to the base's coefficient of 1.
Rows = NDArray[np.float32]


class MixPiece(NamedTuple):
    """A part of one tensor: flat views of the same elements, on one device.

    The base stands behind the bases too, as the last of them. With `owners` there is one basis of
    values: coefficients go by owner.
    """

    row: int
    start: int
    base: Tensor
    bases: list[Tensor | None]
    target: Tensor
    owners: Tensor | None = None


class Pieces:
    """Pieces in heaps: what the C kernels merge, and what torch does."""

    def __init__(self, pieces: Iterable[MixPiece]) -> None:
        self.others: list[MixPiece] = []
        summed: list[MixPiece] = []
        owned: list[MixPiece] = []
        for piece in pieces:
            heap = summed if piece.owners is None else owned
            (heap if _suits_kernel(piece) else self.others).append(piece)
        self._kept = (summed, owned)  # the kernels know addresses only
        self._summed = NativePieces([_addressed(piece) for piece in summed])
        self._owned = NativePieces([_addressed(piece) for piece in owned])

    def __len__(self) -> int:
        return sum(map(len, self._kept)) + len(self.others)

    def mixers(self, rows: Rows) -> "list[Callable[[], None]]":
        """What every thread runs, in this order; the threads share the pieces."""
        native = kernels()
        if native is None:
            return []
        return [
            _shared(heap, kernel, rows)
            for heap, kernel in ((self._summed, native.mix), (self._owned, native.own))
            if len(heap)
        ]

    def selectors(
        self, rows: Rows, selections: NDArray[np.void], stages: NDArray[np.void], native: Kernels
    ) -> "list[Callable[[], None]]":
        """The same with bases that are made by stages; see `Pieces.mixers`."""
        following = ctypes.c_size_t(0)
        return [
            lambda: self._summed.select_and_mix(
                native.select_and_mix, rows, following, selections, stages
            )
        ]


def _shared(
    heap: NativePieces, kernel: Callable[[int, int, int, int, int], None], rows: Rows
) -> Callable[[], None]:
    # A thread whose core is busy elsewhere takes fewer pieces.
    following = ctypes.c_size_t(0)
    return lambda: heap.mix(kernel, rows, following)


def _addressed(piece: MixPiece) -> tuple[int, int, Tensor, Sequence[Tensor | None], Tensor]:
    bases = piece.bases if piece.owners is None else [piece.bases[0], piece.owners]
    return piece.row, piece.start, piece.base, bases, piece.target


def _suits_kernel(piece: MixPiece) -> bool:
    dtypes = {basis.dtype for basis in piece.bases if basis is not None}
    return is_native(piece.target) and dtypes <= {piece.target.dtype}


def is_native(target: Tensor) -> bool:
    """Whether the C kernels can write it."""
    return target.device.type == "cpu" and target.dtype in NATIVE_DTYPES and kernels() is not None


@dataclass(slots=True)
class _Scratch:
    """The two buffers of a thread for each device and dtype that it sums on."""

    n_elements: int
    buffers: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]]

    def like(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Two views of the target's length and device, fp32 (fp64 for fp64)."""
        key = (target.device, target.dtype)
        if key not in self.buffers:
            dtype = torch.promote_types(target.dtype, torch.float32)
            both = torch.empty(2, self.n_elements, dtype=dtype, device=target.device)
            self.buffers[key] = (both[0], both[1])
        total, term = self.buffers[key]
        n = target.numel()
        return (total, term) if n == self.n_elements else (total[:n], term[:n])


class Mixer:
    """Cuts tensors into pieces and sums them, on several threads if that pays.

    Every thread runs whole pieces on its own (see `serial_threads`).

    Args:
        chunk_elements: How many weights are summed at once; None chooses by device.
        n_threads: How many threads share the pieces.
        on_cpu: Whether all targets are there.
    """

    def __init__(
        self, chunk_elements: int | None = None, n_threads: int = 1, *, on_cpu: bool = True
    ) -> None:
        self._chunk_elements = chunk_elements
        self._n_scratch = chunk_elements or _n_scratch(on_cpu, n_threads)
        self._pool = serial_threads(n_threads) if n_threads > 1 else None
        self._scratches = [_Scratch(self._n_scratch, {}) for _ in range(n_threads)]

    def cut(
        self,
        row: int,
        base: Tensor,
        bases: Iterable[Tensor | None],
        target: Tensor,
        *,
        owners: Tensor | None = None,
        start: int = 0,
    ) -> list[MixPiece]:
        """The pieces of a tensor, or of its part from `start` on; all go to the target's device."""
        device = target.device
        flat = target.view(-1)
        source = base.to(device).reshape(-1)
        moved = [None if b is None else b.to(device).reshape(-1) for b in bases]
        owner = None if owners is None else owners.to(device).reshape(-1)
        if owner is None:
            moved.append(source)
        whole = MixPiece(row, start, source, moved, flat, owner)
        chunk = self._chunk_elements or (_CHUNK_NATIVE if _suits_kernel(whole) else self._n_scratch)
        return [
            MixPiece(
                row,
                start + i,
                source[i : i + chunk],
                [None if b is None else b[i : i + chunk] for b in moved],
                flat[i : i + chunk],
                None if owner is None else owner[i : i + chunk],
            )
            for i in range(0, flat.numel(), chunk)
        ]

    def cut_each(
        self, row: int, prepared: Iterable[tuple[Piece, list[Tensor | None]]], target: Tensor
    ) -> Iterator[MixPiece]:
        """The pieces of a tensor whose bases come piece by piece."""
        flat = target.view(-1)
        for piece, bases in prepared:
            yield from self.cut(row, piece.base, bases, flat[piece.elements], start=piece.start)

    def mix_alone(self, pieces: Iterable[MixPiece], rows: Rows) -> None:
        """Write every piece on the calling thread, which may be any."""
        scratch = _Scratch(self._n_scratch, {})
        for piece in pieces:
            one = Pieces([piece])
            _run(one.mixers(rows), iter(one.others), rows, scratch)

    def mix(self, pieces: Pieces, rows: Rows) -> None:
        """Write every piece; `rows[row, k]` is the coefficient of basis k."""
        self.run(pieces.mixers(rows), pieces, rows)

    def run(self, natives: Sequence[Callable[[], None]], pieces: Pieces, rows: Rows) -> None:
        """Run the kernels' part and torch's on all threads."""
        others = iter(pieces.others)
        if self._pool is None or len(pieces) < 2:
            _run(natives, others, rows, self._scratches[0])
            return
        for done in [
            self._pool.submit(_run, natives, others, rows, scratch) for scratch in self._scratches
        ]:
            done.result()


def _run(
    natives: Sequence[Callable[[], None]],
    others: Iterator[MixPiece],
    rows: Rows,
    scratch: _Scratch,
) -> None:
    """Every piece that the kernels' counters and the iterator still give."""
    for native in natives:
        native()
    for piece in others:
        total, term = scratch.like(piece.target)
        is_base = True
        for c, basis in _terms(piece, rows):
            if is_base:
                total.copy_(piece.base)
                is_base = False
            if basis.dtype != total.dtype:
                basis = term.copy_(basis)
            total.add_(basis, alpha=c)
        piece.target.copy_(piece.base if is_base else total)


def _terms(piece: MixPiece, rows: Rows) -> Iterator[tuple[float, Tensor]]:
    """Coefficients and bases, without those that are zero."""
    row = rows[piece.row].tolist()
    if piece.owners is None:
        for c, basis in zip(row, piece.bases, strict=True):
            if c != 0.0 and basis is not None:
                yield c, basis
        return
    (values,) = piece.bases
    for k, c in enumerate(row[:-1]):
        if c != 0.0 and values is not None:
            yield c, torch.where(piece.owners == k, values, 0)


def _n_scratch(on_cpu: bool, n_threads: int) -> int:
    if not on_cpu:
        return _CHUNK_GPU
    return _CHUNK_CPU if n_threads > 1 or torch.get_num_threads() == 1 else _CHUNK_SERIAL
