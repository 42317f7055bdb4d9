"""One operator: coefficients by a map, optional gates, and knobs as genes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from evomerge.datatypes import Dimension, Group, Knob, Recipe
from evomerge.errors import ConfigError
from search_spaces.gates import gates as build_gates
from search_spaces.genes import Genes
from search_spaces.knob_genes import STRENGTH, KnobGenes, knob_genes
from search_spaces.maps import coefficient_map
from search_spaces.options import DECIMALS, number

NOTHING: Mapping[str, object] = MappingProxyType({})
NO_KNOBS: Mapping[str, Knob] = MappingProxyType({})


class LayerwiseSpace:
    """C[k, g] = strength * gate[k, g] * value_k(depth(g), kind(g)).

    `coefficients` chooses the map (`map`, see `search_spaces.maps`), its own options and mostly a
    range (`low`, `high`) and where to start (`start`); negative values occur where the range has
    them. `gates` adds binary dimensions: `{per: [expert]}`, `{per: [expert, layer]}` (all outside
    the layers shares one) or `{per: [expert, kind]}` (attention, mlp, rest). `genes` makes knobs
    vary (see `search_spaces.knob_genes`); `prepare` and `runtime` fix others.
    """

    def __init__(
        self,
        experts: Sequence[str],
        groups: Sequence[Group],
        *,
        operator: str = "task_arithmetic",
        coefficients: Mapping[str, object] = NOTHING,
        gates: Mapping[str, object] | None = None,
        genes: Mapping[str, object] = NOTHING,
        prepare: Mapping[str, Knob] = NO_KNOBS,
        runtime: Mapping[str, Knob] = NO_KNOBS,
        strength: float = 1.0,
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
        self._seed = seed
        self._strength = number("strength", strength, 1.0)
        if self._strength == 0.0:
            raise ConfigError("strength must not be 0: all merges would be the base")
        self._map = coefficient_map(self._experts, groups, coefficients)
        self._gates = None if gates is None else build_gates(self._experts, groups, gates)
        fixed = {**prepare, **runtime, STRENGTH: self._strength}
        self._knobs: KnobGenes = knob_genes(self._experts, genes, fixed)
        varied = self._knobs.replaces(self._experts)
        self._prepare = {name: value for name, value in prepare.items() if name not in varied}
        self._runtime = {name: value for name, value in runtime.items() if name not in varied}
        of_map, of_gates = self._map.genes, self._gates.genes if self._gates else ()
        self._n_coefficients, self._n_gates = len(of_map), len(of_gates)
        every = (*of_map, *of_gates, *self._knobs.genes)
        self._genes = Genes(every)
        self._dimensions = tuple(gene.dimension for gene in every)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Coefficients by expert and place (`math @ depth 0.50`), gates the same way, knobs."""
        return self._dimensions

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """Those of the map (as a rule the uniform average, then task arithmetic at 0.3 and 0.4).

        All gates are on and all knobs at their starts.
        """
        rest = (*(1.0,) * self._n_gates, *self._knobs.starts)
        return tuple(self._genes.positions((*values, *rest)) for values in self._map.anchors)

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
        values = self._genes.values(point)
        n, end = self._n_coefficients, self._n_coefficients + self._n_gates
        knobs = self._knobs.knobs(values[end:])
        C = self._map.matrix(values[:n]) * float(knobs.pop(STRENGTH, self._strength))
        if self._gates is not None:
            C = C * self._gates.mask(values[n:end])
        C = np.round(C, DECIMALS) + 0.0  # no -0.0: it has another digest
        return Recipe(
            operator=self._operator,
            experts=self._experts,
            groups=self._groups,
            coefficients=tuple(tuple(row) for row in C.tolist()),
            prepare=self._prepare,
            runtime={**self._runtime, **knobs},
            seed=self._seed,
        )
