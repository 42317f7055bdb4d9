"""Which of mergekit's methods says what a recipe says, and where none does, why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.datatypes import Knob, Recipe
from evomerge.errors import ConfigError
from evomerge.mergekit.settings import Scalar

_CUTS = "which of several equal magnitudes at the border are kept is undefined in mergekit"
_SCE_GUARD = (
    "where the mean squares of the deltas add up to less than 1e-6 mergekit weighs all alike"
)

Row = tuple[float, ...]
"""One number for each group of the model."""
Value = Scalar | Row


@dataclass(frozen=True, slots=True)
class Said:
    """A merge in mergekit's words.

    Attributes:
        method: Its name there.
        shared: Parameters of the whole merge.
        each: Parameters of every expert, in order.
        rest: What parameters by group are for tensors of no group: such that the base remains.
        has_base: Whether it knows a base; else every model that it is given counts alike.
        caveats: Where its numbers may differ from ours, a sentence each.
    """

    method: str
    shared: Mapping[str, Value]
    each: tuple[Mapping[str, Value], ...]
    rest: float = 0.0
    has_base: bool = True
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A recipe with its operator's knobs complete."""

    recipe: Recipe
    operator: str
    knobs: Mapping[str, Knob]
    rows: tuple[Row, ...] = field(default=())

    def each(self, *knobs: str) -> tuple[dict[str, Value], ...]:
        """These knobs for every expert."""
        return tuple(
            {knob: float(self.knobs.get(f"{knob}@{expert}", self.knobs[knob])) for knob in knobs}
            for expert in self.recipe.experts
        )

    def cannot(self, why: str) -> ConfigError:
        """The refusal."""
        return ConfigError(
            f"a mergekit file must make the recipe's own model, but {why}: export the weights"
        )


def say(recipe: Recipe) -> Said:
    """The recipe in mergekit's words.

    Raises:
        ConfigError: mergekit has no words for it; the message says why.
    """
    from evomerge.merging.operators import get_operator

    operator = get_operator(recipe.operator)
    knobs = {
        **operator.complete(recipe.prepare, "prepare"),
        **operator.complete(recipe.runtime, "runtime"),
    }
    asked = _Asked(recipe, operator.name, knobs, tuple(map(tuple, recipe.matrix().tolist())))
    if operator.name in _WORDS:
        return _WORDS[operator.name](asked)
    if operator.seeded:
        raise asked.cannot(f"it has no seed for the random numbers of {operator.name}")
    raise asked.cannot(f"it has no method that does what {operator.name} does")


def _task_arithmetic(asked: _Asked) -> Said:
    return Said("task_arithmetic", {"normalize": False}, _with_weights(asked.rows))


def _band(asked: _Asked) -> Said:
    """Breadcrumbs without election: linear, so that late and early are one."""
    _refuse_ranking(asked)
    each = _of_band(asked)
    weights = _with_weights(asked.rows, each)
    return Said("breadcrumbs", {"normalize": False}, weights, caveats=(_CUTS,))


def _late(method: str) -> Callable[[_Asked], Said]:
    """Selection without coefficients: those of all experts must be one common factor, lambda."""

    def words(asked: _Asked) -> Said:
        _refuse_ranking(asked)
        if len(set(asked.rows)) > 1:
            raise asked.cannot(
                f"the coefficients of {asked.operator} come after its election and differ between "
                f"experts, and there they take part in it (as in {asked.operator}_exact)"
            )
        shared: dict[str, Value] = {"normalize": asked.knobs["reduce"] == "mean"}
        shared["lambda"] = asked.rows[0]
        ones = tuple(dict[str, Value](weight=1.0) for _ in asked.rows)
        return Said(method, shared, _both(ones, _selection(asked, method)), caveats=(_CUTS,))

    return words


def _early(method: str) -> Callable[[_Asked], Said]:
    """Coefficients inside the election."""

    def words(asked: _Asked) -> Said:
        _refuse_ranking(asked)
        normalize = asked.knobs["reduce"] == "mean"
        if normalize and any(c < 0.0 for row in asked.rows for c in row):
            raise asked.cannot(
                f"{asked.operator} divides by the sum of the sizes of the weights and it by their "
                "sum, which is another number where one is negative"
            )
        shared: dict[str, Value] = {"normalize": normalize}
        if asked.knobs["scale"] != 1.0:
            shared["lambda"] = asked.knobs["scale"]
        weights = _with_weights(asked.rows, _selection(asked, method))
        return Said(method, shared, weights, caveats=(_CUTS,))

    return words


