"""The search space that a configuration describes: a preset, what overrides it, its variants."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.datatypes import Group, Knob, canonical_json
from evomerge.errors import ConfigError
from evomerge.protocols import SearchSpace
from search_spaces.knob_genes import STRENGTH
from search_spaces.layerwise import LayerwiseSpace
from search_spaces.maps import DEFAULT, MAPS, options_of
from search_spaces.options import known, mapping
from search_spaces.presets import PRESETS
from search_spaces.variants import VariantSpace

Options = dict[str, Any]

_OF_A_VARIANT = ("operator", "prepare", "runtime", "genes", "coefficients", "gates", "strength")


def merge_space(
    experts: Sequence[str],
    groups: Sequence[Group],
    *,
    preset: str | None = None,
    variants: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    **options: Any,
) -> SearchSpace:
    """A space bound to a model.

    Args:
        experts: Names, in the order of the recipes.
        groups: Of the base.
        preset: One of `PRESETS`; `variants` and `options` override it.
        variants: Mappings with keys of `options`, which override those outside. The first is the
            best guess. One whose gene has `choices` stands for one variant per choice.
        seed: Of whatever is random in an operator.
        options: `operator`, `coefficients`, `gates`, `genes`, `prepare`, `runtime`, `strength`, as
            `LayerwiseSpace` has them.

    Raises:
        ConfigError: an option is unknown or out of range, or variants are none or not distinct.
        ValueError: there are no groups or two have one label.
    """
    common = _checked("the space", options)
    if preset is not None:
        below = dict(PRESETS[known("the preset of a space", preset, PRESETS)])
        own = below.pop("variants", None)
        common, variants = _over(below, common), own if variants is None else variants  # type: ignore[assignment]  # of a preset
    each = _each(common, variants)
    spaces = [LayerwiseSpace(experts, groups, **one, seed=seed) for one in each]
    return spaces[0] if len(spaces) == 1 else VariantSpace(_names(each), spaces)


def _each(common: Options, variants: Sequence[Mapping[str, Any]] | None) -> list[Options]:
    """The options of every variant, complete, choices written out."""
    if variants is not None and not variants:
        raise ConfigError(
            "variants need at least one entry, but the list is empty: leave it out, or write "
            "- {operator: ties}"
        )
    listed = [
        _over(common, _checked("a variant", variant))
        for variant in ([{}] if variants is None else variants)
    ]
    every = [one for options in listed for one in _choices(options)]
    seen: set[str] = set()
    for one in every:
        text = canonical_json(one)
        if text in seen:
            raise ConfigError(f"variants must differ, but two are {one}: remove one, or change it")
        seen.add(text)
    return every


def _checked(what: str, given: object) -> Options:
    """Options whose keys are known and whose sections are mappings; None is not given."""
    options = {
        key: value
        for key, value in mapping(what, given, _OF_A_VARIANT).items()
        if value is not None
    }
    for key in set(options) - {"operator", "strength"}:
        mapping(key, options[key])
    if not isinstance(options.get("operator", ""), str):
        raise ConfigError(
            f"an operator is one name, but got {options['operator']!r}: to search over several "
            f"write variants: [{{operator: ...}}, {{operator: ...}}]"
        )
    return options


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> Options:
    """Options with others on top: sections are merged key by key, genes and all.

    Another operator has other knobs, and another map other options: those below are dropped then,
    but for what both maps have (as a rule the range).
    """
    merged: Options = {**below, **above}
    keeps_knobs = above.get("operator", below.get("operator")) == below.get("operator")
    if keeps_knobs or "operator" not in below:
        for key in ("prepare", "runtime"):
            merged[key] = {**below.get(key, {}), **above.get(key, {})}
        merged["genes"] = _genes_over(below.get("genes", {}), above.get("genes", {}))
    else:
        for key in ("prepare", "runtime", "genes"):
            merged[key] = dict(above.get(key, {}))
    own, other = below.get("coefficients", {}), above.get("coefficients", {})
    name = other.get("map", own.get("map", DEFAULT))
    if name != own.get("map", DEFAULT) and name in MAPS:
        own = {key: value for key, value in own.items() if key in options_of(name)}
    merged["coefficients"] = {**own, **other}
    return {key: value for key, value in merged.items() if value != {} or key == "gates"}


def _genes_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> Options:
    merged: Options = {**below}
    for name, options in above.items():
        both = isinstance(options, Mapping) and isinstance(below.get(name), Mapping)
        merged[name] = {**below[name], **options} if both else options
    return merged


def _choices(options: Options) -> list[Options]:
    """One set of options for each combination of the genes that have `choices`."""
    genes = options.get("genes", {})
    lists: dict[str, Sequence[Knob]] = {}
    for name, gene in genes.items():
        if isinstance(gene, Mapping) and "choices" in gene:
            mapping(f"the gene {name} with choices", gene, ["choices"])
            values = gene["choices"]
            fits = isinstance(values, list | tuple) and all(
                isinstance(value, float | int | str) for value in values
            )
            if not fits or not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"choices of the gene {name} must be a list of different values, but got "
                    f"{values!r}: write choices: [0.05, 0.1]"
                )
            lists[name] = values
    rest = {name: gene for name, gene in genes.items() if name not in lists}
    found = []
    for values in itertools.product(*lists.values()):
        one = {**options, "genes": rest}
        chosen = dict(zip(lists, values, strict=True))
        if STRENGTH in chosen:
            one[STRENGTH] = chosen.pop(STRENGTH)
        one["prepare"] = {**options.get("prepare", {}), **chosen}
        found.append({key: value for key, value in one.items() if value != {}})
    return found


def _names(each: Sequence[Options]) -> list[str]:
    """The operator, and of what else differs between variants of one operator just that."""
    names = []
    for one in each:
        operator = one.get("operator", "task_arithmetic")
        alike = [o for o in each if o.get("operator", "task_arithmetic") == operator]
        facts = []
        for key in ("prepare", "runtime", "coefficients"):
            for name, value in one.get(key, {}).items():
                if any(o.get(key, {}).get(name) != value for o in alike):
                    facts.append(f"{name}={value}")
        if any(o.get(STRENGTH) != one.get(STRENGTH) for o in alike):
            facts.append(f"strength={one.get(STRENGTH, 1)}")
        names.append(f"{operator} {' '.join(facts)}".strip())
    return [
        name if names.count(name) == 1 else f"{name} #{names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]
