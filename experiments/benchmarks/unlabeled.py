"""What measures on unlabeled text cost: python experiments/benchmarks/unlabeled.py.

A random Llama (8.4 million weights without embeddings, 32,000 tokens) with four perturbed experts
and 24 texts of 8 to 128 tokens, on one thread. Seconds are of the processor, the least of three, so
that other work on the machine hardly counts. The bare forwards are of the same batches, once with
every logit and once with those of 16 positions a text.
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.datatypes import Objective, Split
from evomerge.live_model import LoadedModel
from fitness.forwards import Forwards, Plan, spread
from fitness.unlabeled import UnlabeledFitness

N_TEXTS = 24
EXPERTS = ("a", "b", "c", "d")
SETS = {
    "perplexity": ["perplexity"],
    "perplexity, entropy": ["perplexity", "entropy"],
    "kl_to:a": ["kl_to:a"],
    "kl_to_experts (4)": ["kl_to_experts"],
    "kl and js_to_experts": ["kl_to_experts", "js_to_experts"],
    "alignment_to_experts": ["alignment_to_experts"],
    "perplexity, entropy, kl, js": ["perplexity", "entropy", "kl_to_experts", "js_to_experts"],
}


class Words:
    """A text of numbers as its own token ids: a stand-in for a tokenizer that is read once."""

    chat_template = None

    def __call__(self, text: str) -> Any:
        """Its numbers."""
        return type("Encoding", (), {"input_ids": [int(word) for word in text.split()]})


def build_model() -> LlamaForCausalLM:
    """The base."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=256, intermediate_size=1024, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256,
        initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def least_seconds(measure: Callable[[], object]) -> float:
    """Processor time of a call."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        measure()
        seconds.append(time.process_time() - started)
    return min(seconds)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    model = build_model()
    weights = {"base": {k: v.clone() for k, v in model.state_dict().items()}}
    for number, name in enumerate(EXPERTS, start=1):
        generator = torch.Generator().manual_seed(number)
        weights[name] = {
            k: v + 0.02 * torch.randn(v.shape, generator=generator)
            for k, v in weights["base"].items()
        }
    rng = np.random.default_rng(0)
    texts = [
        " ".join(map(str, rng.integers(0, 32000, rng.integers(8, 129)))) for _ in range(N_TEXTS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        print("| measures | respond, s | bind, s | bind again, s | files, MB |")
        print("|---|---|---|---|---|")
        for label, measures in SETS.items():
            cache = Path(folder) / label.replace(" ", "_")
            live = LoadedModel(
                model, Words(), experts=EXPERTS, digest=label, cache=cache,
                writer=lambda name: model.load_state_dict(weights[name]),
            )  # fmt: skip
            bind = []
            for _ in range(2):
                objectives = [Objective(measure) for measure in measures]
                fitness = UnlabeledFitness(objectives, measures=measures, text=str(path))
                started = time.process_time()
                fitness.bind(live)
                bind.append(time.process_time() - started)
            seconds = least_seconds(partial(fitness.respond, Split.SEARCH, range(N_TEXTS)))
            size = sum(file.stat().st_size for file in cache.rglob("*.safetensors")) / 1e6
            print(f"| {label} | {seconds:.2f} | {bind[0]:.2f} | {bind[1]:.2f} | {size:.0f} |")
        sequences = [tuple(map(int, one.split())) for one in texts]
        chosen = [spread(len(tokens), 16) for tokens in sequences]
        forwards = Forwards(model, 64, 4096)
        for label, every in (("every logit", True), ("16 positions", False)):
            plan = forwards.plan(sequences, chosen, [0] * N_TEXTS, every=every)
            bare = least_seconds(partial(run, forwards, plan))
            print(f"| bare forwards, {label} | {bare:.2f} | | | |")


def run(forwards: Forwards, plan: Plan) -> None:
    """Nothing but the forwards."""
    for _ in forwards.run(plan):
        pass


if __name__ == "__main__":
    main()
