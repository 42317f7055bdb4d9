"""An inspection as plain rows, as tables for the terminal and as a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from evomerge.datatypes import FloatArray
from evomerge.inspection import TOP, Inspection, Tally
from evomerge.reporting.plots import FONT, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import RenderableType

_TOP = f"top {100 * TOP:.0f} %"
_COLUMNS_OF_PANELS = 4
_OUTSIDE = "outside"


def inspection_rows(inspection: Inspection) -> dict[str, Any]:
    """All figures as plain types; what does not exist (a cosine with nothing) is None."""
    return {
        "experts": list(inspection.experts),
        "total": _tally_row(inspection.total),
        "kinds": {kind: _tally_row(tally) for kind, tally in inspection.by_kind().items()},
        "layers": {
            _layer_name(layer): _tally_row(tally) for layer, tally in inspection.by_layer().items()
        },
        "groups": {
            group.label: {"layer": group.layer, "kind": group.kind, **_tally_row(tally)}
            for group, tally in zip(inspection.groups, inspection.tallies, strict=True)
        },
        "warnings": list(inspection.warnings),
    }


def inspection_tables(inspection: Inspection, *, full: bool = False) -> list[RenderableType]:
    """What was found, to be printed one after the other.

    Args:
        inspection: The figures.
        full: Also every layer and kind for each expert, as the picture shows them.
    """
    parts: list[RenderableType] = [_summary_table(inspection)]
    if len(inspection.experts) > 1:
        total = inspection.total
        parts.append(_matrix_table(inspection, "Cosines of the changes", total.cosines, _cosine))
        title = f"Sign conflicts (below the diagonal: {_TOP})"
        conflicts = np.where(
            np.tri(len(inspection.experts), k=-1, dtype=np.bool_),
            total.top.conflicts,
            total.signs.conflicts,
        )
        parts.append(_matrix_table(inspection, title, conflicts, _percent))
    parts.append(_tallies_table(inspection, "kind", inspection.by_kind()))
    layers = {_layer_name(layer): tally for layer, tally in inspection.by_layer().items()}
    parts.append(_tallies_table(inspection, "layer", layers))
    if full:
        parts += [
            _grid_table(inspection, title, at, text) for title, at, text in _grids(inspection)
        ]
    return parts


def inspection_png(inspection: Inspection, path: Path) -> Path:
    """Heat maps by layer and kind: relative norms of each expert, cosines and sign conflicts.

    Args:
        inspection: The figures.
        path: Where the PNG goes; an older one is replaced.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure(inspection)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    FigureCanvasAgg(figure)
    figure.savefig(partial, format="png")
    os.replace(partial, path)  # noqa: PTH105  (the house's name for an atomic replacement)
    return path


def _tally_row(tally: Tally) -> dict[str, Any]:
    return {
        "parameters": tally.n_parameters,
        "base_norm": tally.base_norm,
        "norms": _plain(tally.norms),
        "relative_norms": _plain(tally.relative),
        "zeros": _plain(tally.zeros),
        "weight_cosines": _plain(tally.weight_cosines),
        "cosines": _plain(tally.cosines),
        "sign_conflict": _finite(tally.signs.conflict),
        "sign_conflicts": _plain(tally.signs.conflicts),
        "top_sign_conflict": _finite(tally.top.conflict),
        "top_sign_conflicts": _plain(tally.top.conflicts),
    }


def _summary_table(inspection: Inspection) -> Group:
    total = inspection.total
    title = f"Changes of {_count(total.n_parameters)} parameters, base norm {total.base_norm:.4g}"
    table = _table()
    table.add_column("expert")
    for heading in ("norm", "of the base's", "left as is", "most changed", "most alike (cosine)"):
        table.add_column(heading, justify="right")
    kinds = inspection.by_kind()
    for k, name in enumerate(inspection.experts):
        most = max(kinds, key=lambda kind: _or_zero(kinds[kind].relative[k]))
        table.add_row(
            Text(name),
            f"{total.norms[k]:.4g}",
            _percent(total.relative[k]),
            _percent(total.zeros[k]),
            f"{most} {_percent(kinds[most].relative[k])}",
            Text(_nearest(inspection, total.cosines, k)),
        )
    return _titled(title, table)


def _nearest(inspection: Inspection, cosines: FloatArray, k: int) -> str:
    """The other expert of the largest cosine."""
    others = {
        name: cosines[k, j]
        for j, name in enumerate(inspection.experts)
        if j != k and np.isfinite(cosines[k, j])
    }
    if not others:
        return "–"
    name = max(others, key=lambda other: others[other])
    return f"{name} {_cosine(others[name])}"


def _matrix_table(
    inspection: Inspection, title: str, matrix: FloatArray, text: Callable[[float], str]
) -> Group:
    table = _table()
    table.add_column("")
    for name in inspection.experts:
        table.add_column(Text(name), justify="right")
    for k, name in enumerate(inspection.experts):
        cells = ["" if j == k else text(matrix[k, j]) for j in range(len(matrix))]
        table.add_row(Text(name), *cells)
    return _titled(title, table)


