"""How much of a candidate's evaluation is left when nothing is prepared twice.

    python experiments/benchmarks/lm_eval_path.py [MODEL_FOLDER TASK_YAML METRIC]

Asks the same model the same held-out items in three ways and prints milliseconds per call:
`LmEvalFitness.respond`, the request method of lm-eval's own model with everything prepared
before, and `lm_eval.simple_evaluate`. Without arguments: the base and the tasks of the demo's zoo.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
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
    "respond: a candidate's call; answers: its forwards alone, without metrics; plan: what items "
    "that were not asked together before cost once more; prepared: "
    "lm-eval's _loglikelihood_tokens or generate_until on requests built before; simple: "
    "simple_evaluate; the last two columns are their multiples of respond"
)


def milliseconds(call: Callable[[], object], n_calls: int) -> float:
    """Median wall time of a call, after one that warms up."""
    call()
    times = []
    for _ in range(n_calls):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds per call for one task."""

    n_items: int
    n_requests: int
    respond: float
    answers: float
    plan: float
    prepared: float
    simple: float


def row(model: Any, tokenizer: Any, task: str, metric: str, n_calls: int) -> Times:
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
    score = float(respond().mean())
    if abs(score - scores[fitness._measures[0].name]) > 1e-6:
        raise SystemExit(f"{task}: our score is {score}, but lm-eval's are {scores}")
    asked = (fitness._bound, Split.HELD_OUT, tuple(range(n_items)))

    def plan() -> None:
        fitness._plans.clear()
        fitness._plan(*asked)

    return Times(
        n_items=n_items,
        n_requests=len(instances),
        respond=milliseconds(respond, n_calls),
        answers=milliseconds(lambda: fitness._answer(*asked), n_calls),
        plan=milliseconds(plan, n_calls),
        prepared=milliseconds(prepared, n_calls),
        simple=milliseconds(simple_evaluate, max(2, n_calls // 4)),
    )


def main() -> None:
    """Print the table."""
    import logging

    import datasets
    import yaml
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("given", nargs="*", metavar="MODEL_FOLDER TASK_YAML METRIC")
    parser.add_argument("--tiny", action="store_true", help="the tiny zoo instead of the zoo")
    parser.add_argument("--calls", type=int, default=12)
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
    title = f"{Path(folder).name}: milliseconds per call, {arguments.threads} threads"
    table = Table("task", title=title, caption=CAPTION, box=SIMPLE, padding=(0, 1))
    for heading in (
        "items",
        "requests",
        "respond",
        "answers",
        "plan",
        "prepared",
        "simple",
        "x prep",
        "x simple",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, metric in asked:
        with (
            Path(os.devnull).open("w") as nothing,
            redirect_stderr(nothing),
        ):  # lm-eval's progress bars
            times = row(model, tokenizer, task, metric, arguments.calls)
        table.add_row(
            Path(task).stem,
            str(times.n_items),
            str(times.n_requests),
            *(f"{t:.1f}" for t in (times.respond, times.answers, times.plan)),
            *(f"{t:.1f}" for t in (times.prepared, times.simple)),
            f"{times.prepared / times.respond:.2f}",
            f"{times.simple / times.respond:.1f}",
        )
    console = Console()
    Console(width=max(100, console.width)).print(table)


if __name__ == "__main__":
    main()
