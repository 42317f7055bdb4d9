"""Writing a recipe's weights into the live model, in place."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.checkpoints.anatomy import Anatomy, TensorRole
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Recipe
from evomerge.errors import ConfigError, IncompatibleError
from evomerge.merging.bank import Bank
from evomerge.merging.deltas import rounded_deltas
from evomerge.merging.live_stages import LiveStages
from evomerge.merging.low_rank.product import add_product
from evomerge.merging.low_rank.stack import Stack
from evomerge.merging.low_rank.stacks import Merges, Stacks, bound
from evomerge.merging.mixing import Mixer, MixPiece, Pieces, Rows, is_native
from evomerge.merging.native import kernels
from evomerge.merging.operators.factor_operator import Merge
from evomerge.merging.pieces import Flat, Piece
from evomerge.merging.serial_threads import in_order
from evomerge.merging.survey import Survey, Surveys
from evomerge.merging.targets import targets_of
from evomerge.merging.variant import Aids, Source, Variant

# A model below this size is written faster than threads are woken.
_SMALL_MODEL = 1 << 22


class Materializer:
    """Binds a base and a bank to a live model once; then every `write` rewrites the weights.

    A weight is `base + sum_k c_k D_k`, always from the base, summed in fp32 in the order of the
    experts by fused multiply-adds, rounded once to the model's dtype. Coefficients of 0 are
    skipped, so that without others the base comes back bit for bit. The same recipe gives the same
    bytes whatever the chunk size, the number of threads, the worker, and whether the machine has a
    C compiler (then bf16 and fp32 on the CPU are summed in one pass, see `mix.c`).

    Weights that only adapters change are merged in factors (`W0 + sum_k c_k s_k B_k A_k`, as one
    product), without a delta in a bank or in memory; operators on task vectors multiply them out
    piece by piece.

    Base and bank stay in their memory-mapped files (on a GPU: are copied to it once); the model's
    own parameters are the only other copy of the weights, and what is computed on the way has the
    size of a chunk. A bank of plain deltas serves recipes of every operator: those whose bases
    depend on the candidate, in one pass if they are made of stages, and others by preparing their
    bases piece by piece in every `write`, which costs the operator's time instead of a second bank
    on the disk, and gives the same bytes as that bank would.

    Args:
        base: The checkpoint that the model was built from.
        bank: Of the operator variant to write fast, made from that base.
        anatomy: Of that base.
        model: Its parameters and buffers are written to, and never replaced.
        chunk_elements: How many weights are summed at once; None chooses by device.
        experts: What the bank was made of; needed if it leaves some tensors in factors.
        aids: What operators may need besides the weights.
        surveys: Folder in which statistics of operators are kept; None keeps none.
        key: Digest of the models, for that folder.

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
        experts: Sequence[Expert] = (),
        chunk_elements: int | None = None,
        aids: Aids | None = None,
        surveys: Path | None = None,
        key: str = "",
    ) -> None:
        if bank.base_digest != base.digest:
            raise IncompatibleError(
                f"a bank is added to the base it was made from, but {bank.path} was made from "
                f"{bank.base_digest} and this base is {base.digest}: build its own bank"
            )
        self._stacks = Stacks(base, experts if bank.variant.is_plain else ())
        if set(self._stacks) != bank.in_factors:
            raise IncompatibleError(
                f"a bank that leaves tensors in factors is used with its adapters, but {bank.path} "
                f"leaves {len(bank.in_factors)} and {len(self._stacks)} are given: give the experts"
            )
        self._merges = Merges()
        self._bank = bank
        self._anatomy = anatomy
        self._base = base
        self._aids = aids
        self._targets = targets_of(base, model)
        self._names = list(self._targets)
        self._group_of = np.array([anatomy.roles[name].group for name in self._names])
        on_cpu = all(target.device.type == "cpu" for target in self._targets.values())
        n_threads = torch.get_num_threads()
        if not on_cpu or sum(facts.n_parameters for facts in base.tensors.values()) < _SMALL_MODEL:
            n_threads = 1
        self._mixer = Mixer(chunk_elements, n_threads, on_cpu=on_cpu)
        self._surveys = Surveys(self._names, self._source, surveys, key)
        self._pieces: Pieces | None = None
        self._stages: LiveStages | None = None

    def write(self, recipe: Recipe) -> None:
        """Give the model the recipe's weights.

        Raises:
            ConfigError: The recipe is of other experts, groups or an operator that this bank
                cannot serve, or a coefficient is not finite.
        """
        C = coefficients(recipe, self._bank.experts, self._anatomy)
        variant = _served(recipe, self._bank.variant, self._aids)
        with torch.no_grad():
            rows = self._rows(variant, C)
            if _is_banked(variant, self._bank.variant):
                self._mixer.mix(self._banked_pieces(), rows)
                self._write_in_factors(variant, rows)
            elif variant.is_on_factors:
                self._stacks.refuse_others(variant.operator)
                outside = [i for i, name in enumerate(self._names) if name not in self._stacks]
                self._write_prepared(variant, rows, outside)
                self._write_in_factors(variant, rows)
            elif not self._write_by_stages(variant, rows):
                self._write_prepared(variant, rows, range(len(self._names)))

    def _write_by_stages(self, variant: Variant, rows: Rows) -> bool:
        """Write live bases that are made of stages in one pass; False if there is no kernel."""
        native, select = kernels(), variant.operator.select
        on_cpu = all(map(is_native, self._targets.values()))
        if native is None or not variant.is_live or select is None or not on_cpu or self._stacks:
            return False
        if self._stages is None:
            self._stages = LiveStages(self._names, self._source)
        selections, stages = self._stages.of(variant, self._surveys.of(variant))
        pieces = self._banked_pieces()
        self._mixer.run(pieces.selectors(rows, selections, stages, native), pieces, rows)
        return True

    def _write_prepared(self, variant: Variant, rows: Rows, which: Iterable[int]) -> None:
        """Write tensors whose bases are made on the way."""
        survey = self._surveys.of(variant)

        def prepare_and_mix(row: int) -> None:
            name = self._names[row]
            prepared = _prepared(variant, self._source(name), survey, rows[row])
            self._mixer.mix_alone(self._mixer.cut_each(row, prepared, self._targets[name]), rows)

        for _ in in_order(prepare_and_mix, which):
            pass

    def _write_in_factors(self, variant: Variant, rows: Rows) -> None:
        """Write the tensors that only adapters change."""
        if not self._stacks:
            return
        self._merges.begin(variant)
        survey = self._surveys.of(variant)

        def write(numbered: tuple[int, Stack]) -> None:
            row, stack = numbered
            name = self._names[row]
            merge = self._merges.of(variant, self._anatomy.roles[name], stack, survey)
            _write_product(self._base.read(name), merge, rows[row], self._targets[name])

        found = ((row, self._stacks.of(name)) for row, name in enumerate(self._names))
        for _ in in_order(write, [(row, stack) for row, stack in found if stack is not None]):
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

    def _source(self, name: str) -> Source:
        stack = self._stacks.of(name)
        deltas = (
            _flat(self._bank.bases(name))
            if stack is None
            else rounded_deltas(self._base, self._stacks.experts, name)
        )
        return Source(self._anatomy.roles[name], self._base.read(name), deltas, stack)

    def _rows(self, variant: Variant, C: Rows) -> Rows:
        rows = np.zeros((len(self._names), C.shape[1] + 1), dtype=np.float32)
        rows[:, :-1] = C[self._group_of]
        if variant.operator.weigh is not None:
            survey = self._surveys.of(variant)
            for i, name in enumerate(self._names):
                role, shape = self._anatomy.roles[name], self._base.tensors[name].shape
                rows[i] = _weighed(variant, role, shape, survey, rows[i])
        return rows

    def _banked_pieces(self) -> Pieces:
        if self._pieces is None:
            self._pieces = Pieces(
                piece
                for row, (name, target) in enumerate(self._targets.items())
                if name not in self._stacks
                for piece in self._cut_banked(row, name, target)
            )
        return self._pieces

    def _cut_banked(self, row: int, name: str, target: Tensor) -> Iterable[MixPiece]:
        base = self._base.read(name)
        if self._bank.storage == "dense":
            return self._mixer.cut(row, base, self._bank.bases(name), target)
        owned = self._bank.owned(name)
        if owned is None:
            return self._mixer.cut(row, base, [None for _ in self._bank.experts], target)
        return self._mixer.cut(row, base, owned[:1], target, owners=owned[1])


