"""How fast a recipe becomes weights, against a plain tensor copy timed in the same run.

    python experiments/benchmarks/materialize.py [--parameters 200e6] [--experts 3] [--repeats 15]
    python experiments/benchmarks/materialize.py --small
    python experiments/benchmarks/materialize.py --operators

Builds a Llama-shaped bf16 model of random weights and dense experts in a temporary folder, then
alternates the copy, the sum as a plain torch loop over whole tensors, and `Materializer.write`.
Bytes are those that must move: base and deltas read once, the model written once. The ratio is
taken within each round and its median shown, so that a busy machine slows both sides alike. With
`--operators` other operators follow: from banks of their own, or with stages run per candidate.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import Expert, open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Recipe
from evomerge.merging.bank import Bank
from evomerge.merging.materialize import Materializer


def llama(n_parameters: float) -> transformers.LlamaConfig:
    """About this many parameters, tied, with a vocabulary of an eighth of them."""
    hidden = max(64, int((n_parameters / 96) ** (1 / 2)) // 64 * 64)
    per_layer = hidden * hidden * (2 + 2 / 4 + 3 * 2.7)
    return transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=int(2.7 * hidden) // 8 * 8,
        num_hidden_layers=max(1, round(n_parameters * 7 / 8 / per_layer)),
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 64,
        vocab_size=max(256, int(n_parameters / 8 / hidden)),
        tie_word_embeddings=True,
    )


SMALL = transformers.LlamaConfig(
    hidden_size=128,
    intermediate_size=344,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=256,
    tie_word_embeddings=True,
)


def save(config: transformers.LlamaConfig, folder: Path, n_experts: int) -> None:
    """A base of random weights and experts beside it, every weight changed."""
    generator = torch.Generator().manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    for name in ["base", *(f"expert_{k}" for k in range(n_experts))]:
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(0, 0.001, generator=generator)
            parameter.data.add_(noise)
        model.save_pretrained(folder / name)


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Build, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=200e6)
    parser.add_argument("--experts", type=int, default=None, help="3, or 4 with --small")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--chunk", type=int, default=None, help="elements summed at once")
    parser.add_argument("--operators", action="store_true", help="others than task arithmetic")
    parser.add_argument("--small", action="store_true", help="milliseconds of a 0.7 M model")
    options = parser.parse_args()
    n_experts = options.experts or (4 if options.small else 3)
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="evomerge-benchmark-") as temporary:
        folder = Path(temporary)
        os.environ["EVOMERGE_CACHE"] = str(folder / "cache")
        save(SMALL if options.small else llama(options.parameters), folder, n_experts)
        base = Checkpoint.open(folder / "base")
        experts = [
            open_expert(f"expert_{k}", folder / f"expert_{k}", base) for k in range(n_experts)
        ]
        anatomy = Anatomy.of(base)
        building = time.perf_counter()
        bank = Bank.open_or_build(folder / "cache", base, experts, anatomy)
        building = time.perf_counter() - building
        model = transformers.LlamaForCausalLM.from_pretrained(base.path, dtype="auto")
        materializer = Materializer(base, bank, anatomy, model, chunk_elements=options.chunk)
        others: dict[str, Contestant] = {}
        if options.operators:
            others = other_operators(folder / "cache", base, experts, anatomy, model, bank)
        measure(options, base, bank, anatomy, model, materializer, building, others)


Contestant = tuple[Callable[[], object], int]

LIVE = {
    "ties, density a gene": ("ties", {"density": 0.3}),
    "ties_exact": ("ties_exact", {}),
    "dare_ties_exact": ("dare_ties_exact", {}),
    "della_exact": ("della_exact", {}),
}


def recipe_of(bank: Bank, anatomy: Anatomy, operator: str, **changes: Any) -> Recipe:
    """Coefficients that differ from group to group."""
    rng = np.random.default_rng(0)
    C = rng.uniform(0.1, 1.0, (len(bank.experts), len(anatomy.groups)))
    rows = tuple(map(tuple, C.tolist()))
    return Recipe(operator, bank.experts, anatomy.group_labels, rows, **changes)


def other_operators(
    cache: Path,
    base: Checkpoint,
    experts: Sequence[Expert],
    anatomy: Anatomy,
    model: torch.nn.Module,
    plain: Bank,
) -> dict[str, Contestant]:
    """TIES and owners from banks of their own, and stages per candidate."""
    n_bytes = base.n_bytes
    found: dict[str, Contestant] = {}
    for operator in ("ties", "magmax"):
        start = time.perf_counter()
        bank = Bank.open_or_build(cache, base, experts, anatomy, operator)
        seconds = time.perf_counter() - start
        writer = Materializer(base, bank, anatomy, model)
        recipe = recipe_of(bank, anatomy, operator)
        moved = n_bytes * 7 // 2 if bank.storage == "owner" else n_bytes * (len(experts) + 2)
        name = f"{operator} ({bank.storage} bank, made in {seconds:.1f} s)"
        found[name] = (partial(writer.write, recipe), moved)
    writer = Materializer(base, plain, anatomy, model)
    for name, (operator, free) in LIVE.items():
        recipe = recipe_of(plain, anatomy, operator, runtime=free)
        start = time.perf_counter()
        writer.write(recipe)  # makes the statistics
        seconds = time.perf_counter() - start
        found[f"{name} (statistics in {seconds:.1f} s)"] = (
            partial(writer.write, recipe),
            n_bytes * (len(experts) + 2),
        )
    return found


def measure(
    options: argparse.Namespace,
    base: Checkpoint,
    bank: Bank,
    anatomy: Anatomy,
    model: torch.nn.Module,
    materializer: Materializer,
    building: float,
    others: dict[str, Contestant],
) -> None:
    """Alternate the contestants and print the table."""
    recipe = recipe_of(bank, anatomy, "task_arithmetic")
    C = recipe.matrix()
    source = torch.zeros(base.n_bytes // 2, dtype=torch.bfloat16)
    target = torch.ones_like(source)
    live = model.state_dict()

    @torch.no_grad()
    def whole_tensors() -> None:
        """What one writes without thinking of caches."""
        for name in base.tensors:
            merged = base.read(name).float()
            for k, basis in enumerate(bank.bases(name)):
                if basis is not None:
                    merged.add_(basis.float(), alpha=float(C[k, anatomy.roles[name].group]))
            live[name].copy_(merged)

    merge_bytes = base.n_bytes * (len(bank.experts) + 2)
    contestants: dict[str, Contestant] = {
        "tensor copy": (lambda: target.copy_(source), 2 * base.n_bytes),
        "whole tensors": (whole_tensors, merge_bytes),
        "Materializer.write": (lambda: materializer.write(recipe), merge_bytes),
        **others,
    }
    for function, _ in contestants.values():
        seconds_of(function)  # maps the files, fills the caches
    rounds = [
        {name: seconds_of(function) for name, (function, _) in contestants.items()}
        for _ in range(options.repeats)
    ]

    table = Table(
        title=f"{sum(f.n_parameters for f in base.tensors.values()) / 1e6:.1f} M parameters "
        f"in {len(base.tensors)} tensors, {len(bank.experts)} deltas, {options.threads} threads, "
        f"{options.repeats} rounds"
    )
    for column in ("", "bytes", "median s", "min s", "median GB/s", "max GB/s", "of the copy"):
        table.add_column(column, justify="right" if column else "left")
    copy_bytes = contestants["tensor copy"][1]
    for name, (_, n_bytes) in contestants.items():
        seconds = [times[name] for times in rounds]
        ratios = [(n_bytes / times[name]) / (copy_bytes / times["tensor copy"]) for times in rounds]
        median, least = statistics.median(seconds), min(seconds)
        table.add_row(
            name,
            f"{n_bytes / 1e6:,.1f} M",
            f"{median:.5f}",
            f"{least:.5f}",
            f"{n_bytes / median / 1e9:.2f}",
            f"{n_bytes / least / 1e9:.2f}",
            f"{statistics.median(ratios):.0%}",
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    console = Console(width=110)
    console.print(table)
    load = os.getloadavg()[0]
    console.print(
        f"bank built in {building:.2f} s; peak memory {peak / 1e6:,.0f} MB with mapped files, the "
        f"copy's two buffers and the whole-tensor loop; load average {load:.1f}"
    )


if __name__ == "__main__":
    main()
