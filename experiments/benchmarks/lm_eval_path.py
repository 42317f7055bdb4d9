"""How much of a candidate's evaluation is left when nothing is prepared twice.

    python experiments/benchmarks/lm_eval_path.py [MODEL_FOLDER TASK_YAML METRIC]

Asks the same model the same held-out items in three ways, one after the other in every round:
`LmEvalFitness.respond` (the calls of the model's forward in it timed apart), the request method
of lm-eval's own model with everything prepared before, and `lm_eval.simple_evaluate` as it would
be called for every candidate. Prints medians, and how many requests a second each way answers:
wanted is at least three times as many as by `simple_evaluate`. Without arguments: the base and
the tasks of the demo's zoo.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from evomerge.datatypes import Objective, Split
from evomerge.live_model import LoadedModel
from fitness.lm_eval import LmEvalFitness

CAPTION = (
    "milliseconds a call: respond is a candidate's, forwards those in it; prepared: lm-eval's "
    "_loglikelihood_tokens or generate_until on requests built before; simple: simple_evaluate. "
    "Then requests a second, and the multiple of simple_evaluate's (wanted: at least 3)"
)


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds per call for one task, medians over rounds."""

    n_requests: int
    respond: float
    forwards: float
    prepared: float
    simple: float


class Forwards:
    """Adds up the wall time of a model's forward calls, in milliseconds."""

    def __init__(self, model: Any) -> None:
        self.total = 0.0
        self._since = 0.0
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.total += 1000 * (time.perf_counter() - self._since)


def row(model: Any, tokenizer: Any, watch: Forwards, task: str, metric: str, rounds: int) -> Times:
    """Measure one task, after checking that the score is lm-eval's."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    fitness = LmEvalFitness((Objective("score"),), task=task, metrics=(metric,))
    fitness.bind(LoadedModel(model, tokenizer))
    n_items = len(fitness.items(Split.HELD_OUT))
    instances = [instance for item in fitness._items[Split.HELD_OUT] for instance in item.instances]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64)
    if instances[0].request_type == "loglikelihood":
        pairs = [(instance.args, *theirs._encode_pair(*instance.args)) for instance in instances]

        def prepared() -> object:
            return theirs._loglikelihood_tokens(pairs, disable_tqdm=True)
    else:

        def prepared() -> object:
            return theirs.generate_until(instances, disable_tqdm=True)

    def simple_evaluate() -> Any:
        return lm_eval.simple_evaluate(
            model=theirs,
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            log_samples=False,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=None,
        )

    def respond() -> Any:
        return fitness.respond(Split.HELD_OUT, range(n_items))

    (scores,) = simple_evaluate()["results"].values()
    measure = fitness._measures[0]
    score = float(respond().mean())
    if abs(score - scores[measure.name]) > 1e-6:
        raise SystemExit(f"{task}: our score is {score}, but lm-eval's are {scores}")
    prepared()
    times: dict[str, list[float]] = {"respond": [], "forwards": [], "prepared": [], "simple": []}
    calls: dict[str, Callable[[], object]] = {
        "respond": respond,
        "prepared": prepared,
        "simple": simple_evaluate,
    }
    for _ in range(rounds):
        for name, call in calls.items():
            before, started = watch.total, time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - started))
            if name == "respond":
                times["forwards"].append(watch.total - before)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Times(len(instances), **medians)


def main() -> None:
    """Print the table."""
    import logging

    import datasets
    import yaml
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("given", nargs="*", metavar="MODEL_FOLDER TASK_YAML METRIC")
    parser.add_argument("--tiny", action="store_true", help="the tiny zoo instead of the zoo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    torch.set_num_threads(arguments.threads)
    if arguments.given:
        folder, task, metric = arguments.given
        asked = [(task, metric)]
    else:
        from evomerge.demo.zoo import DEFAULT_RECIPE, TINY_RECIPE, build_zoo

        zoo = build_zoo(None, TINY_RECIPE if arguments.tiny else DEFAULT_RECIPE)
        folder = str(zoo.base)
        asked = []
        for path in zoo.tasks.values():
            metrics = yaml.safe_load(path.read_text(encoding="utf-8"))["metric_list"]
            asked.append((str(path), metrics[0]["metric"]))
    model = AutoModelForCausalLM.from_pretrained(folder).to(arguments.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    watch = Forwards(model)
    title = f"{Path(folder).name}: the same model and items, {arguments.threads} threads"
    table = Table("task", title=title, caption=CAPTION, box=SIMPLE, padding=(0, 1))
    headings = ("requests", "respond", "forwards", "prepared", "simple", "ours/s", "simple/s", "x")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    all_times = []
    for task, metric in asked:
        with (
            Path(os.devnull).open("w") as nothing,
            redirect_stderr(nothing),
        ):  # lm-eval's progress bars
            times = row(model, tokenizer, watch, task, metric, arguments.rounds)
        all_times.append(times)
        table.add_row(Path(task).stem, *cells(times))
    total = Times(*(sum(column) for column in zip(*map(astuple, all_times), strict=True)))
    table.add_row("all", *cells(total), style="bold")
    console = Console()
    Console(width=max(100, console.width)).print(table)


def cells(times: Times) -> list[str]:
    """A row of the table."""
    ours, theirs = (1000 * times.n_requests / t for t in (times.respond, times.simple))
    milliseconds = (times.respond, times.forwards, times.prepared, times.simple)
    return [
        str(times.n_requests),
        *(f"{t:.1f}" for t in milliseconds),
        f"{ours:.0f}",
        f"{theirs:.0f}",
        f"{ours / theirs:.1f}",
    ]


if __name__ == "__main__":
    main()
