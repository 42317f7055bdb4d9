"""The model whose weights candidates are written into, with what a fitness may ask about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.datatypes import Group, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

BARE = Recipe(operator="task_arithmetic", experts=(), groups=(), coefficients=())
"""The recipe of a model that is what it is: no experts, nothing merged."""


@dataclass(slots=True)
class LoadedModel:
    """A `LiveModel`; alone (a model and a tokenizer) it is one without experts.

    `writer` writes the weights of `base` or an expert, `compare` yields what `weights` does.
    """

    model: "nn.Module"
    tokenizer: "PreTrainedTokenizerBase | None" = None
    recipe: Recipe = BARE
    experts: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    digest: str = ""
    cache: Path = field(default_factory=Path)
    writer: Callable[[str], None] | None = None
    compare: "Callable[[], Iterator[tuple[int, Tensor, Tensor]]] | None" = None

    def write(self, name: str) -> None:
        """Give the model the weights of `base` or of an expert."""
        if self.writer is None:
            raise RuntimeError(f"a model without experts cannot become {name!r}")
        self.writer(name)

    def weights(self) -> "Iterator[tuple[int, Tensor, Tensor]]":
        """For each tensor: number of its group, the base's weights, the model's."""
        if self.compare is None:
            raise RuntimeError("a model without a base has nothing to compare its weights with")
        return self.compare()
