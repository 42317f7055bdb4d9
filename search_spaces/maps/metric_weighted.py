"""Metric-weighted averaging (MWA): a checkpoint weighs by a power of its own score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import FloatArray, Group
from evomerge.errors import ConfigError
from search_spaces.genes import Gene
from search_spaces.options import interval, known, mapping, number, starts

LOW, HIGH, START = 0.0, 10.0, 1.0

OPTIONS: Mapping[str, object] = {"metrics": None, "low": LOW, "high": HIGH, "start": None}


@dataclass(frozen=True, slots=True)
class MetricWeighted:
    """`c_i` proportional to `metric_i ^ p`, summing to one; the exponent p is the only gene."""

    metrics: tuple[float, ...]
    n_groups: int
    low: float
    high: float
    starts: tuple[float, ...]

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The exponent: 0 is the uniform average, much is the best checkpoint alone."""
        return (Gene("exponent of the metrics", self.low, self.high),)

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """In proportion to the metrics, then uniform, as far as in the range."""
        return tuple((start,) for start in self.starts)

    def matrix(self, values: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        logs = values[0] * np.log(np.array(self.metrics))
        w = np.exp(logs - logs.max())  # the greatest is 1: no overflow
        return np.repeat((w / w.sum())[:, None], self.n_groups, axis=1)


def metric_weighted(
    experts: Sequence[str], groups: Sequence[Group], options: Mapping[str, object]
) -> MetricWeighted:
    """`metrics` has a score above 0 for each expert, more is better.

    Raises:
        ConfigError: one is missing, too many or not above 0, or they are all equal.
    """
    if options["metrics"] is None:
        raise ConfigError(
            f"the map metric_weighted needs metrics, one score per expert, but has none: write "
            f"metrics: {{{experts[0]}: 0.5, ...}}"
        )
    given = mapping("metrics", options["metrics"])
    for name in given:
        known("an expert with a metric", name, experts)
    missing = [expert for expert in experts if expert not in given]
    if missing:
        raise ConfigError(
            f"metrics need a score of each expert, but {', '.join(missing)} has none: add it"
        )
    metrics = [number(f"the metric of {expert}", given[expert], 0.5) for expert in experts]
    if min(metrics) <= 0:
        raise ConfigError(
            f"metrics must be above 0 (a power is taken), but the least is {min(metrics):g}: "
            f"give scores where more is better, such as accuracies"
        )
    if len(set(metrics)) < 2:
        raise ConfigError(
            "metrics must differ, else all weights are equal and there is nothing to search, but "
            f"all are {metrics[0]:g}: use the map global"
        )
    low, high = interval(options, LOW, HIGH, of="the exponent")
    said = starts("the start of the exponent", options["start"], low, high, len(experts))
    tried = said or tuple(dict.fromkeys(min(max(p, low), high) for p in (START, 0.0)))
    return MetricWeighted(tuple(metrics), len(groups), low, high, tried)
