"""The genome of mergekit-evolve as a search space of ours."""

import re
from collections.abc import Mapping
from typing import Any

from evomerge.errors import ConfigError
from evomerge.mergekit.models import Models
from evomerge.mergekit.settings import truth


def space_of(
    genome: Mapping[str, Any],
    method: str,
    models: Models,
    n_layers: int | None,
    notes: list[str],
) -> dict[str, Any]:
    """The section `space` of a configuration.

    Args:
        genome: The keys.
        method: Its merge method.
        models: Its models.
        n_layers: Of the models, if known.
        notes: Take what has another meaning here.

    Raises:
        ConfigError: It asks for what no space here has.
    """
    given = genome.get("normalize")
    normalize = (
        method in ("ties", "dare_ties", "linear")
        if given is None
        else truth(given, "genome.normalize")
    )
    negative = truth(genome.get("allow_negative_weights", False), "genome.allow_negative_weights")
    coefficients = _map(genome, method, n_layers, notes)
    average = 1.0 / len(models.experts)
    low, high = (-0.2 if negative else 0.0), max(1.5, round(average + 0.5, 3))
    notes.append(
        f"weights had no bounds and a step of 1/6 (--sigma0): coefficients are from {low:g} to "
        f"{high:g} here"
    )
    if method == "slerp":
        coefficients |= {"low": 0.0, "high": 1.0, "start": 0.5}
        notes.append(
            "slerp: t is from 0 (base) to 1 (expert); for mergekit-evolve the base is the "
            "model of the larger gene, with t from 0 to 0.5: the same pairs"
        )
        return {"operator": "slerp", "coefficients": coefficients}
    if method == "linear":
        if not normalize:
            raise ConfigError(
                "linear without normalize scales the base too, which no base plus changes does: "
                "set `normalize: true`, or take task_arithmetic"
            )
        start = round(1.0 / (len(models.experts) + 1), 6)
        coefficients |= {"low": low, "high": 1.0, "start": start}
        notes.append(
            "linear is task arithmetic around the base, whose weight is what the coefficients "
            "leave of 1: they may add up to more than 1 here"
        )
        return {"operator": "task_arithmetic", "coefficients": coefficients}
    coefficients |= {"low": low, "high": high, "start": "average"}
    if method == "task_arithmetic":
        if normalize:
            notes.append(
                "`normalize` made the weights matter up to a common factor only: here their sum is "
                "free, so that the strength of the merge is searched too"
            )
        return {"operator": "task_arithmetic", "coefficients": coefficients}
    notes.append(
        "densities are genes of the experts here, not of every group too; they start inside their "
        "range, where mergekit-evolve starts on its border"
    )
    if normalize:
        notes.append(
            "with `normalize` the strength of the merge is no gene: to search it too, add "
            "`scale: {low: 0.2, high: 2.0, start: 1.0}` to space.genes"
        )
    space: dict[str, Any] = {
        "operator": f"{method}_exact",
        "coefficients": coefficients,
        "prepare": {"reduce": "mean" if normalize else "sum"},
    }
    if method == "ties":
        gene = {"low": 0.05, "high": 1.0, "start": 0.9, "per_expert": True}
        return {**space, "genes": {"density": gene}}
    gene = {"low": 0.0, "high": 0.95, "start": 0.1, "per_expert": True}
    notes.append(
        "dare_ties: drop_rate is 1 - density; what is kept is divided by it, where mergekit "
        "restores the l1 norm; masks are of the seed, the same for all candidates"
    )
    return {**space, "genes": {"drop_rate": gene}}


def _map(
    genome: Mapping[str, Any], method: str, n_layers: int | None, notes: list[str]
) -> dict[str, Any]:
    """The coefficient map of granularity, smoothness and filters."""
    granularity = int(genome.get("layer_granularity") or 0)
    smooth = truth(genome.get("smooth", False), "genome.smooth")
    filters = [str(f) for f in genome.get("filters") or []]
    if method == "slerp" and (smooth or filters):
        raise ConfigError("slerp has neither filters nor smooth in mergekit-evolve: remove them")
    n_groups = 1
    if granularity > 0:
        if n_layers is None:
            raise ConfigError(
                "layer_granularity needs the number of layers, but the base is not on this "
                "machine: give it with --layers"
            )
        if n_layers % granularity:
            raise ConfigError(
                f"layer_granularity divides the number of layers, but {n_layers} is no multiple "
                f"of {granularity}: correct it"
            )
        n_groups = n_layers // granularity
    if filters:
        parts = {_part(fragment) for fragment in filters}
        exact = parts == {"attention", "mlp"} and len(filters) == 2 and not smooth
        if not exact:
            notes.append(
                f"`filters: [{', '.join(filters)}]`"
                + (" with `smooth`" if smooth else "")
                + ": the nearest map has a number for attention, for mlp and for the rest, in "
                "steps over depth"
            )
        return {"map": "kind_depth", "bins": n_groups}
    if n_groups == 1:
        return {"map": "global"}
    if smooth:
        notes.append(
            "`smooth`: the curve through the knots is a monotone cubic, not straight lines; final "
            "norm and head take its end, where mergekit-evolve gives them its beginning"
        )
        return {"map": "depth_spline", "knots": n_groups}
    return {"map": "depth_bins", "bins": n_groups}


def _part(fragment: str) -> str:
    """What a fragment of names is about, as `kind_depth` divides."""
    if re.fullmatch(r"\.?(self_)?att(n|ention)\.?", fragment):
        return "attention"
    return "mlp" if fragment.strip(".") == "mlp" else "other"