def merged_tensors(
    base: Checkpoint,
    sources: Bank | Sequence[Expert],
    anatomy: Anatomy,
    recipe: Recipe,
    *,
    aids: Aids | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The recipe's weights one by one, without a live model: the bytes that `write` writes.

    Args:
        base: The checkpoint that deltas are added to.
        sources: A bank that can serve the recipe, or the experts themselves.
        anatomy: Of the base.
        recipe: What to merge.
        aids: What the operator may need besides the weights.

    Raises:
        ConfigError: The recipe is of other experts, groups or an operator that the bank cannot
            serve, or a coefficient is not finite.
        CheckpointError: A delta is NaN or infinite.
    """
    if isinstance(sources, Bank):
        names, variant = sources.experts, _served(recipe, sources.variant, aids)
        is_banked = _is_banked(variant, sources.variant)
        if sources.in_factors:
            raise ConfigError(
                f"a merge of adapters is made from the adapters, but {sources.path} leaves them "
                "out: give the experts themselves"
            )
        stacks = Stacks(base, ())
    else:
        names, variant = tuple(e.name for e in sources), Variant.of_recipe(recipe, aids)
        is_banked = False
        stacks = Stacks(base, sources)
        stacks.refuse_others(variant.operator)
    C = coefficients(recipe, names, anatomy)
    mixer = Mixer()

    def source(name: str) -> Source:
        deltas: Sequence[Flat | None] = (
            _flat(sources.bases(name))
            if isinstance(sources, Bank)
            else rounded_deltas(base, sources, name)
        )
        return Source(anatomy.roles[name], base.read(name), deltas, stacks.of(name))

    by_factors = variant.is_plain or variant.is_on_factors
    needs_survey = not is_banked or variant.operator.weigh is not None
    survey = Survey.make(variant, base.tensors, source) if needs_survey else Survey({}, {})

    def merge(name: str) -> tuple[str, Tensor]:
        weight, role = base.read(name), anatomy.roles[name]
        merged = torch.empty(weight.shape, dtype=weight.dtype)
        row = np.append(C[role.group], np.float32(0))
        if variant.operator.weigh is not None:
            row = _weighed(variant, role, weight.shape, survey, row)
        stack = stacks.of(name)
        if by_factors and stack is not None:
            _write_product(weight, bound(variant, role, stack, survey), row, merged)
            return name, merged
        if isinstance(sources, Bank) and is_banked:
            pieces: Iterable[MixPiece] = mixer.cut(0, weight, sources.bases(name), merged)
        else:
            prepared = _prepared(variant, source(name), survey, row)
            pieces = mixer.cut_each(0, prepared, merged)
        mixer.mix_alone(pieces, row[None])
        return name, merged

    return in_order(merge, base.tensors)


def _write_product(base: Tensor, merge: Merge, row: Rows, target: Tensor) -> None:
    """Write a weight that is merged in factors; where torch computes alone."""
    weights, extra = row[:-1].tolist(), float(row[-1])
    change = merge(weights) if any(weights) else None
    add_product(base, change, target, base_weight=1.0 + extra)


def _prepared(
    variant: Variant, source: Source, survey: Survey, row: Rows
) -> Iterator[tuple[Piece, list[Tensor | None]]]:
    """The pieces of a tensor with their bases."""
    context = variant.context(
        source.role, source.base.shape, model=survey.model, weights=row[:-1].tolist()
    )
    return variant.bases(source, survey.of(source.role.name), context)


def _weighed(
    variant: Variant, role: TensorRole, shape: Sequence[int], survey: Survey, row: Rows
) -> Rows:
    """The row of an operator that turns coefficients into others."""
    weigh, c = variant.operator.weigh, row[:-1].tolist()
    statistics = survey.of(role.name)
    if weigh is None or not any(c) or not statistics:
        return row
    context = variant.context(role, shape, model=survey.model)
    extra, weights = weigh(c, statistics, context)
    return np.array([*weights, extra], dtype=np.float32)


def _flat(tensors: Iterable[Tensor | None]) -> list[Flat | None]:
    return [None if tensor is None else tensor.reshape(-1) for tensor in tensors]


def _is_banked(variant: Variant, banked: Variant) -> bool:
    """Whether the bank holds the variant's bases."""
    if variant.is_live or variant.is_on_factors:
        return False
    return variant.identity == banked.identity


def _served(recipe: Recipe, banked: Variant, aids: Aids | None) -> Variant:
    """The recipe's variant, if bases of it are in the bank or can be made from it."""
    variant = Variant.of_recipe(recipe, aids)
    if not banked.is_plain and not _is_banked(variant, banked):
        raise ConfigError(
            f"a bank of {banked.operator.name} serves that operator with its knobs and seed only, "
            f"but the recipe asks for {variant.operator.name} {dict(variant.knobs)}: open the bank "
            "of task_arithmetic, which serves all"
        )
    return variant


def coefficients(recipe: Recipe, experts: tuple[str, ...], anatomy: Anatomy) -> Rows:
    """The coefficients by group, fp32 `(n_groups, n_experts)`.

    Raises:
        ConfigError: The recipe is of other experts or groups, or one is not finite.
    """
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
