"""What can be told of a merge from its recipe and its weights, without any items."""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from evomerge.datatypes import FloatArray, Objective, Split, Statistic, digest_of
from evomerge.errors import TaskError
from evomerge.protocols import LiveModel

# What is computed on the way, in fp64: it stays in a core's cache, or fills a GPU.
_CHUNK_CPU = 1 << 15
_CHUNK_GPU = 1 << 24


class MergeFacts:
    """Exact facts of a merge as objectives: a score has no standard error and needs no items.

    The measures:

    - `distance`: Frobenius norm of the merged minus the base's weights, all tensors together;
      `relative_distance`: divided by the norm of the base's weights.
    - `active_pairs`: how many pairs of an expert and a layer have a coefficient that is not 0;
      outside the layers each kind (embed, norm, head) counts as one.
    - `size`: how many weights, in millions, are in groups where an expert has a coefficient that
      is not 0: what a patch of the base has to store.

    Each split has one item that stands for the merge.

    Args:
        objectives: One per measure, in their order.
        measures: Names as above.
        seed: Not used: nothing is drawn.

    Raises:
        TaskError: when a measure is unknown, or there are not as many as objectives.
    """

    def __init__(
        self, objectives: Sequence[Objective], *, measures: Sequence[str], seed: int = 0
    ) -> None:
        del seed
        if not objectives or len(objectives) != len(measures):
            raise TaskError(
                "facts of a merge have one measure for each objective, but there are "
                f"{len(measures)} and {len(objectives)}: name as many"
            )
        for measure in measures:
            if measure not in _MEASURES:
                near = difflib.get_close_matches(str(measure), _MEASURES, n=1)
                raise TaskError(
                    f"a fact of a merge is one of {', '.join(_MEASURES)}, but got {measure!r}: "
                    + (f"did you mean {near[0]!r}?" if near else "choose one")
                )
        self._objectives = tuple(replace(o, statistic=Statistic("exact")) for o in objectives)
        self._measures = tuple(measures)
        self._live: LiveModel | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What a merge is asked for."""
        return self._objectives

    @property
    def settings(self) -> str:
        """Digest of the measures."""
        return digest_of(self._measures)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Nothing to warn of."""
        return ()

    def items(self, split: Split) -> tuple[str, ...]:
        """One digest, another one in each split."""
        return (digest_of(["merge", split.value]),)

    def bind(self, live: LiveModel) -> None:
        """Nothing is prepared."""
        self._live = live

    def respond(self, split: Split, items: Sequence[int]) -> FloatArray:  # noqa: ARG002 - a fact is the same in both
        """The facts of the live model's weights and recipe, shape `(len(items), n_objectives)`.

        Raises:
            FloatingPointError: a weight is not finite.
        """
        if self._live is None:
            raise RuntimeError("bind(live) comes before respond")
        if len(items) == 0:
            return np.empty((0, len(self._measures)))
        merge = _Merge(self._live)
        facts = [_MEASURES[measure](merge) for measure in self._measures]
        for measure, fact in zip(self._measures, facts, strict=True):
            if not math.isfinite(fact):
                raise FloatingPointError(
                    f"{measure} is {fact}: weights of the merge are not finite"
                )
        return np.tile(np.array(facts), (len(items), 1))


class _Merge:
    """A merge whose weights are read once, and only if asked for."""

    def __init__(self, live: LiveModel) -> None:
        self.live = live

    @cached_property
    def norms(self) -> tuple[float, float]:
        """Frobenius norms of the change and of the base, summed in fp64 a piece at a time."""
        import torch

        squares: dict[torch.device, torch.Tensor] = {}
        with torch.inference_mode():
            for _, W0, W in self.live.weights():
                device, before, after = W.device, W0.reshape(-1), W.reshape(-1)
                chunk = _CHUNK_CPU if device.type == "cpu" else _CHUNK_GPU
                for start in range(0, len(after), chunk):
                    base = before[start : start + chunk].to(device, torch.float64)
                    change = base - after[start : start + chunk]
                    both = torch.stack([change.dot(change), base.dot(base)])
                    # Added up on the device: nothing waits for it before the end.
                    squares[device] = squares[device] + both if device in squares else both
        total = sum((both.cpu() for both in squares.values()), torch.zeros(2, dtype=torch.float64))
        return math.sqrt(total[0]), math.sqrt(total[1])


def _distance(merge: _Merge) -> float:
    """`||W - W0||`."""
    change, _ = merge.norms
    return change


def _relative_distance(merge: _Merge) -> float:
    """`||W - W0|| / ||W0||`."""
    change, base = merge.norms
    if change == 0:
        return 0.0
    return change / base if base > 0 else math.inf


def _active_pairs(merge: _Merge) -> float:
    """Pairs of an expert and a layer, or a kind outside the layers, that take part."""
    places = [group.kind if group.layer is None else group.layer for group in merge.live.groups]
    pairs = np.argwhere(merge.live.recipe.matrix()).tolist()
    return float(len({(k, places[g]) for k, g in pairs}))


def _size(merge: _Merge) -> float:
    """Weights in groups that an expert changes, in millions."""
    _, groups = np.nonzero(merge.live.recipe.matrix())
    return sum(merge.live.groups[g].n_parameters for g in set(groups.tolist())) / 1e6


_MEASURES: dict[str, Callable[[_Merge], float]] = {
    "distance": _distance,
    "relative_distance": _relative_distance,
    "active_pairs": _active_pairs,
    "size": _size,
}