def _slerp(asked: _Asked) -> Said:
    return Said("slerp", {"t": asked.rows[0]}, ({},))


def _relative(method: str) -> Callable[[_Asked], Said]:
    """Weights that are divided by their sum, which must not be zero."""

    def words(asked: _Asked) -> Said:
        by_group = list(zip(*asked.rows, strict=True))
        if any(min(column) < 0.0 or sum(column) < 1e-6 for column in by_group):
            raise asked.cannot(
                f"its {method} takes no weights below zero as zero, and none that are all zero"
            )
        return Said(method, {}, _with_weights(asked.rows), rest=1.0)

    return words


def _karcher(asked: _Asked) -> Said:
    if len(set(asked.rows)) > 1 or min(asked.rows[0]) <= 0.0:
        raise asked.cannot("its karcher has no weights, and the recipe's are not all alike")
    shared = {"max_iter": asked.knobs["max_iter"], "tol": asked.knobs["tol"]}
    return Said("karcher", shared, tuple(dict[str, Value]() for _ in asked.rows), has_base=False)


def _whole(method: str, caveats: tuple[str, ...] = (), **knobs: str) -> Callable[[_Asked], Said]:
    """Experts as they are: no coefficients, some knobs under its own names."""

    def words(asked: _Asked) -> Said:
        _refuse_coefficients(asked)
        shared = {theirs: asked.knobs[ours] for theirs, ours in knobs.items()}
        return Said(method, shared, tuple(dict[str, Value]() for _ in asked.rows), caveats=caveats)

    return words


def _sce(asked: _Asked) -> Said:
    if asked.knobs["unselected"] != "zero":
        raise asked.cannot("its sce merges selected places only")
    return _whole("sce", (_SCE_GUARD, _CUTS), select_topk="density")(asked)


def _model_stock(asked: _Asked) -> Said:
    _refuse_coefficients(asked)
    if asked.knobs["blend"] != 1.0 or len(asked.rows) < 2:
        raise asked.cannot("its model_stock has no blend, and two experts at least")
    return Said("model_stock", {}, tuple(dict[str, Value]() for _ in asked.rows))


_WORDS: dict[str, Callable[[_Asked], Said]] = {
    "task_arithmetic": _task_arithmetic,
    "breadcrumbs": _band,
    "breadcrumbs_ties": _late("breadcrumbs_ties"),
    "breadcrumbs_ties_exact": _early("breadcrumbs_ties"),
    "ties": _late("ties"),
    "ties_exact": _early("ties"),
    "slerp": _slerp,
    "nuslerp": _relative("nuslerp"),
    "multislerp": _relative("multislerp"),
    "karcher": _karcher,
    "sce": _sce,
    "ram": _whole("ram", epsilon="epsilon"),
    "ram_plus": _whole("ramplus_tl", epsilon="epsilon", r="r", alpha="alpha"),
    "nearswap": _whole("nearswap", t="strength"),
    "model_stock": _model_stock,
}


def _selection(asked: _Asked, method: str) -> tuple[dict[str, Value], ...]:
    return _of_band(asked) if method.startswith("breadcrumbs") else asked.each("density")


def _of_band(asked: _Asked) -> tuple[dict[str, Value], ...]:
    each = asked.each("density", "gamma")
    if any(float(one["density"]) + float(one["gamma"]) > 1.0 for one in each):  # type: ignore[arg-type]
        raise asked.cannot("it drops fewer outliers where density and gamma exceed 1 together")
    return each


def _with_weights(
    rows: tuple[Row, ...], each: tuple[Mapping[str, Any], ...] | None = None
) -> tuple[dict[str, Value], ...]:
    weights = tuple(dict[str, Value](weight=row) for row in rows)
    return weights if each is None else _both(weights, each)


def _both(
    first: tuple[dict[str, Value], ...], second: tuple[Mapping[str, Any], ...]
) -> tuple[dict[str, Value], ...]:
    return tuple({**a, **b} for a, b in zip(first, second, strict=True))


def _refuse_ranking(asked: _Asked) -> None:
    if asked.knobs.get("ranking", "tensor") != "tensor":
        raise asked.cannot("it ranks magnitudes within a tensor only")


def _refuse_coefficients(asked: _Asked) -> None:
    if any(c != 1.0 for row in asked.rows for c in row):
        raise asked.cannot(f"its {asked.operator} has no coefficients, and the recipe's are not 1")
