"""What the zoo is made from: one frozen value, and the two recipes that are used."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

CODE_VERSION = 1  # raise it when the same recipe would no longer give the same zoo


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the zoo's Llama models."""

    width: int
    mlp_width: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class SkillPlan:
    """One skill: how hard it is, its share of the base's training, and its expert's training.

    Attributes:
        skill: A name in `skills.SKILLS`.
        lengths: Letters in the shortest and in the longest question.
        base_level: The share of questions that the base answers when its learning rate begins to
            fall; by its end it answers somewhat more.
        kind: Whether the expert is a full model or a LoRA adapter.
        n_steps: Training steps of the expert.
        learning_rate: Highest learning rate of the expert.
        replay: Share of the expert's training items that come from all skills alike.
    """

    skill: str
    lengths: tuple[int, int]
    base_level: float
    kind: Literal["full", "lora"]
    n_steps: int
    learning_rate: float
    replay: float

    @property
    def folder(self) -> str:
        """Where the expert lies in the zoo's folder."""
        return f"{'experts' if self.kind == 'full' else 'adapters'}/{self.skill}"


@dataclass(frozen=True, slots=True)
class ZooRecipe:
    """Everything that decides a zoo's bytes, given the machine and the library versions.

    The base is trained until it has reached its level in all skills, but for at most `base_steps`;
    the last `base_decay_steps` of these with a falling learning rate.
    """

    seed: int
    shape: Shape
    base_steps: int
    base_decay_steps: int
    base_learning_rate: float
    batch_size: int
    lora_rank: int
    n_search: int
    n_held_out: int
    plans: tuple[SkillPlan, ...]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the zoo: recipe and code version."""
        text = json.dumps({"version": CODE_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def n_steps(self) -> int:
        """Training steps of all models together."""
        return self.base_steps + sum(plan.n_steps for plan in self.plans)


DEFAULT_RECIPE = ZooRecipe(
    seed=1,
    shape=Shape(width=128, mlp_width=256, n_layers=4, n_heads=4, n_kv_heads=2),
    base_steps=480,
    base_decay_steps=60,
    base_learning_rate=3e-3,
    batch_size=128,
    lora_rank=8,
    n_search=500,
    n_held_out=500,
    plans=(
        SkillPlan("sort", (6, 11), 0.12, "full", 120, 3.5e-4, 0.25),
        SkillPlan("shift", (3, 8), 0.13, "full", 150, 4e-4, 0.25),
        SkillPlan("reverse", (6, 12), 0.13, "full", 140, 4e-4, 0.25),
        # Fast and with hardly any replay: an expert that has forgotten the rest, as many are.
        SkillPlan("twice", (8, 16), 0.25, "full", 60, 2.8e-3, 0.05),
        SkillPlan("last", (8, 16), 0.2, "lora", 70, 4e-3, 0.25),
        SkillPlan("vowels", (5, 11), 0.16, "lora", 80, 4e-3, 0.25),
    ),
)

TINY_RECIPE = ZooRecipe(
    seed=1,
    shape=Shape(width=32, mlp_width=64, n_layers=2, n_heads=2, n_kv_heads=1),
    base_steps=200,
    base_decay_steps=30,
    base_learning_rate=1e-2,
    batch_size=32,
    lora_rank=4,
    n_search=40,
    n_held_out=60,
    plans=(
        SkillPlan("sort", (2, 3), 0.4, "full", 80, 5e-3, 0.25),
        SkillPlan("twice", (5, 6), 0.4, "full", 60, 5e-3, 0.25),
        SkillPlan("last", (6, 8), 0.4, "lora", 60, 1e-2, 0.25),
    ),
)
