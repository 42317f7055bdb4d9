"""The names of what can be measured on unlabeled text."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.datatypes import Direction, Statistic
from evomerge.errors import TaskError

_WITHOUT_REFERENCE = ("perplexity", "entropy", "output_length", "refusal_rate")
_WITH_REFERENCE = ("kl", "js", "alignment")
BASE = "base"

_BETTER = {
    "perplexity": Direction.MINIMIZE,
    "kl": Direction.MINIMIZE,
    "js": Direction.MINIMIZE,
    "alignment": Direction.MAXIMIZE,
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A name taken apart; `reference` is a model to compare with, None all experts or no model."""

    name: str
    kind: str
    reference: str | None = None

    @property
    def compares(self) -> bool:
        """Whether other models are compared with."""
        return self.kind in _WITH_REFERENCE

    @property
    def generates(self) -> bool:
        """Whether the model must write an answer."""
        return self.kind in ("output_length", "refusal_rate")

    @property
    def statistic(self) -> Statistic:
        """How answers become a score: of perplexity (log-likelihood, number of tokens) pairs."""
        if self.kind == "perplexity":
            return Statistic("fitness.statistics:weighted_perplexity", 2)
        return Statistic()

    @property
    def better(self) -> Direction | None:
        """Which way it improves, where that is beyond doubt."""
        return _BETTER.get(self.kind)

    def references(self, experts: Sequence[str]) -> tuple[str, ...]:
        """The models to compare with, of those that there are.

        Raises:
            TaskError: when there is no such model.
        """
        if not self.compares:
            return ()
        if self.reference is None:
            if not experts:
                raise TaskError(
                    f"{self.name}: there must be experts to compare with, but the model has none: "
                    f"use {self.kind}_to:{BASE}, or bind it with its experts"
                )
            return tuple(experts)
        known = [*experts, BASE]
        if self.reference not in known:
            raise TaskError(
                f"{self.name}: what follows the colon must be an expert or {BASE}, but there is "
                f"no {self.reference!r}: {_nearest(self.reference, known)}"
            )
        return (self.reference,)


def parse_measure(name: str) -> Measure:
    """The measure of a name.

    Raises:
        TaskError: when there is none of that name.
    """
    if isinstance(name, str):
        if name in _WITHOUT_REFERENCE:
            return Measure(name, name)
        for kind in _WITH_REFERENCE:
            if name == f"{kind}_to_experts":
                return Measure(name, kind)
            reference = name.removeprefix(f"{kind}_to:")
            if reference not in (name, ""):
                return Measure(name, kind, reference)
    known = [
        *_WITHOUT_REFERENCE,
        *(f"{kind}_to{rest}" for kind in _WITH_REFERENCE for rest in ("_experts", ":NAME")),
    ]
    raise TaskError(
        f"a measure on unlabeled text is one of {', '.join(known)}, but got {name!r}: "
        f"{_nearest(str(name), known)}"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
