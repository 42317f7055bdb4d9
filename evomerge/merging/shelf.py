"""The banks of a worker: which ones are made, which are open, and when one is worth its disk."""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Recipe, digest_of
from evomerge.merging.bank import Bank, checkpoints_key, evict, storage_of
from evomerge.merging.materialize import Materializer
from evomerge.merging.variant import Aids, Variant

# Bound to the model at once besides the plain one: tables of addresses (on a GPU: copies).
_MOST_OPEN = 8
_MOST_OPEN_GPU = 1
# Variants that the search did not announce (baselines) are made on the fly so many times.
_ON_THE_FLY = 2


class Shelf:
    """Writes any recipe into the live model, from the bank that makes it cheapest.

    The bank of plain deltas is always open: it serves every recipe. A variant whose bases do not
    change from candidate to candidate gets a bank of its own, at once if it was announced, else
    when it is asked for again and again; unless that bank would be larger than all banks may be:
    then its bases are made for every candidate, which gives the same bytes.

    Args:
        cache: Where banks and statistics are kept, shared with other workers and runs.
        base: The checkpoint that deltas are added to.
        experts: What changes it, in order.
        anatomy: Of the base.
        model: What is written to.
        announced: Variants that the search will ask for.
        most_bytes: How much all banks in the cache may take; those used longest ago go first.
        aids: What operators may need besides the weights.

    Attributes:
        notes: What was decided about storage, one sentence each.
    """

    def __init__(
        self,
        cache: Path,
        base: Checkpoint,
        experts: Sequence[Expert],
        anatomy: Anatomy,
        model: nn.Module,
        *,
        announced: Sequence[Variant] = (),
        most_bytes: int,
        aids: Aids | None = None,
    ) -> None:
        self._cache, self._most_bytes, self._aids = cache, most_bytes, aids
        self._base, self._experts, self._anatomy, self._model = base, experts, anatomy, model
        self._key = checkpoints_key(base, experts, anatomy)
        self._asked: Counter[str] = Counter()
        self._open: OrderedDict[str, Materializer] = OrderedDict()
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        self._most_open = _MOST_OPEN_GPU if on_gpu else _MOST_OPEN
        self.notes: list[str] = []
        bank = self._bank(Variant.of("task_arithmetic", [e.name for e in experts], {}, 0))
        self.norms: Mapping[str, float] = bank.norms
        self._plain = self._bound(bank)
        for variant in announced:
            if variant.has_bank and self._fits(variant):
                self._asked[_name(variant)] = _ON_THE_FLY
                self._opened(variant)

    def write(self, recipe: Recipe) -> None:
        """Give the model the recipe's weights.

        Raises:
            ConfigError: The recipe is not of this run, or asks for an operator or knob that there
                is not, or a coefficient is not finite.
        """
        self._materializer(Variant.of_recipe(recipe, self._aids)).write(recipe)

    def weights(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each tensor that is written to: number of its group, the base's weights, its own."""
        return self._plain.weights()

    def _materializer(self, variant: Variant) -> Materializer:
        if not variant.has_bank:
            return self._plain
        name = _name(variant)
        self._asked[name] += 1
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if self._asked[name] <= _ON_THE_FLY or not self._fits(variant):
            return self._plain
        return self._opened(variant)

    def _opened(self, variant: Variant) -> Materializer:
        bank = self._bank(variant)
        self._note(
            f"the bank of {variant.operator.name} {dict(variant.knobs)} is stored as "
            f"{bank.storage} ({bank.n_bytes / 1e6:.0f} MB)"
        )
        while len(self._open) >= self._most_open:
            self._open.popitem(last=False)[1].release()
        self._open[_name(variant)] = self._bound(bank)
        return self._open[_name(variant)]

    def _fits(self, variant: Variant) -> bool:
        size = sum(facts.n_bytes for facts in self._base.tensors.values())
        needed = size * 1.5 if storage_of(variant) == "owner" else size * len(self._experts)
        if needed <= self._most_bytes:
            return True
        self._note(
            f"the bases of {variant.operator.name} are made for every candidate: their bank would "
            f"take {needed / 1e9:.1f} GB, and bank_gigabytes allows {self._most_bytes / 1e9:.1f}"
        )
        return False

    def _bank(self, variant: Variant) -> Bank:
        bank = Bank.of_variant(self._cache, self._base, self._experts, self._anatomy, variant)
        evict(self._cache, self._most_bytes)
        self._base.release()  # the files that it was made from
        for expert in self._experts:
            expert.release()
        return bank

    def _bound(self, bank: Bank) -> Materializer:
        return Materializer(
            self._base,
            bank,
            self._anatomy,
            self._model,
            experts=self._experts,
            aids=self._aids,
            surveys=self._cache.expanduser().absolute() / "surveys",
            key=self._key,
        )

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _name(variant: Variant) -> str:
    return digest_of(variant.identity)
