"""The front as a picture: drawn on objects of its own, so that no global state is touched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.datatypes import Direction, FloatArray, Objective, Split
from evomerge.history import History, Trial
from evomerge.reporting.rows import (
    baseline_trials,
    front_trials,
    hypervolume_growth,
    is_partial,
    knee_of,
    mean_estimate,
    n_provisional,
    title_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

MOST_OBJECTIVES = 4
"""Pairs of more objectives are too small to read: the first ones are drawn."""

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e7e9ee"
DOMINATED, BASELINE, CURVE = "#b4bccb", "#d9480f", "#3b5bdb"
FONT: dict[str, Any] = {"fontsize": 9, "color": INK, "parse_math": False}

MOST_NAMES = 12
"""Baselines that are all named; of more, only the landmarks and the experts are."""

LANDMARKS = ("base", "uniform_average", "random_delta")


def front_png(history: History, path: Path) -> Path:
    """Draw all trials, the front with its standard errors, the baselines and the hypervolume.

    Two objectives share one plane; three or four are shown in every pair; one over evaluations.

    Args:
        history: A run, finished or not.
        path: Where the PNG goes; an older one is replaced.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure(history)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    FigureCanvasAgg(figure)
    figure.savefig(partial, format="png")
    os.replace(partial, path)  # noqa: PTH105  (the house's name for an atomic replacement)
    return path


def _figure(history: History) -> Figure:
    from matplotlib.figure import Figure

    objectives = history.objectives[:MOST_OBJECTIVES]
    n = len(objectives)
    if n <= 2:
        figure = Figure(figsize=(10, 5.4), dpi=150, layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(2.3, 1), height_ratios=(1.25, 1))
        panels = [(figure.add_subplot(grid[:, 0]), objectives[0], objectives[-1])]
        growth, key = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    else:
        side = 4.0 if n == 3 else 3.5
        figure = Figure(figsize=(side * (n - 1) + 2, side * (n - 1)), dpi=150, layout="constrained")
        grid = figure.add_gridspec(n - 1, n - 1)
        panels = [
            (figure.add_subplot(grid[row, column]), objectives[column], objectives[row + 1])
            for row in range(n - 1)
            for column in range(row + 1)
        ]
        corner = grid[0, n - 2].subgridspec(2, 1, height_ratios=(1.25, 1))
        growth, key = figure.add_subplot(corner[0]), figure.add_subplot(corner[1])
    figure.suptitle(
        _title(history), x=0.012, ha="left", fontweight="bold", **FONT | {"fontsize": 12}
    )
    marks = None
    for axes, x, y in panels:
        marks = _draw_pair(axes, history, x, y) or marks
    _draw_growth(growth, history)
    _draw_key(key, marks, history)
    # labels need the final size of every panel
    figure.draw_without_rendering()
    for axes, x, y in panels:
        _label_points(axes, history, x, y)
    return figure


def _title(history: History) -> str:
    front = history.front
    n_front = len(front.trials) if front else 0
    left_out = len(history.objectives) - MOST_OBJECTIVES
    shown = f", {left_out} more objectives not drawn" if left_out > 0 else ""
    return (
        f"Merging {', '.join(history.started.experts)}: {history.n_evaluations} evaluations, "
        f"front of {n_front}{shown}"
    )


def _draw_pair(axes: Axes, history: History, x: Objective, y: Objective) -> Any:
    """Draw the plane of two objectives; returns the front's points, which carry the colours."""
    _dress(axes)
    front = front_trials(history)
    candidates = [t for t in front if not t.is_baseline]
    dominated = [
        t
        for t in history.scored()
        if not t.is_baseline and t.name not in {c.name for c in candidates}
    ]
    whole = [t for t in dominated if not is_partial(history, t)]
    points = _points(history, whole, x, y)
    axes.scatter(points[:, 0], points[:, 1], s=13, c=DOMINATED, linewidths=0, alpha=0.75, zorder=2)
    partial = [t for t in dominated if is_partial(history, t)]
    points = _points(history, partial, x, y)
    hollow: dict[str, Any] = {"facecolors": "none", "edgecolors": DOMINATED, "linewidths": 0.7}
    axes.scatter(points[:, 0], points[:, 1], s=9, alpha=0.75, zorder=2, **hollow)
    if len(history.objectives) == 2 and front:
        _draw_staircase(axes, history, front, x, y)
    baselines = [t for t in baseline_trials(history) if t.search is not None]
    measured = [*candidates, *baselines]
    points = _points(history, measured, x, y)
    axes.errorbar(
        points[:, 0],
        points[:, 1],
        xerr=None if x is y else _errors(measured, x),
        yerr=_errors(measured, y),
        fmt="none",
        ecolor=MUTED,
        elinewidth=0.7,
        alpha=0.45,
        zorder=3,
    )
    marks = None
    if candidates:
        points = _points(history, candidates, x, y)
        marks = axes.scatter(
            points[:, 0],
            points[:, 1],
            s=46,
            c=[_mean(t, history.objectives) for t in candidates],
            cmap="viridis",
            edgecolors="white",
            linewidths=0.8,
            zorder=5,
        )
    if (knee := knee_of(history)) is not None:
        point = _points(history, [history.trials[knee]], x, y)
        axes.scatter(
            point[:, 0],
            point[:, 1],
            s=170,
            facecolors="none",
            edgecolors=INK,
            linewidths=1.3,
            zorder=6,
        )
    for is_hollow in (False, True):
        of = [t for t in baselines if is_partial(history, t) is is_hollow]
        points = _points(history, of, x, y)
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=28 if is_hollow else 42,
            c="white" if is_hollow else BASELINE,
            marker="D",
            edgecolors=BASELINE if is_hollow else "white",
            linewidths=1.1 if is_hollow else 0.8,
            zorder=4,
        )
    axes.margins(0.09)
    axes.set_xlabel("evaluations" if x is y else _axis_title(x), **FONT)
    axes.set_ylabel(_axis_title(y), **FONT)
    return marks


