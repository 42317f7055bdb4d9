"""Seconds per candidate: mergekit's merge in process, and our writing into the live model.

    pip install mergekit==0.1.5        # here, or in another environment:
    python experiments/benchmarks/mergekit_throughput.py [--mergekit-python PYTHON] [--repeats 5]
    python experiments/benchmarks/mergekit_throughput.py --small        # seconds instead of minutes

Makes a bf16 Llama base of 220 M parameters and two experts beside it, then goes through the methods
one after the other: mergekit merges the same file several times in one process (imports and the
first, cold merge are not counted), then the engine writes as many candidates, each with other
coefficients, on the same number of threads. mergekit's kernels are the time inside its merge
methods; the rest is planning, reading and writing the model. What is made once per search here (the
bank, and with the first candidate the statistics of an operator) stands apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
import yaml
from rich.console import Console
from rich.table import Table

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Knob, Recipe
from evomerge.demo.tokenizer import zoo_tokenizer
from evomerge.merging.bank import Bank
from evomerge.merging.materialize import Materializer

EXPERTS = ("expert_0", "expert_1")


class Method(NamedTuple):
    """A method on both sides: its knobs there under each model, and here in the recipe."""

    name: str
    operator: str
    theirs: dict[str, float]
    ours: dict[str, Knob]
    n_experts: int = 2


METHODS = (
    Method("linear", "task_arithmetic", {}, {}),
    Method("task_arithmetic", "task_arithmetic", {}, {}),
    Method("slerp", "slerp", {}, {}, 1),
    Method("ties", "ties_exact", {"density": 0.5}, {"density": 0.5}),
    Method("dare_ties", "dare_ties_exact", {"density": 0.5}, {"drop_rate": 0.5}),
)


def save_models(folder: Path, *, small: bool) -> None:
    """A base of random weights and experts with every weight changed."""
    tokenizer = zoo_tokenizer()
    config = transformers.LlamaConfig(
        hidden_size=256 if small else 1024,
        intermediate_size=688 if small else 2752,
        num_hidden_layers=4 if small else 12,
        num_attention_heads=8 if small else 16,
        vocab_size=2048 if small else 32000,
        tie_word_embeddings=False,
    )
    generator = torch.Generator().manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name in ("base", *EXPERTS):
        for key, weight in model.state_dict().items() if name != "base" else ():
            change = torch.empty(weight.shape).normal_(0, 0.002, generator=generator)
            weight.copy_(start[key] + change)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def mergekit_file(method: Method, folder: Path) -> str:
    """The merge as mergekit reads it."""
    models = [
        {"model": str(folder / name), "parameters": {"weight": 0.4137, **method.theirs}}
        for name in EXPERTS[: method.n_experts]
    ]
    plain = {
        "merge_method": method.name,
        "base_model": str(folder / "base"),
        "models": models,
        "parameters": {"normalize": False},
        "dtype": "bfloat16",
    }
    if method.name == "linear":
        models.append({"model": str(folder / "base"), "parameters": {"weight": 0.1726}})
    if method.name == "slerp":
        plain["parameters"] = {"t": 0.4137}
        models[0]["parameters"] = {}
    return yaml.safe_dump(plain)


class Theirs(NamedTuple):
    """Median seconds of a merge, and of its kernels."""

    wall: float
    kernels: float


def merge_there(options: argparse.Namespace, method: Method, folder: Path) -> Theirs:
    """mergekit, in a process of its own; the first merge is left out."""
    job = {
        "config": mergekit_file(method, folder),
        "out": str(folder / "out"),
        "repeats": options.repeats + 1,
        "threads": options.threads,
        "seed": 0,
    }
    runner = Path(__file__).with_name("mergekit_runner.py")
    done = subprocess.run(
        [options.mergekit_python, str(runner)],
        input=json.dumps([job]),
        text=True,
        check=True,
        stdout=subprocess.PIPE,
    )
    answer = json.loads(done.stdout)
    return Theirs(*(statistics.median(answer[key][1:]) for key in ("seconds", "kernels")))


class Ours(NamedTuple):
    """Seconds: making the bank, the first candidate, and the median of the others."""

    bank: float
    first: float
    candidate: float


def merge_here(options: argparse.Namespace, method: Method, folder: Path) -> Ours:
    """Candidates of the method, one after the other into one live model."""
    base = Checkpoint.open(folder / "base")
    names = EXPERTS[: method.n_experts]
    experts = [open_expert(name, folder / name, base) for name in names]
    anatomy = Anatomy.of(base)
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "base", dtype="auto")
    rng = np.random.default_rng(0)

    def recipe() -> Recipe:
        C = rng.uniform(0.2, 0.8, (len(names), len(anatomy.groups))).round(6)
        return Recipe(
            method.operator, names, anatomy.group_labels, tuple(map(tuple, C.tolist())), method.ours
        )

    cache = folder / "cache" / method.name  # of its own, so that its bank is made anew
    found: list[Materializer] = []

    def prepare() -> None:
        bank = Bank.open_or_build(cache, base, experts, anatomy)
        found.append(Materializer(base, bank, anatomy, model))

    bank = seconds_of(prepare)
    times = []
    for _ in range(options.repeats + 1):
        following = recipe()
        times.append(seconds_of(lambda: found[0].write(following)))  # noqa: B023 (called at once)
    return Ours(bank, times[0], statistics.median(times[1:]))


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    """Make models, time both sides, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true", help="a model of 4 M parameters")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="evomerge-throughput-") as temporary:
        folder = Path(temporary)
        os.environ["EVOMERGE_CACHE"] = str(folder / "cache")
        save_models(folder, small=options.small)
        size = sum(f.n_parameters for f in Checkpoint.open(folder / "base").tensors.values())
        table = Table(
            title=f"{size / 1e6:.0f} M parameters, bf16, {options.threads} threads, median of "
            f"{options.repeats}; seconds"
        )
        for column in (
            "method",
            "mergekit",
            "its kernels",
            "bank, once",
            "first",
            "candidate",
            "times faster",
            "than its kernels",
        ):
            table.add_column(column, justify="left" if column == "method" else "right")
        for method in METHODS:
            theirs, ours = merge_there(options, method, folder), merge_here(options, method, folder)
            table.add_row(
                method.name,
                f"{theirs.wall:.2f}",
                f"{theirs.kernels:.2f}",
                f"{ours.bank:.2f}",
                f"{ours.first:.3f}",
                f"{ours.candidate:.3f}",
                f"{theirs.wall / ours.candidate:.0f}",
                f"{theirs.kernels / ours.candidate:.0f}",
            )
        console = Console(width=120)
        console.print(table)
        console.print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
