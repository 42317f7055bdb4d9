"""Tiny real checkpoints, merged for real."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import Expert, open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Recipe
from evomerge.merging import materialize, mixing
from evomerge.merging.bank import Bank
from evomerge.merging.native import kernels

EXPERTS = ("chat", "math", "code")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["torch", "native"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What sums bfloat16 on the CPU."""
    if request.param == "torch":
        for module in (materialize, mixing):
            monkeypatch.setattr(module, "kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("this machine has no C compiler")
    return str(request.param)


@dataclass
class World:
    """A base, three experts and what is needed to merge them."""

    folder: Path
    base: Checkpoint
    experts: tuple[Expert, ...]
    anatomy: Anatomy

    def bank(self, operator: str = "task_arithmetic", **options: Any) -> Bank:
        return Bank.open_or_build(
            self.folder / "banks", self.base, self.experts, self.anatomy, operator, **options
        )

    def model(self) -> Any:
        """A live model whose weights are not yet those of the base."""
        model = transformers.AutoModelForCausalLM.from_pretrained(self.base.path, dtype="auto")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7.0)
        return model

    def recipe(self, *rows: float | list[float], **changes: Any) -> Recipe:
        """One number or one row of numbers per expert."""
        n_groups = len(self.anatomy.groups)
        C = [row if isinstance(row, list) else [row] * n_groups for row in rows]
        plain = {
            "operator": "task_arithmetic",
            "experts": tuple(expert.name for expert in self.experts),
            "groups": self.anatomy.group_labels,
            "coefficients": tuple(tuple(float(c) for c in row) for row in C),
        }
        return Recipe(**(plain | changes))

    def varied(self, which: int = 0, **changes: Any) -> Recipe:
        """Another coefficient for every expert and group."""
        generator = torch.Generator().manual_seed(which)
        C = torch.rand(len(self.experts), len(self.anatomy.groups), generator=generator) * 2 - 0.5
        return self.recipe(*C.tolist(), **changes)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a base and its experts, made once per dtype."""
    made: dict[str, Path] = {}

    def save(dtype: str) -> Path:
        if dtype in made:
            return made[dtype]
        folder = tmp_path_factory.mktemp(dtype)
        config = transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=24,
            intermediate_size=36,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
        generator = torch.Generator().manual_seed(1)
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.02, generator=generator)
            model.to(getattr(torch, dtype))
            first = next(model.parameters()).view(-1)
            # Minus zero and a subnormal must come back as they are.
            first[0], first[1] = -0.0, torch.finfo(first.dtype).tiny / 4
            model.save_pretrained(folder / "base")
            base = {name: p.clone() for name, p in model.named_parameters()}
            for expert in EXPERTS:
                for name, parameter in model.named_parameters():
                    change = torch.empty_like(parameter).normal_(0, 0.002, generator=generator)
                    # One expert leaves the norms as they were.
                    parameter.copy_(base[name] + change * (expert != "code" or "norm" not in name))
                model.save_pretrained(folder / expert)
        made[dtype] = folder
        return folder

    return save


@pytest.fixture
def make_world(saved: Callable[[str], Path], tmp_path: Path) -> Callable[..., World]:
    def make(dtype: str = "bfloat16", experts: tuple[str, ...] = EXPERTS) -> World:
        folder = saved(dtype)
        base = Checkpoint.open(folder / "base")
        opened = tuple(open_expert(name, folder / name, base) for name in experts)
        return World(tmp_path, base, opened, Anatomy.of(base))

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()
