"""An operator with its knobs set: all that its bases depend on besides the checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, Self

from torch import Tensor

from evomerge.checkpoints.anatomy import TensorRole
from evomerge.datatypes import Knob, Recipe
from evomerge.errors import ConfigError
from evomerge.merging.low_rank.stack import Stack
from evomerge.merging.operators import Operator, Statistics, TensorContext, get_operator
from evomerge.merging.operators.factor_operator import FactorOperator
from evomerge.merging.operators.operator import NOTHING
from evomerge.merging.pieces import Flat, Piece, Pieces, in_pieces, piece_length


class Aids(Protocol):
    """What was collected for the experts' tensors from outside the weights."""

    @property
    def digest(self) -> str:
        """Content address; part of the key of what is made with it."""

    def of(self, name: str) -> tuple[Statistics, ...]:
        """For each expert what is known of a tensor; empty if nothing is."""

    def only(self, names: Sequence[str]) -> Self:
        """These aids alone; raises `ConfigError` if one was not collected."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the base and the experts' changes of it, None where there is none.

    `stack` holds the factors if all who change it are adapters.
    """

    role: TensorRole
    base: Tensor
    deltas: Sequence[Flat | None]
    stack: Stack | None = None


@dataclass(frozen=True)
class Variant:
    """Equal variants have equal bases.

    Attributes:
        operator: What makes them.
        experts: Names, in order.
        knobs: Complete; those that vary from candidate to candidate are at their defaults.
        seed: 0 unless the operator is random.
        free: The knobs that a recipe sets for itself, of scope `runtime`.
        aids: What was collected from outside the weights.
    """

    operator: Operator
    experts: tuple[str, ...]
    knobs: Mapping[str, Knob]
    seed: int
    free: Mapping[str, Knob] = field(default_factory=dict)
    aids: Aids | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        operator: str,
        experts: Sequence[str],
        knobs: Mapping[str, Knob],
        seed: int,
        *,
        free: Mapping[str, Knob] | None = None,
        aids: Aids | None = None,
    ) -> Self:
        """From names and values, aliases resolved and defaults filled in.

        Raises:
            ConfigError: There is no such operator or knob, a value is out of range, or the operator
                takes another number of experts or statistics that are not there.
        """
        found = get_operator(operator)
        least, most = found.n_experts
        if len(experts) < least or (most is not None and len(experts) > most):
            takes = f"{least}" if least == most else f"{least} or more"
            raise ConfigError(
                f"{found.name} merges {takes} experts into the base, but there are {len(experts)}: "
                "name others, or choose another operator"
            )
        if found.needs and aids is None:
            raise ConfigError(
                f"{found.name} needs {' and '.join(found.needs)} of every expert, but none were "
                "collected: name their source in space.statistics"
            )
        at = {name.partition("@")[2] for name in (*knobs, *(free or {}))} - {"", *experts}
        if at:
            raise ConfigError(
                f"a knob may be set for an expert, but there is no expert {at.pop()!r}: choose one "
                f"of {', '.join(experts)}"
            )
        return cls(
            found,
            tuple(experts),
            found.complete(knobs, "prepare"),
            seed if found.seeded else 0,
            found.complete(free or {}, "runtime"),
            aids.only(found.needs) if found.needs and aids is not None else None,
        )

    @classmethod
    def of_recipe(cls, recipe: Recipe, aids: Aids | None = None) -> Self:
        """The variant that a recipe asks for.

        Raises:
            ConfigError: As in `of`.
        """
        return cls.of(
            recipe.operator,
            recipe.experts,
            recipe.prepare,
            recipe.seed,
            free=recipe.runtime,
            aids=aids,
        )

    @property
    def is_plain(self) -> bool:
        """Whether its bases are the deltas themselves."""
        return self.operator.is_plain

    @property
    def is_live(self) -> bool:
        """Whether its bases are made anew for every candidate."""
        return not self.is_plain and (self.operator.early or bool(self.free))

    @property
    def is_on_factors(self) -> bool:
        """Whether it takes adapters only, and merges in factors what they change."""
        return isinstance(self.operator, FactorOperator)

    @property
    def has_bank(self) -> bool:
        """Whether its bases can be kept in a bank of its own."""
        return not (self.is_plain or self.is_live or self.is_on_factors)

    @cached_property
    def identity(self) -> dict[str, object]:
        """What its bases depend on besides the checkpoints, as plain data."""
        if self.is_plain:
            return {"operator": "task_arithmetic", "knobs": {}, "seed": 0}
        return {
            "operator": self.operator.name,
            "knobs": dict(self.knobs),
            "seed": self.seed,
            **({} if self.aids is None else {"aids": self.aids.digest}),
        }

    @cached_property
    def identity_of_statistics(self) -> dict[str, object]:
        """What its statistics depend on: the knobs of scope `prepare`, and the aids."""
        scanned = {f.name for f in self.operator.knobs if f.scope == "prepare"}
        knobs = {name: value for name, value in self.knobs.items() if name in scanned}
        return {
            "operator": self.operator.name,
            "knobs": knobs,
            **({} if self.aids is None else {"aids": self.aids.digest}),
        }

    def context(
        self,
        role: TensorRole,
        shape: Sequence[int],
        *,
        model: Statistics = NOTHING,
        weights: Sequence[float] | None = None,
    ) -> TensorContext:
        """What the operator is told of a tensor; weights are for early operators only."""
        return TensorContext(
            role.name,
            role.kind,
            role.layer,
            tuple(shape),
            {**self.knobs, **self.free},
            self.seed,
            experts=self.experts,
            weights=tuple(weights) if weights is not None and self.operator.early else None,
            model=model,
            aids=() if self.aids is None else self.aids.of(role.name),
        )

    @property
    def looks(self) -> bool:
        """Whether it has statistics."""
        return self.operator.scan is not None or self.is_on_factors

    def look(self, source: Source) -> Statistics:
        """The statistics of a tensor."""
        if not self.looks or _is_untouched(source):
            return NOTHING
        context = self.context(source.role, source.base.shape)
        if source.stack is not None and isinstance(self.operator, FactorOperator):
            return self.operator.look_at(source.stack, context)
        return self.operator.look(self._pieces(source), context)

    def bases(
        self, source: Source, statistics: Statistics, context: TensorContext
    ) -> Iterator[tuple[Piece, list[Tensor | None]]]:
        """A tensor piece by piece with its bases: flat, one for each delta.

        None is zero throughout the tensor, in the source (see `rounded_deltas`) as in the bases.
        Those that a bank may hold are in the base's dtype, so that they are the same bytes whether
        made from the experts or from a bank; live ones are fp32.
        """
        if _is_untouched(source):
            yield Piece(0, source.base.reshape(-1), ()), [None for _ in source.deltas]
            return
        dtype = None if self.is_live else source.base.dtype
        for piece, prepared in self.operator.bases(self._pieces(source), context, statistics):
            yield (
                piece,
                [
                    None if delta is None else basis if dtype is None else basis.to(dtype)
                    for delta, basis in zip(source.deltas, prepared, strict=True)
                ],
            )

    def _pieces(self, source: Source) -> Pieces:
        flat = source.base.reshape(-1)
        length = flat.numel() if self.operator.whole else piece_length(len(source.deltas))
        return in_pieces(flat, source.deltas, length)


def _is_untouched(source: Source) -> bool:
    return all(delta is None for delta in source.deltas)
