"""Where what operators need besides the weights comes from; plain, so that it crosses processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StatisticsSource:
    """Where they come from; paths are absolute.

    Attributes:
        text: File of unlabeled text (see `texts`).
        samples: How many texts of it, evenly spread.
        max_length: Tokens of a text that are used.
        second_moments: By expert, a safetensors file of Adam's `exp_avg_sq`.
    """

    text: str | None = None
    samples: int = 256
    max_length: int = 512
    second_moments: Mapping[str, str] = field(default_factory=dict)
