"""Layer swap: one expert gives the first and last layers, another those between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import FloatArray, Group
from evomerge.errors import ConfigError
from search_spaces.genes import Gene
from search_spaces.options import known

OPTIONS: Mapping[str, object] = {"outer": None, "inner": None}


@dataclass(frozen=True, slots=True)
class LayerSwap:
    """The outer expert on the first a and the last b layers, the inner one between.

    The inner expert's share rises from 0 to `blend` in `width` equal steps, within the middle and
    from both sides; the outer expert has the rest of 1. What is outside the layers goes with the
    outer expert. Experts that are neither contribute nothing. If a and b leave no middle, the merge
    is the outer expert.
    """

    n_experts: int
    outer: int
    inner: int
    layers: tuple[int | None, ...]

    @property
    def n_layers(self) -> int:
        """How many layers there are."""
        return 1 + max(layer for layer in self.layers if layer is not None)

    @property
    def genes(self) -> tuple[Gene, ...]:
        """Numbers of layers, and how far the middle is swapped."""
        L = self.n_layers
        counts = [
            Gene("first layers of the outer expert", 0, max(L // 2, 1), "whole"),
            Gene("last layers of the outer expert", 0, max(L // 2, 1), "whole"),
        ]
        if L >= 4:
            counts.append(Gene("width of the transition", 0, L // 4, "whole"))
        return (*counts, Gene("blend of the inner expert"))

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """A quarter of the layers at both ends, then an eighth, but one at least; no transition."""
        L = self.n_layers
        width = (0.0,) if L >= 4 else ()
        ends = [(n, min(n, L - n - 1)) for n in (max(L // 4, 1), max(L // 8, 1))]
        return tuple(dict.fromkeys((float(a), float(b), *width, 1.0) for a, b in ends))

    def matrix(self, values: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        a, b, blend = values[0], values[1], values[-1]
        width = values[2] if len(values) == 4 else 0.0
        layer = np.array([-1 if number is None else number for number in self.layers])
        up = (layer - a + 1) / (width + 1)
        down = (self.n_layers - b - layer) / (width + 1)
        share = np.where(layer < 0, 0.0, blend * np.clip(np.minimum(up, down), 0.0, 1.0))
        C = np.zeros((self.n_experts, len(layer)))
        C[self.outer], C[self.inner] = 1.0 - share, share
        return C


def layer_swap(
    experts: Sequence[str], groups: Sequence[Group], options: Mapping[str, object]
) -> LayerSwap:
    """`outer` and `inner` name two experts; by default they are the first two.

    Raises:
        ConfigError: these are not two different experts, or the model has no layers.
    """
    if len(experts) < 2:
        raise ConfigError(
            f"a layer swap needs two experts, but there is only {experts[0]}: add one"
        )
    named = [
        experts[i] if options[key] is None else known(f"{key} of layer_swap", options[key], experts)
        for i, key in enumerate(OPTIONS)
    ]
    if named[0] == named[1]:
        raise ConfigError(
            f"a layer swap needs two different experts, but outer and inner are both "
            f"{named[0]!r}: name another one"
        )
    if len({group.layer for group in groups} - {None}) < 2:
        raise ConfigError(
            "a layer swap needs a model of two layers at least, but this one has fewer: use the "
            "map global"
        )
    outer, inner = (list(experts).index(name) for name in named)
    return LayerSwap(len(experts), outer, inner, tuple(group.layer for group in groups))
