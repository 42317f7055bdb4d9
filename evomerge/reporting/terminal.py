"""Tables for the terminal; each is made of the plain rows that `--json` prints.

Loads rich and numpy, nothing heavier.
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from evomerge.datatypes import Direction, Objective
from evomerge.reporting.rows import Row, baseline_rows, front_rows, pick, status_rows

__all__ = [
    "baseline_rows",
    "baseline_table",
    "front_rows",
    "front_table",
    "pick",
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
            case "planned":
                continue
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


def _scores_table(rows: Sequence[Row], objectives: Sequence[Objective], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("trial", no_wrap=True)
    with_held_out = any(row["held_out"] for row in rows)
    for heading in [*map(_heading, objectives), "mean"]:
        table.add_column(Text(heading), justify="right")
    if with_held_out:
        table.add_column("held-out mean", justify="right", style="bold")
    for row in rows:
        cells: list[str] = []
        cells += [_cell(row, objective.name) for objective in objectives]
        cells.append(score_text(row["mean"], row["mean_standard_error"]))
        if with_held_out:
            cells.append(score_text(row["held_out_mean"], row["held_out_mean_standard_error"]))
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
