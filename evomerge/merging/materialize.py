"""Writing a recipe's weights into the live model, in place."""

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Recipe
from evomerge.errors import ConfigError, IncompatibleError
from evomerge.merging.bank import Bank
from evomerge.merging.deltas import rounded_deltas
from evomerge.merging.native import NATIVE_DTYPES, NativePieces, native_mix
from evomerge.merging.pieces import Flat, Piece
from evomerge.merging.serial_threads import in_order, serial_threads
from evomerge.merging.variant import Variant

# Two fp32 buffers of this length and the bytes they come from stay in a core's L2 cache (2 MiB).
_CHUNK_CPU = 3 << 15
# Below torch's grain size an operation never leaves its thread.
_CHUNK_SERIAL = (1 << 15) - 64
# Long enough to wake a thread for.
_CHUNK_NATIVE = 1 << 20
_CHUNK_GPU = 1 << 24
# A model below this size is written faster than threads are woken.
_SMALL_MODEL = 1 << 22


# The fp32 coefficients, contiguous, shape `(n_groups, n_experts)`.
_Rows = NDArray[np.float32]


class Materializer:
    """Binds a base and a bank to a live model once; then every `write` rewrites the weights.

    A weight is `base + sum_k c_k D_k`, always from the base, summed in fp32 in the order of the
    experts by fused multiply-adds, rounded once to the model's dtype. Coefficients of 0 are
    skipped, so that without others the base comes back bit for bit. The same recipe gives the same
    bytes whatever the chunk size, the number of threads, the worker, and whether the machine has a
    C compiler (then bf16 and fp32 on the CPU are summed in one pass, see `native_mix`).

    Base and bank stay in their memory-mapped files (on a GPU: are copied to it once); the model's
    own parameters are the only other copy of the weights, and what is computed on the way has the
    size of a chunk. A bank of plain deltas also serves recipes of other operators: their bases are
    then prepared piece by piece in every `write`, which costs the operator's time instead of a
    second bank on the disk, and gives the same bytes as that bank would.

    Args:
        base: The checkpoint that the model was built from.
        bank: Of the operator variant to write fast, made from that base.
        anatomy: Of that base.
        model: Its parameters and buffers are written to, and never replaced.
        chunk_elements: How many weights are summed at once; None chooses by device.

    Raises:
        IncompatibleError: The model or the bank does not fit the base.
    """

    def __init__(
        self,
        base: Checkpoint,
        bank: Bank,
        anatomy: Anatomy,
        model: nn.Module,
        *,
        chunk_elements: int | None = None,
    ) -> None:
        if bank.base_digest != base.digest:
            raise IncompatibleError(
                f"a bank is added to the base it was made from, but {bank.path} was made from "
                f"{bank.base_digest} and this base is {base.digest}: build its own bank"
            )
        self._bank = bank
        self._anatomy = anatomy
        self._base = base
        self._targets = _targets(base, model)
        on_cpu = all(target.device.type == "cpu" for target in self._targets.values())
        n_threads = torch.get_num_threads()
        if not on_cpu or sum(facts.n_parameters for facts in base.tensors.values()) < _SMALL_MODEL:
            n_threads = 1
        self._mixer = _Mixer(chunk_elements, n_threads, on_cpu=on_cpu)
        self._pieces: _Pieces | None = None

    def serves(self, recipe: Recipe) -> bool:
        """Whether this bank can make the recipe's operator variant."""
        banked = self._bank.variant
        return banked.is_plain or Variant.of_recipe(recipe) == banked

    def write(self, recipe: Recipe) -> None:
        """Give the model the recipe's weights.

        Raises:
            ConfigError: The recipe is of other experts, groups or an operator that this bank
                cannot serve, or a coefficient is not finite.
        """
        rows = _rows(recipe, self._bank.experts, self._anatomy)
        variant = _served(recipe, self._bank.variant)
        with torch.no_grad():
            if variant == self._bank.variant:
                self._mixer.mix(self._banked_pieces(), rows)
                return

            def prepare_and_mix(name: str) -> None:
                weight, deltas = self._base.read(name), _flat(self._bank.bases(name))
                bases = variant.bases(weight, deltas, self._anatomy.roles[name])
                group, target = self._anatomy.roles[name].group, self._targets[name]
                self._mixer.mix_alone(self._mixer.cut_each(group, bases, target), rows)

            for _ in in_order(prepare_and_mix, self._targets):
                pass

    def weights(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each tensor that is written to: number of its group, the base's weights, its own."""
        for name, target in self._targets.items():
            yield self._anatomy.roles[name].group, self._base.read(name), target

    def release(self) -> None:
        """Let go of the bank and the base (on a GPU: of their copies) until the next `write`."""
        self._pieces = None
        self._bank.release()
        self._base.release()

    def _banked_pieces(self) -> "_Pieces":
        if self._pieces is None:
            self._pieces = _Pieces(
                piece
                for name, target in self._targets.items()
                for piece in self._mixer.cut(
                    self._anatomy.roles[name].group,
                    self._base.read(name),
                    self._bank.bases(name),
                    target,
                )
            )
        return self._pieces


def merged_tensors(
    base: Checkpoint, sources: Bank | Sequence[Expert], anatomy: Anatomy, recipe: Recipe
) -> Iterator[tuple[str, Tensor]]:
    """The recipe's weights one by one, without a live model: the bytes that `write` writes.

    Args:
        base: The checkpoint that deltas are added to.
        sources: A bank that can serve the recipe, or the experts themselves.
        anatomy: Of the base.
        recipe: What to merge.

    Raises:
        ConfigError: The recipe is of other experts, groups or an operator that the bank cannot
            serve, or a coefficient is not finite.
        CheckpointError: A delta is NaN or infinite.
    """
    if isinstance(sources, Bank):
        names, variant = sources.experts, _served(recipe, sources.variant)
    else:
        names, variant = tuple(e.name for e in sources), Variant.of_recipe(recipe)
    rows = _rows(recipe, names, anatomy)
    mixer = _Mixer(None, 1)

    def merge(name: str) -> tuple[str, Tensor]:
        role, weight = anatomy.roles[name], base.read(name)
        merged = torch.empty(weight.shape, dtype=weight.dtype)
        if isinstance(sources, Bank) and variant == sources.variant:
            pieces: Iterable[_Piece] = mixer.cut(role.group, weight, sources.bases(name), merged)
        else:
            deltas = (
                _flat(sources.bases(name))
                if isinstance(sources, Bank)
                else rounded_deltas(base, sources, name)
            )
            pieces = mixer.cut_each(role.group, variant.bases(weight, deltas, role), merged)
        mixer.mix_alone(pieces, rows)
        return name, merged

    return in_order(merge, base.tensors)


class _Piece(NamedTuple):
    """A part of one tensor: flat views of the same elements, on one device."""

    group: int
    base: Tensor
    bases: list[Tensor | None]
    target: Tensor


class _Pieces:
    """Pieces in two heaps: what the C kernel sums and what torch sums."""

    def __init__(self, pieces: Iterable[_Piece]) -> None:
        self.others: list[_Piece] = []
        self._kept: list[_Piece] = []  # the kernel knows addresses only
        for piece in pieces:
            (self._kept if _is_native(piece.target) else self.others).append(piece)
        self.native = NativePieces(self._kept) if self._kept else None

    def __len__(self) -> int:
        return len(self._kept) + len(self.others)


def _is_native(target: Tensor) -> bool:
    """Whether the C kernel sums it."""
    return (
        target.device.type == "cpu" and target.dtype in NATIVE_DTYPES and native_mix() is not None
    )


class _Scratch:
    """The two buffers of a thread for each device and dtype that it sums on."""

    def __init__(self, n_elements: int) -> None:
        self._n_elements = n_elements
        self._buffers: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def like(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Two views of the target's length and device, fp32 (fp64 for fp64)."""
        key = (target.device, target.dtype)
        if key not in self._buffers:
            dtype = torch.promote_types(target.dtype, torch.float32)
            both = torch.empty(2, self._n_elements, dtype=dtype, device=target.device)
            self._buffers[key] = (both[0], both[1])
        total, term = self._buffers[key]
        n = target.numel()
        return (total, term) if n == self._n_elements else (total[:n], term[:n])


class _Mixer:
    """Cuts tensors into pieces and sums them, on several threads if that pays.

    Every thread runs whole pieces on its own (see `serial_threads`).
    """

    def __init__(self, chunk_elements: int | None, n_threads: int, *, on_cpu: bool = True) -> None:
        self._chunk_elements = chunk_elements
        self._n_scratch = chunk_elements or _n_scratch(on_cpu, n_threads)
        self._pool = serial_threads(n_threads) if n_threads > 1 else None
        self._scratches = [_Scratch(self._n_scratch) for _ in range(n_threads)]

    def cut(
        self, group: int, base: Tensor, bases: Iterable[Tensor | None], target: Tensor
    ) -> list[_Piece]:
        """The pieces of a tensor; sources are moved to the target's device."""
        device = target.device
        chunk = self._chunk_elements or (_CHUNK_NATIVE if _is_native(target) else self._n_scratch)
        flat = target.view(-1)
        source = base.to(device).reshape(-1)
        moved = [None if b is None else b.to(device).reshape(-1) for b in bases]
        pieces = []
        for i in range(0, flat.numel(), chunk):
            parts = [None if b is None else b[i : i + chunk] for b in moved]
            pieces.append(_Piece(group, source[i : i + chunk], parts, flat[i : i + chunk]))
        return pieces

    def cut_each(
        self,
        group: int,
        prepared: Iterable[tuple[Piece, list[Tensor | None]]],
        target: Tensor,
    ) -> Iterator[_Piece]:
        """The pieces of a tensor whose bases come piece by piece."""
        flat = target.view(-1)
        for piece, bases in prepared:
            yield from self.cut(group, piece.base, bases, flat[piece.elements])

    def mix_alone(self, pieces: Iterable[_Piece], rows: _Rows) -> None:
        """Write every piece on the calling thread, which may be any."""
        scratch = _Scratch(self._n_scratch)
        for piece in pieces:
            one = _Pieces([piece])
            _mix(one, ctypes.c_size_t(0), iter(one.others), rows, scratch)

    def mix(self, pieces: _Pieces, rows: _Rows) -> None:
        """Write every piece; `rows[group, k]` is the coefficient of basis k."""
        # Shared: a thread whose core is busy elsewhere takes fewer pieces.
        following, others = ctypes.c_size_t(0), iter(pieces.others)
        if self._pool is None or len(pieces) < 2:
            _mix(pieces, following, others, rows, self._scratches[0])
            return
        for done in [
            self._pool.submit(_mix, pieces, following, others, rows, scratch)
            for scratch in self._scratches
        ]:
            done.result()


def _mix(
    pieces: _Pieces,
    following: ctypes.c_size_t,
    others: Iterator[_Piece],
    rows: _Rows,
    scratch: _Scratch,
) -> None:
    """The sum itself, of every piece that the counter and the iterator still give."""
    native = native_mix()
    if native is not None and pieces.native is not None:
        pieces.native.mix(native, rows, following)
    for group, base, bases, target in others:
        total, term = scratch.like(target)
        is_base = True
        for c, basis in zip(rows[group].tolist(), bases, strict=True):
            if c == 0.0 or basis is None:
                continue
            if is_base:
                total.copy_(base)
                is_base = False
            if basis.dtype != total.dtype:
                basis = term.copy_(basis)
            total.add_(basis, alpha=c)
        target.copy_(base if is_base else total)


def _flat(tensors: Iterable[Tensor | None]) -> list[Flat | None]:
    return [None if tensor is None else tensor.reshape(-1) for tensor in tensors]


def _n_scratch(on_cpu: bool, n_threads: int) -> int:
    if not on_cpu:
        return _CHUNK_GPU
    return _CHUNK_CPU if n_threads > 1 or torch.get_num_threads() == 1 else _CHUNK_SERIAL


def _served(recipe: Recipe, banked: Variant) -> Variant:
    """The recipe's variant, if bases of it are in the bank or can be made from it."""
    variant = Variant.of_recipe(recipe)
    if variant != banked and not banked.is_plain:
        raise ConfigError(
            f"a bank of {banked.operator.name} serves that operator with its knobs and seed only, "
            f"but the recipe asks for {variant.operator.name} {dict(variant.knobs)}: open the bank "
            "of task_arithmetic, which serves all"
        )
    return variant


def _rows(recipe: Recipe, experts: tuple[str, ...], anatomy: Anatomy) -> _Rows:
    """The coefficients by group: `rows[g][k]`."""
    if recipe.experts != experts:
        raise ConfigError(
            f"a recipe names the bank's experts in order, {list(experts)}, but got "
            f"{list(recipe.experts)}: decode it for this run"
        )
    if recipe.groups != anatomy.group_labels:
        raise ConfigError(
            f"a recipe names the model's {len(anatomy.groups)} groups in order, but got "
            f"{len(recipe.groups)} others: decode it for this model"
        )
    with np.errstate(over="ignore"):
        C = recipe.matrix().astype(np.float32)
    if not np.isfinite(C).all():
        k, g = np.argwhere(~np.isfinite(C))[0]
        raise ConfigError(
            f"coefficients must be finite, but that of {experts[k]} in {recipe.groups[g]} is "
            f"{C[k, g]}: check the search space"
        )
    return np.ascontiguousarray(C.T)


def _targets(base: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """What to write to, by canonical name; every storage once.

    Raises:
        IncompatibleError: The model's names, shapes, dtypes or ties are not those of the base.
    """
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    targets: dict[str, Tensor] = {}
    for name, facts in base.tensors.items():
        if name not in state:
            raise IncompatibleError(
                f"the live model must have every weight of the base, but it has no {name}: build "
                "it from the base's config.json"
            )
        target = state[name].detach()
        dtype = str(target.dtype).removeprefix("torch.")
        if (tuple(target.shape), dtype) != (tuple(facts.shape), facts.dtype):
            raise IncompatibleError(
                f"the live model must have the base's shapes and dtypes, but {name} is "
                f"{list(target.shape)} {dtype} instead of {list(facts.shape)} {facts.dtype}: load "
                'it from the base with dtype="auto"'
            )
        if not target.is_contiguous():
            raise IncompatibleError(
                f"weights are written in place and must be contiguous, but {name} is a strided "
                "view: build the model without it"
            )
        targets[name] = target
    _check_ties(base, state)
    return targets


def _check_ties(base: Checkpoint, state: dict[str, Tensor]) -> None:
    owners: dict[tuple[torch.device, int], str] = {}
    for name in base.tensors:
        if state[name].numel() == 0:
            continue
        owner = owners.setdefault((state[name].device, state[name].data_ptr()), name)
        if owner != name:
            raise IncompatibleError(
                f"weights that differ in the base must be apart in the live model, but {name} "
                f"shares the memory of {owner}: untie them"
            )
    for alias, owner in base.tied.items():
        if alias in state and state[alias].data_ptr() != state[owner].data_ptr():
            raise IncompatibleError(
                f"weights that are tied in the base must share memory in the live model, but "
                f"{alias} is apart from {owner}: call model.tie_weights()"
            )
    for name, value in state.items():
        if isinstance(value, nn.Parameter) and name not in base.tensors and name not in base.tied:
            raise IncompatibleError(
                f"every parameter of the live model must come from the base, but {name} is not in "
                "it: build the model from the base's config.json"
            )
