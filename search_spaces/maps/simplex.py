"""Weights that are not negative and sum to one: soups, and data mixtures as in DeMix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import FloatArray, Group
from evomerge.errors import ConfigError
from search_spaces.genes import Gene
from search_spaces.options import known

LOGIT = 3.0
"""Logits lie between -3 and 3: a weight may be 400 times another."""

OPTIONS: Mapping[str, object] = {"weights": "stick_breaking"}


@dataclass(frozen=True, slots=True)
class StickBreaking:
    """N - 1 genes for N experts; uniform points of the cube are uniform points of the simplex.

    Expert k takes the share `1 - (1 - u_k)^(1 / (N - k))` of what those before it have left, which
    is the distribution of a coordinate of a uniform point (Devroye 1986, ch. XI.4); the last takes
    the rest. A weight may be exactly 0 or 1.
    """

    experts: tuple[str, ...]
    n_groups: int

    @property
    def genes(self) -> tuple[Gene, ...]:
        """All experts but the last."""
        return tuple(Gene(f"share of {expert}") for expert in self.experts[:-1])

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """The uniform average."""
        left = np.arange(len(self.experts), 1, -1)
        return (tuple((1.0 - (1.0 - 1.0 / left) ** (left - 1.0)).tolist()),)

    def matrix(self, values: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        after = np.arange(len(self.experts) - 1, 0, -1)
        kept = (1.0 - values) ** (1.0 / after)
        rest = np.concatenate([[1.0], np.cumprod(kept)])
        w = rest * np.concatenate([1.0 - kept, [1.0]])
        return np.repeat(w[:, None], self.n_groups, axis=1)


@dataclass(frozen=True, slots=True)
class Softmax:
    """One logit per expert; no expert is distinguished, and none quite gets nothing."""

    experts: tuple[str, ...]
    n_groups: int

    @property
    def genes(self) -> tuple[Gene, ...]:
        """All experts."""
        return tuple(Gene(f"logit of {expert}", -LOGIT, LOGIT) for expert in self.experts)

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """The uniform average."""
        return ((0.0,) * len(self.experts),)

    def matrix(self, values: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        w = np.exp(values)
        return np.repeat((w / w.sum())[:, None], self.n_groups, axis=1)


def simplex(
    experts: Sequence[str], groups: Sequence[Group], options: Mapping[str, object]
) -> StickBreaking | Softmax:
    """`weights` says how: stick_breaking or softmax.

    Raises:
        ConfigError: there is one expert only, or `weights` is something else.
    """
    if len(experts) < 2:
        raise ConfigError(
            f"a simplex needs at least two experts, but there is only {experts[0]}: its weight "
            f"would always be 1, use the map global"
        )
    kinds = ["stick_breaking", "softmax"]
    kind = known("the weights of the map simplex", options["weights"], kinds)
    build = Softmax if kind == "softmax" else StickBreaking
    return build(tuple(experts), len(groups))
