"""How long `evomerge inspect` takes, and how much memory.

    python experiments/benchmarks/inspection.py [--parameters 220e6] [--experts 3] [--threads 2]

Builds a Llama-shaped bf16 model of random weights and dense experts in a temporary folder, then
times the pass over them, files in the page cache, in a process of its own: its peak memory is that
of Python, torch and transformers, the pieces at work, and the files while they are mapped.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

PASS = """
import sys, time, torch
from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.inspection import inspect
torch.set_num_threads(int(sys.argv[1]))
base = Checkpoint.open(sys.argv[2])
experts = [open_expert(path, path, base) for path in sys.argv[3:]]
anatomy = Anatomy.of(base)
start = time.perf_counter()
inspect(base, experts, anatomy)
print(time.perf_counter() - start)
"""


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


def save(config: transformers.LlamaConfig, folder: Path, n_experts: int) -> tuple[list[Path], int]:
    """A base of random weights and experts beside it, every weight changed; parameters of each."""
    generator = torch.Generator().manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    base = {name: parameter.data.clone() for name, parameter in model.named_parameters()}
    paths = [folder / name for name in ["base", *(f"expert_{k}" for k in range(n_experts))]]
    for path in paths:
        model.save_pretrained(path)
        for name, parameter in model.named_parameters():
            noise = torch.empty_like(parameter).normal_(0, 0.001, generator=generator)
            parameter.data.copy_(base[name] + noise)
    return paths, sum(tensor.numel() for tensor in base.values())


def main() -> None:
    """Build, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=220e6)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="evomerge-benchmark-") as temporary:
        paths, n = save(llama(options.parameters), Path(temporary), options.experts)
        environment = os.environ | {"EVOMERGE_CACHE": f"{temporary}/cache", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", PASS, str(options.threads), *map(str, paths)]
        seconds = [
            float(
                subprocess.run(
                    command, env=environment, check=True, capture_output=True, text=True
                ).stdout
            )
            for _ in range(options.repeats)
        ]
    middle = statistics.median(seconds)
    n_bytes = 2 * n * (options.experts + 1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        f"{n / 1e6:.0f} M parameters, {options.experts} experts, {options.threads} threads: "
        f"{middle:.1f} s (from {min(seconds):.1f} to {max(seconds):.1f}), "
        f"{n_bytes / middle / 1e6:.0f} MB/s of {n_bytes / 1e9:.2f} GB, peak {peak / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
