"""The command line: each command in a few lines, everything heavy imported when it is needed."""

import contextlib
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from evomerge.errors import ConfigError, EvomergeError, RunError
from evomerge.history import History, read_history

if TYPE_CHECKING:
    from evomerge.evaluation import ModelSources
    from evomerge.reporting.rows import Picked

app = typer.Typer(
    name="evomerge",
    help="Search for the best way to merge language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# A log has no width of its own: what the tables need.
console = Console(width=None if sys.stdout.isatty() else 120)
complaints = Console(stderr=True)

ConfigPath = Annotated[Path, typer.Argument(help="YAML configuration.", metavar="CONFIG")]
RunPath = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Prefer = Annotated[
    str | None,
    typer.Option(
        help="knee; weights (math=2, chat=1); reference: math=0.7, chat=0.6; or thresholds and an "
        "order (math>=0.6, chat). Default: final.prefer of the configuration, else the knee.",
        show_default=False,
    ),
]


def main() -> None:
    """Run the command line; errors of the user's making are one line and an exit code."""
    try:
        app()
    except EvomergeError as error:
        complaints.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        # The environment's doing wherever it strikes: a full disk, a missing folder, no permission.
        text = (
            f"files must be readable and writable, but {error}: check path, rights and free space"
        )
        complaints.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)
        sys.exit(RunError.exit_code)
    except KeyboardInterrupt:
        complaints.print("interrupted; what was evaluated is kept: continue with `evomerge resume`")
        sys.exit(130)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where zoo, run and export go.")] = Path("demo"),
    evaluations: Annotated[int, typer.Option(min=1, help="Candidates to search.")] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a small zoo, search merges of its experts, report and export: the whole job."""
    from evomerge.demo.showcase import run_demo

    run_demo(folder.resolve(), evaluations=evaluations, seed=seed, console=console)


@app.command()
def check(config: ConfigPath, as_json: AsJson = False) -> None:
    """Open everything a run needs and evaluate one candidate; starts no run."""
    from evomerge.config import read_config
    from evomerge.datatypes import Job
    from evomerge.preview import cost, preview
    from evomerge.session import Session

    with Session(read_config(config)) as session:
        facts = preview(session)
        session.executor.submit(Job("check@search", session.baselines["uniform_average"]))
        evaluation = session.executor.next_done()
        if evaluation is None or evaluation.failure is not None:
            why = "no answer" if evaluation is None else str(evaluation.failure)
            raise RunError(f"a candidate must be evaluated, but the uniform average failed: {why}")
        facts += cost(session, evaluation)
    if as_json:
        _print_json([{"name": f.name, "text": f.text, "warning": f.is_warning} for f in facts])
        return
    for fact in facts:
        style = "yellow" if fact.is_warning else "bold"
        console.print(Text.assemble((f"{fact.name:>12}  ", style), fact.text))
    console.print(Text("everything is in place", style="green"))


@app.command()
def inspect(
    models: Annotated[
        list[str],
        typer.Argument(help="YAML configuration, or a base and its experts.", metavar="MODEL..."),
    ],
    full: Annotated[bool, typer.Option("--full", help="Also by layer and kind.")] = False,
    picture: Annotated[Path | None, typer.Option(help="PNG file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what the experts change, before any search: norms, cosines, signs of trouble."""
    from evomerge.evaluation import open_models
    from evomerge.inspection import inspect as compare
    from evomerge.reporting.inspection import inspection_png, inspection_rows, inspection_tables

    opened = open_models(_sources(models))
    inspection = compare(opened.base, opened.experts, opened.anatomy)
    if picture is not None:
        inspection_png(inspection, picture)
    if as_json:
        _print_json(inspection_rows(inspection))
        return
    for part in inspection_tables(inspection, full=full):
        console.print(part)
    if picture is not None:
        console.print(Text.assemble("wrote ", (str(picture), "bold")))
    for warning in inspection.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), (warning, "yellow")))
    if not inspection.warnings:
        console.print(Text("nothing looks wrong", style="green"))


@app.command()
def search(
    config: ConfigPath,
    run: Annotated[
        Path | None, typer.Option(help="Run directory to create; default: runs/<config>-<time>.")
    ] = None,
) -> None:
    """Search merges as configured; kill it at any time and `resume`."""
    from evomerge.config import read_config
    from evomerge.reporting.live import SearchView
    from evomerge.search import start

    settings = read_config(config)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = run or Path("runs") / f"{config.stem}-{stamp}"
    console.print(Text.assemble("run directory: ", (str(folder), "bold")))
    with SearchView(console) as view:
        history = start(settings, folder, view.update)
    _conclude(history, folder)


