"""An operator with its knobs set: all that its bases depend on besides the checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from evomerge.checkpoints.anatomy import TensorRole
from evomerge.datatypes import Knob, Recipe
from evomerge.merging.operators import Operator, TensorContext, get_operator
from evomerge.merging.operators.linear import task_arithmetic
from evomerge.merging.pieces import Flat, Piece, in_pieces, piece_length


@dataclass(frozen=True)
class Variant:
    """Equal variants have equal bases; `seed` is 0 unless the operator is random."""

    operator: Operator
    knobs: Mapping[str, Knob]
    seed: int

    @classmethod
    def of(cls, operator: str, knobs: Mapping[str, Knob], seed: int) -> Self:
        """From names and values, aliases resolved and defaults filled in.

        Raises:
            ConfigError: There is no such operator or knob, or a value is out of range.
        """
        found = get_operator(operator)
        return cls(found, found.complete(knobs, "prepare"), seed if found.seeded else 0)

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Self:
        """The variant that a recipe asks for.

        Raises:
            ConfigError: There is no such operator or knob, or a value is out of range.
        """
        variant = cls.of(recipe.operator, recipe.prepare, recipe.seed)
        variant.operator.complete(recipe.runtime, "runtime")
        return variant

    @property
    def is_plain(self) -> bool:
        """Whether the bases are the deltas themselves, so that any other ones can be made."""
        return self.operator is task_arithmetic

    def bases(
        self, base: Tensor, deltas: Sequence[Flat | None], role: TensorRole
    ) -> Iterator[tuple[Piece, list[Tensor | None]]]:
        """A tensor piece by piece with its bases: flat, in the base's dtype, one for each delta.

        None is zero throughout the tensor, in `deltas` (see `rounded_deltas`) as in the bases.
        Operators see rounded deltas, so that bases are the same bytes whether made from the
        experts or from a bank of plain deltas.
        """
        flat = base.reshape(-1)
        if all(delta is None for delta in deltas):
            yield Piece(0, flat, ()), [None for _ in deltas]
            return
        context = TensorContext(
            role.name, role.kind, role.layer, tuple(base.shape), self.knobs, self.seed
        )
        length = flat.numel() if self.operator.whole else piece_length(len(deltas))
        pieces = in_pieces(flat, deltas, length)
        for piece, prepared in self.operator.bases(pieces, context):
            yield (
                piece,
                [
                    None if delta is None else basis.to(base.dtype)
                    for delta, basis in zip(deltas, prepared, strict=True)
                ],
            )
