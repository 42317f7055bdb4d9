"""Peak memory of a worker against (experts + 2) x model bytes.

    python experiments/benchmarks/memory.py [--parameters 200e6] [--experts 3]

Makes a random bf16 Llama and experts, starts a worker process as a search would, evaluates
candidates and one baseline of every kind, and reads the process's peak resident set from the
kernel. The interpreter with its imported libraries (no models) is measured in the same way and
subtracted. Wanted: at most 110 % of (experts + 2) x model bytes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table


def make_models(folder: Path, n_parameters: float, n_experts: int) -> None:
    """A base and experts that differ from it by small noise, and items of a fitness."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from evomerge.demo.tokenizer import zoo_tokenizer

    logging.disable_progress_bar()
    width, vocabulary = 1024, 32000
    per_layer = 4 * width * width + 3 * width * 4 * width
    layers = max(1, round((n_parameters - 2 * vocabulary * width) / per_layer))
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=vocabulary,
    )
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name in ["base", *(f"expert{k}" for k in range(n_experts))]:
        if name != "base":
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.data += (0.001 * noise).to(torch.bfloat16)
        model.save_pretrained(folder / name)
        zoo_tokenizer().save_pretrained(folder / name)
    for split in ("search", "held_out"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"split": split}) + "\n")


def first_weight(model: object, tokenizer: object, items: list[object]) -> list[float]:  # noqa: ARG001 - the protocol
    """A fitness without forward passes: activations are not what is measured here."""
    parameter = next(model.parameters())  # type: ignore[attr-defined]
    return [float(parameter.flatten()[0])] * len(items)


def peak_bytes() -> int:
    """Peak resident set of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this benchmark reads /proc: it needs Linux")


def work(folder: Path, n_experts: int) -> None:
    """What the measured process does: start, then evaluate; prints its figures."""
    import transformers  # noqa: F401 - part of the interpreter's share

    import evomerge.merging.materialize  # noqa: F401
    from evomerge.baselines import baselines
    from evomerge.datatypes import Job, Objective, Spec
    from evomerge.evaluation import ModelSource, ModelSources, Worker, WorkerSetup

    empty = peak_bytes()
    names = [f"expert{k}" for k in range(n_experts)]
    worker = Worker(
        WorkerSetup(
            models=ModelSources(
                ModelSource(str(folder / "base")),
                {name: ModelSource(str(folder / name)) for name in names},
            ),
            fitness=(
                Spec(
                    "fitness.python_callable:PythonFitness",
                    {
                        "objectives": (Objective("weight"),),
                        "callable": "experiments.benchmarks.memory:first_weight",
                        "items": str(folder / "search.jsonl"),
                        "held_out": str(folder / "held_out.jsonl"),
                    },
                ),
            ),
            cache=str(folder / "cache"),
            threads=os.cpu_count() or 1,
        )
    )
    started = peak_bytes()
    labels = [group.label for group in worker.facts.groups]
    for name, recipe in baselines(names, labels).items():
        evaluation = worker.evaluate(Job(f"{name}@search", recipe))
        if evaluation.failure is not None:
            raise RuntimeError(str(evaluation.failure))
    print(
        json.dumps(
            {
                "empty": empty,
                "started": started,
                "peak": peak_bytes(),
                "model": worker.facts.model_bytes,
            }
        )
    )


def main() -> None:
    """Make the models, measure a first start (builds the bank) and a second, print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--parameters", type=float, default=200e6)
    arguments.add_argument("--experts", type=int, default=3)
    arguments.add_argument("--work", type=Path)
    given = arguments.parse_args()
    if given.work is not None:
        work(given.work, given.experts)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_models(folder, given.parameters, given.experts)
        table = Table(
            title=f"worker with {given.experts} experts, bf16, without the interpreter's share; "
            "wanted: a ratio of at most 1.10"
        )
        for heading in (
            "start",
            "model MB",
            "peak MB once started",
            "peak MB in the end",
            "(experts + 2) models",
            "ratio",
        ):
            table.add_column(heading, justify="right")
        for start in ("first: builds the bank", "later"):
            command = [sys.executable, "-m", "experiments.benchmarks.memory"]
            command += ["--work", str(folder), "--experts", str(given.experts)]
            environment = {**os.environ, "EVOMERGE_CACHE": str(folder / "cache")}
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            figures = json.loads(done.stdout.splitlines()[-1])
            started, used = (figures[key] - figures["empty"] for key in ("started", "peak"))
            budget = (given.experts + 2) * figures["model"]
            table.add_row(
                start,
                f"{figures['model'] / 1e6:.0f}",
                f"{started / 1e6:.0f}",
                f"{used / 1e6:.0f}",
                f"{budget / 1e6:.0f}",
                f"{used / budget:.2f}",
            )
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
