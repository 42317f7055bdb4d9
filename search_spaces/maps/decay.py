"""Decay-shaped weights over a sequence of checkpoints (WSM: warm-up, stable, merge).

Averaging checkpoints of a constant learning rate with the differences of a decay schedule as
weights stands in for training with that decay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import FloatArray, Group
from evomerge.errors import ConfigError
from search_spaces.genes import Gene
from search_spaces.options import count, known

SHAPES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "cosine": lambda i: 0.5 * (1.0 + np.cos(np.pi * i / len(i))),
    "linear": lambda i: 1.0 - i / len(i),
    "inverse_sqrt": lambda i: 1.0 / np.sqrt(1.0 + i),
}
"""Learning rates at steps 0 .. D - 1 of a decay over D checkpoints; at step D it is 0."""

OPTIONS: Mapping[str, object] = {"shapes": tuple(SHAPES), "shortest": 2, "longest": None}


@dataclass(frozen=True, slots=True)
class Decay:
    """The last D checkpoints weigh `c_j = w_j - w_(j+1)`, j = 0 .. D - 1, oldest first.

    w falls from `w_0 = 1` to `w_D = 0`, so the weights are not negative and sum to one; earlier
    checkpoints have none. Linear decay is the uniform average of the last D.
    """

    n_experts: int
    n_groups: int
    shapes: tuple[str, ...]
    shortest: int
    longest: int

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The shape and the merge duration D, where there is a choice."""
        genes = []
        if len(self.shapes) > 1:
            label = f"decay shape ({', '.join(self.shapes)})"
            genes.append(Gene(label, 0, len(self.shapes) - 1, "choice"))
        if self.longest > self.shortest:
            genes.append(Gene("merge duration", self.shortest, self.longest, "whole"))
        return tuple(genes)

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """Every shape over the longest duration."""
        shapes = [(float(i),) for i in range(len(self.shapes))] if len(self.shapes) > 1 else [()]
        duration = (float(self.longest),) if self.longest > self.shortest else ()
        return tuple((*shape, *duration) for shape in shapes)

    def matrix(self, values: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        shape = self.shapes[int(values[0])] if len(self.shapes) > 1 else self.shapes[0]
        D = int(values[-1]) if self.longest > self.shortest else self.longest
        w = np.append(SHAPES[shape](np.arange(D, dtype=np.float64)), 0.0)
        C = np.zeros((self.n_experts, self.n_groups))
        C[self.n_experts - D :] = -np.diff(w)[:, None]
        return C


def decay(experts: Sequence[str], groups: Sequence[Group], options: Mapping[str, object]) -> Decay:
    """The experts are checkpoints in the order of training.

    `shapes` are what the search may choose from; `shortest` and `longest` bound the duration.

    Raises:
        ConfigError: an option is out of range, or nothing is left to choose.
    """
    n = len(experts)
    if n < 2:
        raise ConfigError(
            f"a decay needs a sequence of at least two checkpoints, but there is only "
            f"{experts[0]}: name them as experts in the order of training"
        )
    named = [options["shapes"]] if isinstance(options["shapes"], str) else options["shapes"]
    if not isinstance(named, Sequence) or not named:
        raise ConfigError(
            f"shapes must be a list of {', '.join(SHAPES)}, but got {named!r}: name one or more"
        )
    shapes = tuple(dict.fromkeys(known("a shape of decay", name, SHAPES) for name in named))
    shortest = count("shortest of decay", options["shortest"], 1)
    longest = count("longest of decay", n if options["longest"] is None else options["longest"], 1)
    if not shortest <= longest <= n:
        raise ConfigError(
            f"the merge duration needs 1 <= shortest <= longest <= {n}, the number of "
            f"checkpoints, but {shortest=} and {longest=}: change one"
        )
    if len(shapes) == 1 and shortest == longest:
        raise ConfigError(
            f"a decay needs something to choose, but there is one shape and one duration "
            f"({longest}): allow several of one of them"
        )
    return Decay(n, len(groups), shapes, shortest, longest)