def _draw_staircase(
    axes: Axes, history: History, front: Sequence[Trial], x: Objective, y: Objective
) -> None:
    """The border of what the front dominates, between its own extremes."""
    corners = _points(history, front, x, y)
    corners = corners[np.argsort(corners[:, 0], kind="stable")]
    if x.direction is Direction.MINIMIZE:
        corners = corners[::-1]
    steps = [corners[0]]
    for here, there in pairwise(corners):
        # towards better x, worse y: y changes where the better point of y ends
        steps += [np.array([here[0], there[1]]), there]
    axes.plot(*np.array(steps).T, color=CURVE, linewidth=1.4, alpha=0.85, zorder=3)


def _draw_growth(axes: Axes, history: History) -> None:
    _dress(axes)
    growth = hypervolume_growth(history)
    if growth:
        growth.append((max(history.n_evaluations, growth[-1][0]), growth[-1][1]))
        # provisional volumes may fall: they are no part of the curve
        n = n_provisional(history)
        has_final = n < len(growth) - 1
        provisional, final = (growth[:n], growth[n:]) if has_final else (growth, [])
        if n:
            evaluations, volumes = np.array(provisional).T
            axes.plot(
                evaluations,
                volumes,
                drawstyle="steps-post",
                color=MUTED,
                linewidth=1.2,
                linestyle=":",
            )
        if final:
            evaluations, volumes = np.array(final).T
            marker = "o" if n else None
            axes.plot(
                evaluations,
                volumes,
                drawstyle="steps-post",
                color=CURVE,
                linewidth=1.8,
                marker=marker,
            )
            low, _ = axes.get_ylim()
            axes.fill_between(evaluations, volumes, low, step="post", color=CURVE, alpha=0.08)
            axes.set_ylim(bottom=low)
        axes.annotate(
            f"{growth[-1][1]:.3g}" if has_final else f"{growth[-1][1]:.3g}, provisional",
            growth[-1],
            xytext=(0, 5),
            textcoords="offset points",
            ha="right",
            annotation_clip=False,
            **FONT,
        )
    axes.set_xlabel("evaluations", **FONT)
    title = "hypervolume (dotted: provisional)" if n_provisional(history) else "hypervolume"
    axes.set_title(title, loc="left", **FONT)


def _draw_key(axes: Axes, marks: Any, history: History) -> None:
    from matplotlib.lines import Line2D

    axes.axis("off")

    def mark(label: str, marker: str, colour: str, **options: Any) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, color=colour, label=label, **options)

    partial = []
    if any(is_partial(history, t) for t in history.scored()):
        label = "hollow: on a part of the items"
        partial = [mark(label, "o", DOMINATED, markersize=3, markerfacecolor="none")]
    axes.legend(
        handles=[
            mark("front, ± standard error", "o", "#21918c", markersize=7),
            mark("its knee", "o", INK, markersize=11, markerfacecolor="none"),
            mark("baseline", "D", BASELINE, markersize=6),
            mark("dominated", "o", DOMINATED, markersize=4),
            *partial,
        ],
        loc="upper left",
        borderaxespad=0,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        labelspacing=0.25 if partial else 0.5,  # five lines above the colour bar
    )
    values = None if marks is None else marks.get_array()
    if values is not None and values.max() > values.min():
        bar = axes.inset_axes((0.02, 0.0, 0.75, 0.06))
        colours = axes.figure.colorbar(marks, cax=bar, orientation="horizontal")
        colours.outline.set_visible(False)
        bar.tick_params(labelsize=8, colors=MUTED, length=2)
        bar.xaxis.set_major_locator(_few_ticks(4))
        bar.set_title(f"mean of {len(history.objectives)} objectives", loc="left", **FONT)


