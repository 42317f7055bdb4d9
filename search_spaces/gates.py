"""Gates: an expert contributes exactly nothing where its gate is off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.datatypes import FloatArray, Group
from evomerge.errors import ConfigError
from search_spaces.genes import Gene
from search_spaces.maps.coefficient_map import label_of
from search_spaces.options import known, mapping
from search_spaces.partitions import Partition, by_block, by_part, everything

_PLACES = {
    frozenset({"expert"}): everything,
    frozenset({"expert", "layer"}): by_block,
    frozenset({"expert", "kind"}): by_part,
}


@dataclass(frozen=True, slots=True)
class Gates:
    """One bit per expert and place."""

    experts: tuple[str, ...]
    places: Partition

    @property
    def genes(self) -> tuple[Gene, ...]:
        """Expert by expert, place by place."""
        return tuple(
            Gene(f"gate {label_of(expert, place)}", kind="binary")
            for expert in self.experts
            for place in self.places.labels
        )

    def mask(self, bits: FloatArray) -> FloatArray:
        """From `(n_genes,)` bits to 0 or 1 for every expert and group."""
        return self.places.values(bits.reshape(len(self.experts), -1).T).T


def gates(experts: Sequence[str], groups: Sequence[Group], given: Mapping[str, object]) -> Gates:
    """`per` says what a gate covers of an expert: all, a layer, or a kind.

    Raises:
        ConfigError: it says something else.
    """
    per = mapping("gates", given, ["per"]).get("per")
    names = [per] if isinstance(per, str) else per
    if not isinstance(names, Sequence):
        raise ConfigError(
            f"gates need per, a list, but got {per!r}: write per: [expert, layer], "
            f"[expert, kind] or [expert]"
        )
    chosen = frozenset(
        known("an entry of gates.per", n, ["expert", "kind", "layer"]) for n in names
    )
    if chosen not in _PLACES:
        raise ConfigError(
            f"gates.per must be [expert], [expert, layer] or [expert, kind], but got "
            f"{list(names)}: choose one of these"
        )
    return Gates(tuple(experts), _PLACES[chosen](groups))
