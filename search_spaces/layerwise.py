"""Coefficients that vary with expert, depth and kind of a layer, with optional gates."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from evomerge.datatypes import Dimension, FloatArray, Group, Knob, Recipe
from evomerge.errors import ConfigError
from search_spaces.options import interval, known
from search_spaces.partitions import Partition, by_block, by_part, everything
from search_spaces.value_maps import VALUE_MAPS, ValueMap

LOW, HIGH = -0.2, 1.5
DECIMALS = 6
"""Digits of a coefficient: points that no merge can tell apart share a recipe and its digest."""

GATES = {
    frozenset({"expert"}): everything,
    frozenset({"expert", "layer"}): by_block,
    frozenset({"expert", "kind"}): by_part,
}
NOTHING: Mapping[str, object] = MappingProxyType({})


class LayerwiseSpace:
    """C[k, g] = gate[k, g] * value_k(depth(g), kind(g)), every value in [low, high].

    `coefficients` chooses the value map (`map`: global, depth_bins, depth_spline, kind_depth or
    per_layer), its own options (`knots`, `bins`) and the range (`low`, `high`); negative values
    occur where the range has them. `gates` adds binary dimensions: `{per: [expert]}`,
    `{per: [expert, layer]}` (all outside the layers shares one) or `{per: [expert, kind]}`
    (attention, mlp, rest); an expert contributes exactly nothing where its gate is off.
    """

    def __init__(
        self,
        experts: Sequence[str],
        groups: Sequence[Group],
        *,
        operator: str = "task_arithmetic",
        coefficients: Mapping[str, object] = NOTHING,
        gates: Mapping[str, object] | None = None,
        prepare: Mapping[str, Knob] = MappingProxyType({}),
        seed: int = 0,
    ) -> None:
        """Bind the space to a model.

        Raises:
            ConfigError: an option is unknown or out of range, or the experts are none or not
                distinct.
            ValueError: there are no groups or two have one label.
        """
        self._experts = tuple(experts)
        self._groups = tuple(group.label for group in groups)
        if not self._experts or len(set(self._experts)) < len(self._experts):
            raise ConfigError(
                f"a merge needs at least one expert and distinct names, but got "
                f"{list(self._experts)}: name each expert once"
            )
        if not self._groups or len(set(self._groups)) < len(self._groups):
            raise ValueError(f"groups need at least one and distinct labels, got {self._groups}")
        self._operator = operator
        self._prepare = dict(prepare)
        self._seed = seed
        self._map = _value_map(groups, coefficients)
        self._low, self._high = interval(coefficients, LOW, HIGH)
        self._gates = None if gates is None else _gates(groups, gates)
        self._dimensions = tuple(
            [Dimension(_label(k, place)) for k in self._experts for place in self._map.labels]
            + [
                Dimension(f"gate {_label(k, place)}", kind="binary")
                for k in self._experts
                for place in (self._gates.labels if self._gates else ())
            ]
        )

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Coefficients by expert and place (`math @ depth 0.50`), then gates the same way."""
        return self._dimensions

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """The uniform average, then task arithmetic at 0.3 and 0.4, all gates on.

        Each is the nearest value inside the range; values that coincide appear once.
        """
        wished = np.array([1.0 / len(self._experts), 0.3, 0.4])
        values = np.round(np.clip(wished, self._low, self._high), DECIMALS)
        n_gates = sum(dimension.kind == "binary" for dimension in self._dimensions)
        n_reals = len(self._dimensions) - n_gates
        return tuple(
            (u,) * n_reals + (1.0,) * n_gates
            for u in (
                # the rounded value of a bound may lie outside by half a digit
                min(max(float((value - self._low) / (self._high - self._low)), 0.0), 1.0)
                for value in dict.fromkeys(values)
            )
        )

    def decode(self, u: Sequence[float]) -> Recipe:
        """The recipe of a point.

        Args:
            u: a point of the unit cube, one coordinate per dimension.

        Raises:
            ValueError: `u` has another length or leaves [0, 1].
        """
        point = np.asarray(u, dtype=np.float64)
        if point.shape != (len(self._dimensions),):
            raise ValueError(
                f"the space has {len(self._dimensions)} dimensions, got a point of shape "
                f"{point.shape}"
            )
        if not ((point >= 0.0) & (point <= 1.0)).all():  # False for NaN
            raise ValueError(f"a point must lie in the unit cube, got {tuple(u)}")
        matrix = np.round(self._matrix(point), DECIMALS) + 0.0  # no -0.0: it has another digest
        return Recipe(
            operator=self._operator,
            experts=self._experts,
            groups=self._groups,
            coefficients=tuple(tuple(row) for row in matrix.tolist()),
            prepare=self._prepare,
            seed=self._seed,
        )

    def _matrix(self, point: FloatArray) -> FloatArray:
        """`C[k, g]`, shape `(n_experts, n_groups)`."""
        n_experts, n_reals = len(self._experts), len(self._experts) * len(self._map.labels)
        v = self._low + (self._high - self._low) * point[:n_reals].reshape(n_experts, -1).T
        # rounding must not leave the range
        C = np.clip(self._map.values(v), self._low, self._high).T
        if self._gates is None:
            return C
        on = (point[n_reals:] >= 0.5).astype(np.float64).reshape(n_experts, -1).T
        return C * self._gates.values(on).T


def _label(expert: str, place: str) -> str:
    return f"{expert} @ {place}" if place else expert


def _value_map(groups: Sequence[Group], coefficients: Mapping[str, object]) -> ValueMap:
    name = known("the map of coefficients", coefficients.get("map", "depth_spline"), VALUE_MAPS)
    build, defaults = VALUE_MAPS[name]
    for key in coefficients:
        known(f"a key of coefficients with map {name}", key, ["map", "low", "high", *defaults])
    return build(groups, **{key: coefficients.get(key, defaults[key]) for key in defaults})


def _gates(groups: Sequence[Group], gates: Mapping[str, object]) -> Partition:
    for key in gates:
        known("a key of gates", key, ["per"])
    per = gates.get("per")
    names = [per] if isinstance(per, str) else per
    if not isinstance(names, Sequence):
        raise ConfigError(
            f"gates need per, a list, but got {per!r}: write per: [expert, layer], "
            f"[expert, kind] or [expert]"
        )
    chosen = frozenset(
        known("an entry of gates.per", n, ["expert", "kind", "layer"]) for n in names
    )
    if chosen not in GATES:
        raise ConfigError(
            f"gates.per must be [expert], [expert, layer] or [expert, kind], but got "
            f"{list(names)}: choose one of these"
        )
    return GATES[chosen](groups)