@app.command()
def resume(
    run: RunPath,
    evaluations: Annotated[
        int | None, typer.Option(min=0, help="New budget of candidates in all.")
    ] = None,
) -> None:
    """Continue a run exactly where it stopped."""
    from evomerge.reporting.live import SearchView
    from evomerge.search import resume as continue_run

    with SearchView(console) as view:
        history = continue_run(run, view.update, evaluations=evaluations)
    _conclude(history, run)


@app.command()
def status(run: RunPath, as_json: AsJson = False) -> None:
    """Where a run stands; safe while it goes on."""
    from evomerge.reporting.terminal import status_rows, status_table

    rows = status_rows(read_history(run))
    if as_json:
        _print_json(rows)
    else:
        console.print(status_table(rows))


@app.command()
def front(run: RunPath, prefer: Prefer = None, as_json: AsJson = False) -> None:
    """The Pareto front, with the knee or the trial that suits a preference."""
    from evomerge.preferences import parse_preference
    from evomerge.reporting.conclusion import conclude
    from evomerge.reporting.rows import baseline_rows, front_rows, picked, title_of
    from evomerge.reporting.terminal import result_tables

    preference = None if prefer is None else parse_preference(prefer)
    history = read_history(run)
    taken = picked(history, preference)
    conclusion = conclude(history)
    if as_json:
        confidence = conclusion.confidence
        on_front = None if confidence is None else confidence.probabilities
        _print_json(
            {
                "front": front_rows(history, on_front),
                "picked": taken.trial.name,
                "why": taken.why,
                "remarks": taken.remarks,
                "baselines": baseline_rows(history, on_front),
                "on_front": None if confidence is None else confidence.caption,
                "optimism": conclusion.optimism,
                "verdict": conclusion.verdict.row(),
            }
        )
        return
    for part in result_tables(history, conclusion):
        console.print(part)
    _print_picked(taken, title_of(taken.trial))


@app.command()
def report(
    run: RunPath,
    page: Annotated[Path | None, typer.Option(help="HTML file; default: in the run.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG file; default: in the run.")] = None,
) -> None:
    """Write the self-contained web page and the picture of a run."""
    written = write_report(run, page=page, picture=picture)
    for path in written:
        console.print(Text.assemble("wrote ", (str(path), "bold")))


@app.command()
def responses(
    run: RunPath,
    out: Annotated[
        Path | None, typer.Option(help="Parquet or CSV file; default: in the run.")
    ] = None,
) -> None:
    """Write every answer of a run, item by item, as one table; safe while it goes on."""
    from evomerge.reporting.responses import write_responses
    from evomerge.run_folder import RunFolder

    history = read_history(run)
    path = out or RunFolder(run).views / "responses.parquet"
    n_rows = write_responses(history, path)
    console.print(Text.assemble("wrote ", (str(path), "bold"), f" ({n_rows} answers)"))


@app.command("item-bank")
def item_bank(
    run: RunPath,
    objective: Annotated[str, typer.Argument(help="Whose items to learn.")],
    out: Annotated[Path, typer.Option(help="Bank to write (.npz).")],
    dimensions: Annotated[int, typer.Option(min=1, help="Of ability.")] = 1,
) -> None:
    """Fit an item bank (2PL) to the answers of a run, for estimators of item response theory."""
    from evomerge import loading
    from evomerge.config import FIT_ITEM_BANK

    names, matrix = read_history(run).response_matrix(objective)
    fit = loading.resolve(FIT_ITEM_BANK)
    fit(matrix, n_dimensions=dimensions, item_ids=names).save(out)
    console.print(
        Text.assemble("wrote ", (str(out), "bold"), f" ({len(names)} items, {len(matrix)} models)")
    )