def _label_points(axes: Axes, history: History, x: Objective, y: Objective) -> None:
    """Name baselines and knee where there is room: best first, then farther away with a line."""
    named = _worth_naming(history)
    colours = {t.name: BASELINE for t in named}
    knee = knee_of(history)
    if knee is not None and knee not in colours:
        named.append(history.trials[knee])
        colours[knee] = INK
    pixels = axes.transData.transform(_points(history, named, x, y))
    every = axes.transData.transform(_points(history, history.scored(), x, y))
    front = axes.transData.transform(_points(history, front_trials(history), x, y))
    obstacles = np.concatenate([every, front, front, pixels, pixels, pixels])
    border = axes.get_window_extent()
    taken: list[Bbox] = []
    scale = axes.figure.dpi / 72
    for trial, pixel in zip(named, pixels, strict=True):
        text = axes.annotate(
            title_of(trial),
            pixel,
            xycoords="figure pixels",
            textcoords="offset points",
            xytext=(0, 0),
            fontsize=8,
            color=colours[trial.name],
            parse_math=False,
            zorder=8,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.7, "lw": 0},
        )
        size = text.get_window_extent()
        nearest = 15.0 if trial.name == knee else 7.0
        best = min(
            _offsets(nearest),
            key=lambda o: _crowding(
                _box(pixel, o, size.width, size.height, scale), o, obstacles, taken, border
            ),
        )
        box = _box(pixel, best, size.width, size.height, scale)
        taken.append(box)
        text.set_position(((box.x0 - pixel[0]) / scale, (box.y0 - pixel[1]) / scale))
        if best[2] > nearest:
            axes.annotate(
                "",
                xy=pixel,
                xycoords="figure pixels",
                xytext=(
                    float(np.clip(pixel[0], box.x0, box.x1)),
                    float(np.clip(pixel[1], box.y0, box.y1)),
                ),
                textcoords="figure pixels",
                arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkB": 3},
                zorder=7,
            )


def _worth_naming(history: History) -> list[Trial]:
    """The scored baselines; of many, those that everybody looks for."""
    named = [t for t in baseline_trials(history) if t.search is not None]
    if len(named) <= MOST_NAMES:
        return named
    return [t for t in named if t.name in LANDMARKS or t.name.startswith("expert:")]


def _offsets(nearest: float) -> list[tuple[float, float, float]]:
    """Directions and distances (points) in which a label may sit, nearest first."""
    angles = np.deg2rad([0, 180, 45, 135, -45, -135, 90, -90])
    return [
        (float(np.cos(angle)), float(np.sin(angle)), float(distance))
        for distance in (nearest, nearest + 10, nearest + 22, nearest + 36, nearest + 54)
        for angle in angles
    ]


def _box(
    pixel: FloatArray, offset: tuple[float, float, float], width: float, height: float, scale: float
) -> Bbox:
    """Where a label lands that hangs on a point in some direction, in pixels."""
    from matplotlib.transforms import Bbox

    towards_x, towards_y, distance = offset
    x = pixel[0] + towards_x * (distance * scale + width / 2) - width / 2
    y = pixel[1] + towards_y * (distance * scale + height / 2) - height / 2
    return Bbox.from_bounds(x, y, width, height)


def _crowding(
    box: Bbox,
    offset: tuple[float, float, float],
    obstacles: FloatArray,
    taken: Sequence[Bbox],
    border: Bbox,
) -> float:
    """How bad a place is: other labels worst, then the border, then points, then distance."""
    inside = (
        (obstacles[:, 0] > box.x0 - 7)
        & (obstacles[:, 0] < box.x1 + 7)
        & (obstacles[:, 1] > box.y0 - 7)
        & (obstacles[:, 1] < box.y1 + 7)
    )
    out = max(border.x0 - box.x0, box.x1 - border.x1, border.y0 - box.y0, box.y1 - border.y1, 0)
    overlaps = sum(box.overlaps(other) for other in taken)
    return 1000.0 * overlaps + (200.0 if out > 0 else 0.0) + 12.0 * float(inside.sum()) + offset[2]


def _points(history: History, trials: Sequence[Trial], x: Objective, y: Objective) -> FloatArray:
    """Search scores in the plane, shape `(n_trials, 2)`; with one objective x is the order."""
    if x is y:
        order = {t.name: i + 1 for i, t in enumerate(history.scored())}
        pairs = [(float(order[t.name]), _score(t, y)) for t in trials]
    else:
        pairs = [(_score(t, x), _score(t, y)) for t in trials]
    return np.array(pairs, dtype=np.float64).reshape(len(trials), 2)


def _score(trial: Trial, objective: Objective) -> float:
    assert trial.search is not None  # only scored trials are drawn
    return trial.search[objective.name].score


def _errors(trials: Sequence[Trial], objective: Objective) -> list[float]:
    return [t.search[objective.name].standard_error for t in trials if t.search is not None]


def _mean(trial: Trial, objectives: Sequence[Objective]) -> float:
    estimate = mean_estimate(trial, objectives, Split.SEARCH)
    assert estimate is not None  # trials of a front have scores
    return estimate.score


def _axis_title(objective: Objective) -> str:
    better = "more" if objective.direction is Direction.MAXIMIZE else "less"
    return f"{objective.name} ({better} is better)"


def _dress(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
        axes.spines[side].set_linewidth(0.6)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED, length=3)


def _few_ticks(n: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(n)
