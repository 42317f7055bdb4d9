"""Hypervolume against evaluations: one small panel for each problem, bands of 95 %."""

from pathlib import Path

import numpy as np
from statistics_of import STEP, Curves, interval


def draw(curves: Curves, path: Path, ours: str | None = None) -> None:
    """Write a PNG; `ours` is drawn thick and black."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    problems = sorted({problem for problem, _ in curves})
    samplers = sorted({sampler for _, sampler in curves})
    n_columns = min(4, len(problems))
    n_rows = -(-len(problems) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(3.4 * n_columns, 2.8 * n_rows),
        squeeze=False,
        layout="constrained",
    )
    colours = plt.get_cmap("tab20")
    for axis, problem in zip(axes.flat, problems, strict=False):
        for i, sampler in enumerate(samplers):
            seeds = curves.get((problem, sampler))
            if not seeds:
                continue
            shortest = min(map(len, seeds.values()))
            values = np.array([curve[:shortest] for curve in seeds.values()])
            x = STEP * np.arange(1, shortest + 1)
            mean = values.mean(axis=0)
            style = {"color": "black", "linewidth": 2.0} if sampler == ours else {}
            style = style or {"color": colours(i % 20), "linewidth": 1.1}
            axis.plot(x, mean, label=sampler, **style)
            if len(values) > 1:
                half = np.array([interval(column) for column in values.T])
                axis.fill_between(x, mean - half, mean + half, alpha=0.12, color=style["color"])
        axis.set_title(problem, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25, linewidth=0.5)
    for axis in axes.flat[len(problems) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("evaluations", fontsize=8)
    figure.supylabel("true hypervolume / best known", fontsize=9)
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
