"""Tables for the terminal; each is made of the plain rows that `--json` prints.

Loads rich and numpy, nothing heavier.
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.datatypes import Direction, Objective
from evomerge.history import History
from evomerge.reporting.conclusion import Conclusion, Difference
from evomerge.reporting.rows import (
    Row,
    baseline_rows,
    estimators_text,
    front_rows,
    pick,
    status_rows,
)

__all__ = [
    "baseline_rows",
    "baseline_table",
    "front_rows",
    "front_table",
    "optimism_table",
    "pick",
    "result_tables",
    "status_rows",
    "status_table",
]

KNEE = "◆"


def front_table(
    rows: Sequence[Row], objectives: Sequence[Objective], most: int | None = None
) -> Table:
    """The front as a table: search scores ± standard error, means in both splits, the knee marked.

    At most `most` rows, the best in mean; held-out scores by objective are in the rows themselves.
    """
    title = f"Pareto front ({len(rows)} trials, {KNEE} knee)"
    if most is not None and len(rows) > most:
        title += f": the best {most} in mean"
    return _scores_table(rows[:most], objectives, title)


def result_tables(
    history: History, conclusion: Conclusion, most: int | None = None
) -> list[RenderableType]:
    """What a run has found, to be printed one after the other; the verdict is the last line."""
    confidence = conclusion.confidence
    on_front = None if confidence is None else confidence.probabilities
    front, objectives = front_rows(history, on_front), history.objectives
    parts: list[RenderableType] = [front_table(front, objectives, most)]
    if history.front is not None and history.front.is_provisional:
        parts.append(Text("provisional: scores rest on a part of the items", style="yellow"))
    if confidence is not None:
        parts.append(Text(confidence.caption, style="dim"))
    parts.append(Text(estimators_text(history), style="dim"))
    parts.append(baseline_table(baseline_rows(history, on_front), objectives))
    if conclusion.optimism:
        parts.append(optimism_table(conclusion.optimism))
    style = "bold green" if conclusion.verdict.is_gain else "bold"
    parts.append(Text(conclusion.verdict.sentence, style=style))
    return parts


def optimism_table(rows: Sequence[Row]) -> Table:
    """Search minus held-out scores, oriented so that above 0 flatters, ± standard error."""
    table = Table(
        title="Optimism of selection: search minus held-out, above 0 flatters",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("objective")
    for heading in ("chosen", "front", "baselines", "front beyond baselines"):
        table.add_column(heading, justify="right")
    for row in rows:
        keys = ("chosen", "front", "baselines", "front_beyond_baselines")
        name = "mean" if row["objective"] is None else row["objective"]
        table.add_row(Text(name), *(difference_text(row[key]) for key in keys))
    return table


def difference_text(row: Row | None) -> str:
    """A difference as plain row, `+0.064 ±0.008`, or a dash."""
    return "–" if row is None else Difference(row["value"], row["standard_error"]).text()


def baseline_table(rows: Sequence[Row], objectives: Sequence[Objective]) -> Table:
    """The baselines as a table, in the shape of the front's."""
    return _scores_table(rows, objectives, "Baselines")


def status_table(rows: Sequence[Row]) -> Table:
    """Where the run stands, two columns."""
    values = {row["name"]: row["value"] for row in rows}
    table = Table(title="Run", title_justify="left", show_header=False, box=SIMPLE_HEAD)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for row in rows:
        match row["name"]:
            case "planned" | "share of full evaluation":
                continue
            case "search items answered":
                share = values["share of full evaluation"]
                shown = f"{row['value']:,}"
                shown += "" if share is None else f" ({100 * share:.3g} % of full evaluation)"
            case "evaluations":
                shown = f"{row['value']} of {values['planned']}"
            case "finished":
                shown = row["value"] or "not yet"
            case _:
                shown = _value(row["value"], row["unit"])
        # Text, not markup: notes and reasons may hold brackets
        table.add_row(row["name"], Text(shown))
    return table


def score_text(score: float | None, standard_error: float | None) -> str:
    """A score with its standard error, `0.613 ±0.011`, or a dash."""
    if score is None or standard_error is None:
        return "–"
    decimals = 3 if abs(score) < 10 else 2 if abs(score) < 100 else 1
    return f"{score:.{decimals}f} ±{standard_error:.{decimals}f}"


def percent_text(share: float | None) -> str:
    """A probability in per cent, or a dash."""
    return "–" if share is None else f"{100 * share:.0f} %"


def _scores_table(rows: Sequence[Row], objectives: Sequence[Objective], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("trial", no_wrap=True)
    with_held_out = any(row["held_out"] for row in rows)
    for heading in [*map(_heading, objectives), "mean"]:
        table.add_column(Text(heading), justify="right")
    if with_held_out:
        table.add_column("held-out mean", justify="right", style="bold")
    with_confidence = any(row["on_front"] is not None for row in rows)
    if with_confidence:
        table.add_column("on front", justify="right")
    # one number for all says nothing
    with_items = len({row["n_items"] for row in rows if row["n_items"] is not None}) > 1
    if with_items:
        table.add_column("items", justify="right")
    for row in rows:
        cells: list[str] = []
        cells += [_cell(row, objective.name) for objective in objectives]
        cells.append(score_text(row["mean"], row["mean_standard_error"]))
        if with_held_out:
            cells.append(score_text(row["held_out_mean"], row["held_out_mean_standard_error"]))
        if with_confidence:
            cells.append(percent_text(row["on_front"]))
        if with_items:
            cells.append("–" if row["n_items"] is None else f"{row['n_items']}")
        name = f"{row['trial']} {KNEE}" if row["knee"] else row["trial"]
        if row["failure"]:
            name += f" (failed: {row['failure']})"
        table.add_row(Text(name), *cells, style="bold" if row["knee"] else None)
    return table


def _heading(objective: Objective) -> str:
    return f"{objective.name} {'↑' if objective.direction is Direction.MAXIMIZE else '↓'}"


def _cell(row: Row, objective: str) -> str:
    if row["search"] is None:
        return "–"
    estimate = row["search"][objective]
    return score_text(estimate["score"], estimate["standard_error"])


def _value(value: object, unit: str | None) -> str:
    if value is None:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}" if unit else text
