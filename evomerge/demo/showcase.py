"""`evomerge demo`: zoo, search, front, held-out scores, picture, page, export; on one screen."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from evomerge.config import Config, read_config
from evomerge.datatypes import Split
from evomerge.demo.zoo import Zoo, build_zoo
from evomerge.errors import RunError
from evomerge.export import export
from evomerge.history import History, Trial
from evomerge.reporting.conclusion import conclude
from evomerge.reporting.live import SearchView
from evomerge.reporting.page import write_page
from evomerge.reporting.plots import front_png
from evomerge.reporting.rows import best_in_mean, front_trials, mean_estimate
from evomerge.reporting.terminal import result_tables, score_text
from evomerge.run_folder import RunFolder
from evomerge.search import resume, start
from evomerge.session import bind_space

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""A global scale is the merge that people tune by hand: the search has to beat the best."""

N_ITEMS = 500
"""Search items per objective, of which most candidates answer 24; 500 others judge the result."""

_CONFIG = """\
# Written by `evomerge demo`; `evomerge search` runs it again. The pool is larger than the wish: the
# two LoRA adapters know skills that no objective asks for, which the search has to find out.
base: {zoo}/base
experts:
{experts}
objectives:
{objectives}
# Two numbers per expert, at the first and at the last layer; around the uniform average of six.
space:
  coefficients: {{map: depth_spline, knots: 2, low: -0.2, high: 0.8}}
# CMA-ES climbs the mean of the objectives; the front keeps every trade-off met on the way.
sampler: {{name: cma_es, sigma: 0.15, weights: {{{weights}}}}}
# Few items for most candidates, all of them for the baselines and for twelve finalists.
fidelity: {{first: 24, contest: 24, finalists: 12, baselines: all}}
baselines: {{scales: {scales}}}
budget: {{evaluations: {evaluations}}}
# One thread is enough for models of this size, and does not wait for a busy core.
workers: {{threads: 1}}
seed: {seed}
"""


def run_demo(folder: Path, *, evaluations: int, seed: int, console: Console) -> Trial:
    """The whole job on real input; what exists in `folder` already is continued, not repeated.

    Args:
        folder: Gets `zoo/`, `demo.yaml`, `run/` and `merged/`.
        evaluations: Candidates to search, baselines apart.
        seed: Of the search.
        console: Where to tell about it.

    Returns:
        The exported trial: the best mean on search items.
    """
    console.rule("1. reference zoo")
    zoo = build_zoo(folder / "zoo")
    console.print(f"a base, {len(zoo.experts)} experts and {len(zoo.adapters)} LoRA adapters in")
    console.print(str(zoo.folder), style="bold", soft_wrap=True)

    console.rule("2. search")
    written = folder / "demo.yaml"
    written.write_text(demo_yaml(zoo, evaluations=evaluations, seed=seed), encoding="utf-8")
    config = read_config(written)
    run = folder / "run"
    history = _search(config, run, console, evaluations)
    for part in result_tables(history, conclude(history), most=10):
        console.print(part)

    console.rule("3. report and export")
    space = bind_space(config, history.started.groups)
    views = RunFolder(run).views
    page = write_page(history, space.decode, views / "report.html")
    picture = front_png(history, views / "front.png")
    best = best_in_mean(front_trials(history), history.objectives)
    if best is None:
        raise RunError("a demo ends with a front, but this run has none: remove its folder")
    merged = folder / "merged"
    if not merged.exists():
        export(run, best.name, merged)
    _conclude(history, best, console)
    for what, path in {"page": page, "picture": picture, "model": merged}.items():
        console.print(Text.assemble(f"{what:>8}  ", (str(path), "bold")), soft_wrap=True)
    return best


def demo_yaml(zoo: Zoo, *, evaluations: int, seed: int) -> str:
    """The demo's configuration, with paths relative to the folder that the zoo is in."""
    name_of_zoo = zoo.folder.name
    return _CONFIG.format(
        zoo=name_of_zoo,
        experts="\n".join(
            f"  {name}: {name_of_zoo}/{expert.relative_to(zoo.folder)}"
            for name, expert in {**zoo.experts, **zoo.adapters}.items()
        ),
        objectives="\n".join(
            f"  - {{name: {name}, lm_eval: {name_of_zoo}/tasks/{name}.yaml, items: {N_ITEMS}}}"
            for name in zoo.experts
        ),
        weights=", ".join(f"{name}: 1" for name in zoo.experts),
        scales=list(SCALES),
        evaluations=evaluations,
        seed=seed,
    )


def _search(config: Config, run: Path, console: Console, evaluations: int) -> History:
    with SearchView(console) as view:
        if RunFolder(run).has_started:
            return resume(run, view.update, evaluations=evaluations)
        return start(config, run, view.update)


def _conclude(history: History, best: Trial, console: Console) -> None:
    """The sentence of the demo: the search against everything that is not one."""
    held_out = [t for t in history.scored(Split.HELD_OUT) if t.is_baseline]
    rivals = {
        "best expert": [t for t in held_out if t.name.startswith("expert:")],
        "uniform average": [t for t in held_out if t.name == "uniform_average"],
        "best global scale": [t for t in held_out if t.name.startswith("task_arithmetic")],
    }
    console.print(
        Text.assemble(
            ("mean on held-out items: ", "bold"),
            (f"{_held_out_mean(best, history)}  (trial {best.name})", "green"),
        )
    )
    for name, trials in rivals.items():
        # by search scores, as the exported one: held-out scores judge, they do not choose
        rival = best_in_mean(trials, history.objectives)
        if rival is not None:
            console.print(f"{name:>22}  {_held_out_mean(rival, history)}  ({rival.name})")


def _held_out_mean(trial: Trial, history: History) -> str:
    estimate = mean_estimate(trial, history.objectives, Split.HELD_OUT)
    return "–" if estimate is None else score_text(estimate.score, estimate.standard_error)