@app.command()
def export(
    run: RunPath,
    trial: Annotated[
        str | None, typer.Argument(help="Trial to export; default: as --prefer.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Model folder to create; default: merged.", show_default=False),
    ] = None,
    prefer: Prefer = None,
    mergekit: Annotated[
        Path | None, typer.Option(help="Write a mergekit file, and a folder only with --out.")
    ] = None,
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write one PEFT adapter instead of a model.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of the adapter; default: exact.", show_default=False)
    ] = None,
    max_shard_bytes: Annotated[int, typer.Option(min=1)] = 5_000_000_000,
    verify: Annotated[bool, typer.Option(help="Load it back and compare scores.")] = True,
) -> None:
    """Write a trial as a model folder that `from_pretrained` loads, and re-score it."""
    from evomerge.export import export as write_export
    from evomerge.export import export_adapter, export_mergekit
    from evomerge.preferences import parse_preference
    from evomerge.reporting.rows import picked, title_of

    if trial is not None and prefer is not None:
        raise ConfigError("an export is named or preferred, but both were given: drop one of them")
    if rank is not None and not as_adapter:
        raise ConfigError("a rank is that of an adapter, but a model was asked for: --as-adapter")
    if trial is None:
        preference = None if prefer is None else parse_preference(prefer)
        taken = picked(read_history(run), preference)
        trial = taken.trial.name
        _print_picked(taken, title_of(taken.trial))
    if mergekit is not None:
        export_mergekit(run, trial, mergekit)
        console.print(Text.assemble("wrote ", (str(mergekit), "bold"), f" (trial {trial})"))
        if folder is None:
            return
    folder = folder or Path("merged")
    if as_adapter:
        error = export_adapter(run, trial, folder, rank=rank)
        loss = "exact" if rank is None else f"rank {rank} leaves out {error:.2%} of the change"
        console.print(Text.assemble("wrote ", (str(folder), "bold"), f" (trial {trial}, {loss})"))
        return
    done = write_export(run, trial, folder, max_shard_bytes=max_shard_bytes, verify=verify)
    console.print(Text.assemble("wrote ", (str(done.folder), "bold"), f" (trial {trial})"))
    if done.rescored is not None:
        scores = ", ".join(f"{name} {mean:.4f}" for name, mean in done.rescored.items())
        console.print(f"loaded back, it scores as journaled: {scores}")


@app.command("import-mergekit")
def import_mergekit(
    file: Annotated[Path, typer.Argument(help="Of mergekit-evolve, or of a merge.")],
    out: Annotated[Path, typer.Option(help="Configuration to write.")] = Path("config.yaml"),
    task: Annotated[
        list[str] | None, typer.Option(help="Objective of lm-eval, for a merge; may be repeated.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Of the models, if they are not on this machine.")
    ] = None,
) -> None:
    """Make a configuration of a mergekit YAML file; what means something else here is named."""
    from evomerge.mergekit.importing import import_file

    for path in (out, out.with_suffix(".start.json")):
        if path.exists():
            raise ConfigError(f"an import writes new files, but {path} exists: give another --out")
    imported = import_file(file, tasks=tuple(task or ()), n_layers=layers)
    for path, text in imported.files(str(file), out).items():
        path.write_text(text, encoding="utf-8")
        console.print(Text.assemble("wrote ", (str(path), "bold")))
    for note in imported.notes:
        style = "yellow" if note.startswith("warning") else ""
        console.print(Text(f"- {note}", style=style))
    console.print(f"next: evomerge check {out}", markup=False)


def write_report(
    run: Path, *, page: Path | None = None, picture: Path | None = None
) -> Sequence[Path]:
    """Write page and picture of a run; by default into its `views/`."""
    from evomerge.reporting.page import write_page
    from evomerge.reporting.plots import front_png
    from evomerge.run_folder import RunFolder
    from evomerge.session import bind_space

    folder = RunFolder(run)
    history = read_history(run)
    space = bind_space(folder.read_config(), history.started.groups)
    return [
        write_page(history, space.decode, page or folder.views / "report.html"),
        front_png(history, picture or folder.views / "front.png"),
    ]


def _sources(models: Sequence[str]) -> "ModelSources":
    """Of a configuration, or of a base and experts, which are named after their folders."""
    from evomerge.config import read_config
    from evomerge.evaluation import ModelSource, ModelSources, worker_setup

    if len(models) == 1:
        return worker_setup(read_config(Path(models[0]))).models
    base, *paths = models
    experts: dict[str, ModelSource] = {}
    for path in paths:
        name = stem = Path(path).name
        while name in experts:
            name = f"{stem}_{len(experts)}"
        experts[name] = ModelSource(path)
    return ModelSources(ModelSource(base), experts, allow_tokenizer_mismatch=True)


def _conclude(history: History, run: Path) -> None:
    from evomerge.reporting.conclusion import conclude
    from evomerge.reporting.rows import picked, preference_of, title_of
    from evomerge.reporting.terminal import result_tables

    for part in result_tables(history, conclude(history), most=10):
        console.print(part)
    if preference_of(history) is not None and history.front is not None:
        with contextlib.suppress(ConfigError):  # the verdict says that nobody meets its thresholds
            taken = picked(history)
            _print_picked(taken, title_of(taken.trial))
    for note in history.notes:
        if note.startswith("warning"):
            console.print(Text(note, style="yellow"))
    console.print(f"next: evomerge report {run}, evomerge export {run}", markup=False)


def _print_picked(taken: "Picked", title: str) -> None:
    """Whom a preference takes, and what to know about that."""
    console.print(Text.assemble(f"{taken.why}: ", (title, "bold")))
    for remark in taken.remarks:
        console.print(Text(f"- {remark}", style="yellow"))


def _print_json(plain: Any) -> None:
    typer.echo(json.dumps(plain, indent=1, allow_nan=False))
