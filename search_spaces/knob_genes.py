"""An operator's knobs as genes: a density, a drop rate, a blend that costs nothing to change."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.datatypes import FloatArray, Knob
from evomerge.errors import ConfigError
from search_spaces.genes import Gene
from search_spaces.options import interval, known, mapping, number

STRENGTH = "strength"
"""The gene of this name is no knob: it multiplies all coefficients."""

KEYS = ("low", "high", "start", "scale", "per_expert", "whole")
SIGNIFICANT = 6
"""Digits of a knob, for the same reason as those of a coefficient."""


@dataclass(frozen=True, slots=True)
class KnobGenes:
    """The genes by the knob's spelling in recipes (`density`, `density@math`) and their starts."""

    genes: tuple[Gene, ...] = ()
    starts: tuple[float, ...] = ()

    def replaces(self, experts: Sequence[str]) -> set[str]:
        """The fixed knobs that no longer hold: those with a gene, for all experts or each."""
        names = {gene.label for gene in self.genes}
        stems = {name.partition("@")[0] for name in names}
        return names | {stem for stem in stems if all(f"{stem}@{k}" in names for k in experts)}

    def knobs(self, values: FloatArray) -> dict[str, Knob]:
        """The knobs of `(n_genes,)` values, `strength` among them."""
        return {
            gene.label: int(value)
            if gene.kind == "whole"
            else min(max(float(f"{value:.{SIGNIFICANT}g}"), gene.low), gene.high)
            for gene, value in zip(self.genes, values.tolist(), strict=True)
        }


def knob_genes(
    experts: Sequence[str], given: Mapping[str, object], fixed: Mapping[str, Knob]
) -> KnobGenes:
    """What a user writes under `genes:`.

    Args:
        experts: Names.
        given: From a knob to its range (`low`, `high`), `start`, `scale` (linear or log), and
            whether it is `whole` and has a gene `per_expert`. `knob@expert` is of one expert.
        fixed: Values of knobs that would hold without a gene: they are the starts of those genes
            that state none. Else the middle of the range is.

    Raises:
        ConfigError: a key is unknown, a range does not rise, or a start is outside of it.
    """
    genes: list[Gene] = []
    starts: list[float] = []
    for name, options in mapping("genes", given).items():
        gene, start, is_per_expert = _gene(name, options, fixed.get(name))
        stem, at, expert = name.partition("@")
        if at:
            known(f"the expert of the gene {name}", expert, experts)
        if stem == STRENGTH and (at or is_per_expert):
            raise ConfigError(
                "the strength multiplies all coefficients and cannot be per expert: the "
                "coefficients themselves are"
            )
        labels = [f"{name}@{k}" for k in experts] if is_per_expert and not at else [name]
        genes += [Gene(label, gene.low, gene.high, gene.kind, gene.scale) for label in labels]
        starts += [start] * len(labels)
    names = [gene.label for gene in genes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"a knob has one gene, but {', '.join(twice)} has two: drop per_expert or the other"
        )
    return KnobGenes(tuple(genes), tuple(starts))


def _gene(name: str, options: object, fixed: Knob | None) -> tuple[Gene, float, bool]:
    """A gene under the knob's name, its start, and whether every expert has one."""
    what = f"the gene {name}"
    given = mapping(what, options, KEYS)
    for key in ("low", "high"):
        if key not in given:
            raise ConfigError(
                f"{what} needs low and high, but has no {key}: write "
                f"{name}: {{low: ..., high: ...}}"
            )
    low, high = interval(given, 0.0, 1.0, of=what)
    scale = known(f"the scale of {what}", given.get("scale", "linear"), ["linear", "log"])
    for key in ("per_expert", "whole"):
        if not isinstance(given.get(key, False), bool):
            raise ConfigError(f"{key} of {what} must be true or false, but got {given[key]!r}")
    is_log, is_whole = scale == "log", bool(given.get("whole", False))
    if is_log and (low <= 0 or is_whole):
        raise ConfigError(
            f"{what} on a log scale needs low above 0 and no whole numbers, but {low=:g} and "
            f"whole={is_whole}: use scale: linear"
        )
    if is_whole and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{what} is whole, so low and high must be, but {low=:g} and {high=:g}")
    start = given.get("start", fixed)
    if start is None:
        start = math.sqrt(low * high) if is_log else (low + high) / 2
        start = math.floor(start) if is_whole else start
    value = number(f"the start of {what}", start, low)
    if not low <= value <= high or (is_whole and not value.is_integer()):
        raise ConfigError(
            f"the start of {what} must lie between {low=:g} and {high=:g}, but got {value:g}: move "
            f"it into the range, or widen the range"
        )
    return (
        Gene(name, low, high, "whole" if is_whole else "real", "log" if is_log else "linear"),
        value,
        given.get("per_expert", False) is True,
    )
