"""An operator with its knobs set: all that its bases depend on besides the checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from evomerge.checkpoints.anatomy import TensorRole
from evomerge.checkpoints.experts import Expert
from evomerge.datatypes import Knob, Recipe
from evomerge.errors import CheckpointError
from evomerge.merging.operators import Operator, TensorContext, get_operator
from evomerge.merging.operators.linear import task_arithmetic


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
        self, base: Tensor, deltas: Sequence[Tensor | None], role: TensorRole
    ) -> list[Tensor | None]:
        """One basis for each delta of one tensor, rounded to the base's dtype; None is zero.

        `deltas` come from `rounded_delta`. Operators see them rounded, so that bases are the same
        bytes whether made from the experts or from a bank of plain deltas.
        """
        if self.is_plain or all(delta is None for delta in deltas):
            return list(deltas)
        full = [
            torch.zeros(base.shape, dtype=torch.float32) if t is None else t.to(torch.float32)
            for t in deltas
        ]
        context = TensorContext(role.name, role.kind, role.layer, self.seed)
        prepared = self.operator.prepare(base, full, self.knobs, context)
        return [_or_none(basis.to(base.dtype)) for basis in prepared]


def rounded_delta(
    expert: Expert, name: str, delta: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """What is kept of an expert's delta: rounded to the base's dtype, None if that is zero.

    Raises:
        CheckpointError: It is NaN or infinite, or too large for the dtype.
    """
    if delta is None:
        return None
    rounded = delta.to(dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise CheckpointError(
            f"the change that an expert makes must be finite, but {expert.name} changes {name} by "
            f"NaN or infinity (as {dtype}): use a checkpoint from before its training diverged"
        )
    return _or_none(rounded)


def _or_none(tensor: Tensor) -> Tensor | None:
    return tensor if bool(tensor.any()) else None