def _tallies_table(inspection: Inspection, of: str, tallies: dict[str, Tally]) -> Group:
    title = f"By {of}: norms of the changes over the base's, agreement of the experts"
    table = _table()
    table.add_column(of)
    for name in inspection.experts:
        table.add_column(Text(name), justify="right")
    agreement = len(inspection.experts) > 1
    for heading in ("mean cosine", "sign conflict", f"{_TOP} conflict") if agreement else ():
        table.add_column(heading, justify="right")
    for name, tally in tallies.items():
        cells = [_percent(share) for share in tally.relative]
        if agreement:
            cells += [_cosine(tally.mean_cosine), _percent(tally.signs.conflict)]
            cells.append(_percent(tally.top.conflict))
        table.add_row(name, *cells)
    return _titled(title, table)


_Grid = tuple[str, Callable[[Tally], float], Callable[[float], str]]


def _grids(inspection: Inspection) -> list[_Grid]:
    """What is shown for every layer and kind: title, figure of a tally, its text."""

    def relative(k: int) -> Callable[[Tally], float]:
        return lambda tally: float(tally.relative[k])

    grids: list[_Grid] = [
        (f"{name}: norm of the change over the base's", relative(k), _percent)
        for k, name in enumerate(inspection.experts)
    ]
    if len(inspection.experts) > 1:
        grids += [
            ("Mean cosine of the changes", lambda tally: tally.mean_cosine, _cosine),
            ("Sign conflict", lambda tally: tally.signs.conflict, _percent),
            (f"Sign conflict, {_TOP}", lambda tally: tally.top.conflict, _percent),
        ]
    return grids


def _grid(
    inspection: Inspection, figure: Callable[[Tally], float]
) -> tuple[list[str], list[str], FloatArray]:
    """Rows (layers, what lies outside last), columns (kinds) and the figures; NaN where none is."""
    layers = list(inspection.by_layer())
    kinds = list(inspection.by_kind())
    values: FloatArray = np.full((len(layers), len(kinds)), np.nan)
    for group, tally in zip(inspection.groups, inspection.tallies, strict=True):
        values[layers.index(group.layer), kinds.index(group.kind)] = figure(tally)
    return [_layer_name(layer) for layer in layers], kinds, values


def _grid_table(
    inspection: Inspection,
    title: str,
    figure: Callable[[Tally], float],
    text: Callable[[float], str],
) -> Group:
    rows, columns, values = _grid(inspection, figure)
    table = _table()
    table.add_column("layer")
    for column in columns:
        table.add_column(column, justify="right")
    for row, cells in zip(rows, values, strict=True):
        table.add_row(row, *("" if np.isnan(cell) else text(cell) for cell in cells))
    return _titled(title, table)


def _figure(inspection: Inspection) -> Figure:
    from matplotlib.figure import Figure

    grids = _grids(inspection)
    rows, columns, _ = _grid(inspection, grids[0][1])
    n_across = min(_COLUMNS_OF_PANELS, len(grids))
    n_down = -(-len(grids) // n_across)
    width = max(3.0, 0.36 * len(columns) + 1.6)
    height = max(2.2, 0.19 * len(rows) + 1.4)
    figure = Figure(
        figsize=(width * n_across, height * n_down + 0.5), dpi=120, layout="constrained"
    )
    figure.suptitle(
        f"Changes of {', '.join(inspection.experts)} by layer and kind",
        x=0.012,
        ha="left",
        fontweight="bold",
        **FONT | {"fontsize": 12},
    )
    n_experts = len(inspection.experts)
    # One scale for all experts, so that their maps can be compared.
    norms = np.array([_grid(inspection, at)[2] for _, at, _ in grids[:n_experts]])
    largest = float(np.nanmax(norms, initial=0.0)) or 1.0
    for i, (title, at, _) in enumerate(grids):
        axes = figure.add_subplot(n_down, n_across, i + 1)
        values = _grid(inspection, at)[2]
        if i < n_experts:
            _draw(figure, axes, values, title, rows, columns, ("viridis", 0.0, largest))
        elif i == n_experts:
            _draw(figure, axes, values, title, rows, columns, ("RdBu_r", -1.0, 1.0))
        else:
            _draw(figure, axes, values, title, rows, columns, ("magma", 0.0, 1.0))
    return figure


def _draw(
    figure: Figure,
    axes: Axes,
    values: FloatArray,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: tuple[str, float, float],
) -> None:
    colours, low, high = scale
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.set_title(title, loc="left", **FONT)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7, color=INK)
    step = max(1, math.ceil(len(rows) / 24))
    shown = [i for i in range(len(rows)) if i % step == 0 or i == len(rows) - 1]
    axes.set_yticks(shown, [rows[i] for i in shown], fontsize=7, color=INK)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=7, colors=MUTED, length=2)
    bar.outline.set_visible(False)


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _titled(title: str, table: Table) -> Group:
    """A title of its own line: rich wraps that of a table to the table's width."""
    return Group(Text(title, style="bold"), table)


def _layer_name(layer: int | None) -> str:
    return _OUTSIDE if layer is None else str(layer)


def _count(n: int) -> str:
    return f"{n / 1e9:.3g} B" if n >= 1e9 else f"{n / 1e6:.3g} M" if n >= 1e6 else f"{n:,}"


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.3g} %"


def _cosine(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


def _or_zero(value: float) -> float:
    return 0.0 if np.isnan(value) else value


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(values: FloatArray) -> list[Any]:
    """Nested lists with None for NaN."""
    return [_plain(value) if isinstance(value, np.ndarray) else _finite(value) for value in values]
