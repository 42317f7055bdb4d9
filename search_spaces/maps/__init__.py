"""Coefficient maps: from a few genes to `C[k, g]`. A new one is a file here and a line below."""

from collections.abc import Callable, Mapping, Sequence

from evomerge.datatypes import Group
from search_spaces.maps import (
    decay,
    layer_swap,
    lines,
    metric_weighted,
    simplex,
    split_point,
)
from search_spaces.maps.by_place import ByPlace, by_place
from search_spaces.maps.coefficient_map import RANGE, Build, CoefficientMap, coefficient_range
from search_spaces.maps.multipliers import multiplied
from search_spaces.options import interval, known
from search_spaces.value_maps import VALUE_MAPS, ValueMap

DEFAULT = "depth_spline"


def _placed(build: Callable[..., ValueMap], own: Mapping[str, object]) -> Build:
    """A map with one coefficient per expert and place of a value map."""

    def built(
        experts: Sequence[str], groups: Sequence[Group], options: Mapping[str, object]
    ) -> ByPlace:
        places = build(groups, **{key: options[key] for key in own})
        return by_place(experts, places, coefficient_range(options, len(experts)))

    return built


MAPS: dict[str, tuple[Build, Mapping[str, object]]] = {
    **{name: (_placed(build, own), {**RANGE, **own}) for name, (build, own) in VALUE_MAPS.items()},
    "lines": (lines.lines, lines.OPTIONS),
    "split_point": (split_point.split_point, split_point.OPTIONS),
    "simplex": (simplex.simplex, simplex.OPTIONS),
    "layer_swap": (layer_swap.layer_swap, layer_swap.OPTIONS),
    "metric_weighted": (metric_weighted.metric_weighted, metric_weighted.OPTIONS),
    "decay": (decay.decay, decay.OPTIONS),
}
"""Name -> how to build a map, and its own options with their defaults."""

_MULTIPLIED = {*VALUE_MAPS, "lines", "split_point"}
"""The maps that take `multipliers`: all whose coefficients have a range."""


def options_of(name: str) -> list[str]:
    """The keys that `coefficients` may have with a map."""
    return ["map", *MAPS[name][1], *(["multipliers"] if name in _MULTIPLIED else [])]


def coefficient_map(
    experts: Sequence[str], groups: Sequence[Group], coefficients: Mapping[str, object]
) -> CoefficientMap:
    """The map that a user describes.

    Raises:
        ConfigError: there is no such map or option, or an option is out of range.
    """
    name = known("the map of coefficients", coefficients.get("map", DEFAULT), MAPS)
    for key in coefficients:
        known(f"a key of coefficients with map {name}", key, options_of(name))
    build, defaults = MAPS[name]
    options = {key: coefficients.get(key, default) for key, default in defaults.items()}
    found = build(experts, groups, options)
    if coefficients.get("multipliers") is None:
        return found
    low, high = interval(options, float(str(RANGE["low"])), float(str(RANGE["high"])))
    return multiplied(found, experts, groups, coefficients["multipliers"], (low, high))
