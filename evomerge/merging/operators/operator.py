"""What an operator is: a name, knobs, and functions from deltas to bases and coefficients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.operators.knobs import KnobFacts, Scope, complete
from evomerge.merging.pieces import Piece, Pieces

if TYPE_CHECKING:
    from evomerge.merging.pipeline import Select

# What a look at the deltas found out: a few small CPU tensors by name, never the deltas' values.
Statistics = Mapping[str, Tensor]
NOTHING: Statistics = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorContext:
    """What is known of a tensor before its values.

    Attributes:
        name: Of the base's weight.
        kind: One of `anatomy.KINDS`.
        layer: Number in the stack, None outside of it.
        shape: The pieces are flat.
        knobs: All knobs, complete.
        seed: Of whatever is random.
        experts: Their names, in order.
        weights: The searched coefficients, one per expert, if the operator is `early`; else None,
            which stands for ones.
        model: What the operator's `gather` made of all tensors' statistics.
        aids: One mapping per expert of what was collected for this tensor from outside the
            weights (Grams of activations, Fisher information); empty if nothing was.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    knobs: Mapping[str, Knob]
    seed: int
    experts: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    model: Statistics = field(default_factory=lambda: NOTHING)
    aids: tuple[Statistics, ...] = ()

    @property
    def n_elements(self) -> int:
        """How many numbers it holds."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    def number(self, knob: str) -> float:
        """The value of a numeric knob."""
        return float(self.knobs[knob])

    def numbers(self, knob: str) -> list[float]:
        """The value of a numeric knob for each expert."""
        common = self.knobs[knob]
        return [float(self.knobs.get(f"{knob}@{expert}", common)) for expert in self.experts]


Scan = Callable[[Pieces, TensorContext], Statistics]
Gather = Callable[[Sequence[Statistics], Mapping[str, Knob]], Statistics]
Prepare = Callable[[Piece, Statistics, TensorContext], list[Tensor]]
# From the searched coefficients of a tensor to what is added to the base's coefficient of 1, and
# the coefficients of the bases.
Weigh = Callable[[Sequence[float], Statistics, TensorContext], tuple[float, list[float]]]


def plain(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:  # noqa: ARG001
    """`D_k = t_k`: the deltas as they are."""
    return list(piece.deltas)


@dataclass(frozen=True, slots=True)
class Operator:
    """A family of merges `W(c) = W0 + sum_k c_k D_k` of one tensor.

    Three steps, of which only the last is needed:

    - `scan(pieces, context)` looks at the whole tensor, in as many passes as it likes, and answers
      with small statistics. They depend on `prepare` knobs only, and are kept.
    - `gather(statistics of all tensors, knobs)` makes of them what must be known of the whole
      model; every tensor then finds it as `context.model`.
    - `prepare(piece, statistics, context)` gives the bases `D_k` of a piece, one per delta, fp32
      and flat.

    All see one tensor only, change none of their inputs, and answer the same whatever the number
    of threads and the length of the pieces (sums: `inner_product`; random numbers: `draws`). A
    delta of zero has a basis of zero.

    Coefficients come after the selection ("late"), never change what is trimmed or elected, and
    the merge is exactly linear in them; unless the operator is `early`: then its bases depend on
    `context.weights`, are made anew for every candidate, and are still multiplied by the
    coefficients. `weigh` lets the coefficients of the bases be other functions of the searched
    ones (of their angles, say).

    Attributes:
        name: As recipes spell it.
        prepare: Makes the bases.
        scan: Makes the statistics; None if there is nothing to know.
        gather: Makes the model's statistics; None if tensors do not need each other.
        weigh: Makes the bases' coefficients; None if they are the searched ones.
        knobs: What a user may turn; all are in the context.
        seeded: Whether the bases depend on the recipe's seed.
        whole: Whether the only piece must be the whole tensor (to be viewed as `context.shape`);
            it costs the memory of that.
        select: The stages that `prepare` consists of, if it is element-wise and made of stages: a
            kernel then runs them in one pass (see `pipeline`).
        early: Whether the bases depend on the coefficients.
        disjoint: Whether at most one basis is not zero in any place: the bank then stores a value
            and an owner.
        n_experts: Least and greatest number of experts; None is any.
        needs: The names of the `aids` without which it is refused.
    """

    name: str
    prepare: Prepare = plain
    scan: Scan | None = None
    gather: Gather | None = None
    weigh: Weigh | None = None
    select: "Select | None" = None
    knobs: tuple[KnobFacts, ...] = ()
    seeded: bool = False
    whole: bool = False
    early: bool = False
    disjoint: bool = False
    n_experts: tuple[int, int | None] = (0, None)
    needs: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether its bases are the deltas themselves."""
        return self.prepare is plain

    def look(self, pieces: Pieces, context: TensorContext) -> Statistics:
        """The statistics of a tensor."""
        return NOTHING if self.scan is None else self.scan(pieces, context)

    def bases(
        self, pieces: Pieces, context: TensorContext, statistics: Statistics | None = None
    ) -> Iterator[tuple[Piece, list[Tensor]]]:
        """Every piece of a tensor and its bases; without statistics the tensor is scanned first."""
        if statistics is None:
            statistics = self.look(pieces, context)
        for piece in pieces():
            yield piece, self.prepare(piece, statistics, context)

    def complete(self, given: Mapping[str, Knob], scope: Scope) -> dict[str, Knob]:
        """In `prepare` all knobs, the given ones or their defaults; in `runtime` the given ones.

        Raises:
            ConfigError: There is no such knob, or it is out of its range.
        """
        return complete(self.name, self.knobs, given, scope)
