"""The factors of all weights that only adapters change, and the merges that are made of them."""

from collections.abc import Iterator, Sequence

from evomerge.checkpoints.adapters import Adapter
from evomerge.checkpoints.anatomy import TensorRole
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.errors import IncompatibleError
from evomerge.merging.low_rank.stack import Stack, stack_of
from evomerge.merging.operators.factor_operator import FactorOperator, Merge
from evomerge.merging.operators.operator import Operator
from evomerge.merging.survey import Survey
from evomerge.merging.variant import Variant


class Stacks:
    """By name the stack of every weight that has one, read at once: as small as the adapters."""

    def __init__(self, base: Checkpoint, experts: Sequence[Expert]) -> None:
        self.experts = tuple(experts)
        self._found: dict[str, Stack] = {}
        if any(isinstance(expert, Adapter) for expert in experts):
            for name, facts in base.tensors.items():
                stack = stack_of(base, experts, name) if len(facts.shape) == 2 else None
                if stack is not None:
                    self._found[name] = stack

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def of(self, name: str) -> Stack | None:
        """The factors of a weight, if it has them."""
        return self._found.get(name)

    def squares(self, name: str) -> list[float]:
        """The squared norm of every expert's change of a weight; where torch computes alone.

        `|s B A|^2 = s^2 sum((B^T B) * (A A^T))`: a delta is never made.
        """
        stack = self._found[name]
        squares = [0.0] * len(stack.ranks)
        for k, (left, right) in stack.pairs():
            B, A = left.double(), right.double()
            squares[k] = float(((B @ B.T) * (A @ A.T)).sum())
        return squares

    def refuse_others(self, operator: Operator) -> None:
        """Refuse other experts where an operator takes adapters only.

        Raises:
            IncompatibleError: One is a full model, or brings rows of the vocabulary.
        """
        if not isinstance(operator, FactorOperator):
            return
        full = [expert.name for expert in self.experts if not isinstance(expert, Adapter)]
        if full or not self.experts:
            found = f"{full[0]} is no plain adapter" if full else "none were given"
            raise IncompatibleError(
                f"{operator.name} merges adapters, but {found}: give adapters, or choose an "
                "operator on task vectors"
            )


class Merges:
    """The merges of stacks for one variant at a time: bound once, then asked per candidate."""

    def __init__(self) -> None:
        self._variant: Variant | None = None
        self._bound: dict[str, Merge] = {}

    def begin(self, variant: Variant) -> None:
        """Forget those of another variant."""
        if variant != self._variant:
            self._variant, self._bound = variant, {}

    def of(self, variant: Variant, role: TensorRole, stack: Stack, survey: Survey) -> Merge:
        """The merge of one weight; where torch computes alone."""
        if role.name not in self._bound:
            self._bound[role.name] = bound(variant, role, stack, survey)
        return self._bound[role.name]


def bound(variant: Variant, role: TensorRole, stack: Stack, survey: Survey) -> Merge:
    """From coefficients to the change of a weight: the variant's own, or the weighted sum."""
    if not isinstance(variant.operator, FactorOperator):
        return stack.concatenated
    context = variant.context(role, stack.shape, model=survey.model)
    return variant.operator.bind(stack, survey.of(role.name), context)
