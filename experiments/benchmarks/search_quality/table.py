"""Tables and a plot of the bench, in markdown.

    python experiments/benchmarks/search_quality/table.py --ours surrogate \
        --plot docs/search_quality.png

Relative true hypervolume at 30, 60, 100 and 150 evaluations: mean and half of the 95 % interval
over seeds; then ours against the best other of each cell, paired.
"""

import argparse
from pathlib import Path

import numpy as np
from statistics_of import Curves, at, curves_of, difference, interval, reached

HERE = Path(__file__).parent
AT = (30, 60, 100, 150)


def main() -> None:
    """Print, and draw where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--problems", nargs="+")
    parser.add_argument("--samplers", nargs="+", help="in the plot and the tables; all by default")
    parser.add_argument("--ours")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    curves = {
        (problem, sampler): seeds
        for (problem, sampler), seeds in curves_of(given.results).items()
        if (not given.problems or problem in given.problems)
        and (not given.samplers or sampler in given.samplers)
    }
    parts = [values(curves)]
    if given.ours:
        parts.append(against(curves, given.ours))
    text = "\n\n".join(parts) + "\n"
    if given.output:
        given.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    if given.plot:
        from plot import draw

        draw(curves, given.plot, given.ours)


def values(curves: Curves) -> str:
    """One row for each problem and sampler, best at 100 evaluations first."""
    head = " | ".join(f"at {n}" for n in AT)
    lines = [f"| problem | sampler | seeds | {head} |", "|---|---|---|" + "---|" * len(AT)]
    for problem in problems_of(curves):
        rows = []
        for sampler in samplers_of(curves, problem):
            seeds = curves[problem, sampler]
            numbers = [np.array(list(at(seeds, n).values())) for n in AT]
            cells = " | ".join(
                f"{short(v.mean())} ± {short(interval(v))}" if len(v) else "" for v in numbers
            )
            rank = -numbers[2].mean() if len(numbers[2]) else 0.0
            rows.append((rank, f"| {problem} | {sampler} | {len(seeds)} | {cells} |"))
        lines += [row for _, row in sorted(rows)]
    return "\n".join(lines)


def against(curves: Curves, ours: str) -> str:
    """Ours minus the best other (by its mean on common seeds) and Sobol; when ours catches up."""
    lines = [
        "| problem | evaluations | best other | ours - best other | ours - sobol | seeds |"
        " ours has the best other's value at 100 after |",
        "|---|---|---|---|---|---|---|",
    ]
    for problem in problems_of(curves):
        if (problem, ours) not in curves:
            continue
        others = [sampler for sampler in samplers_of(curves, problem) if sampler != ours]
        for n in AT:
            mine = at(curves[problem, ours], n)
            theirs = {sampler: at(curves[problem, sampler], n) for sampler in others}
            # who lacks half of our seeds is no fair rival yet
            gaps = {
                sampler: gap
                for sampler, known in theirs.items()
                if len(gap := difference(mine, known)) > len(mine) / 2
            }
            if not gaps:
                continue
            best = min(gaps, key=lambda sampler: gaps[sampler].mean())
            sobol = signed(gaps["sobol"]) if "sobol" in gaps else ""
            after = ""
            if n == 100:
                common = curves[problem, ours].keys() & curves[problem, best].keys()
                level = np.mean([theirs[best][s] for s in common if s in theirs[best]])
                ours_there = {s: curves[problem, ours][s] for s in common}
                after = f"{reached(ours_there, float(level)):.0f}"
            lines.append(
                f"| {problem} | {n} | {best} | {signed(gaps[best])} | {sobol} "
                f"| {len(gaps[best])} | {after} |"
            )
    return "\n".join(lines)


def problems_of(curves: Curves) -> list[str]:
    """In the order of names."""
    return sorted({problem for problem, _ in curves})


def samplers_of(curves: Curves, problem: str) -> list[str]:
    """With a result on a problem, by name."""
    return sorted(sampler for known, sampler in curves if known == problem)


def short(value: float) -> str:
    """Three decimals without the zero."""
    return f"{value:.3f}".replace("0.", ".", 1) if np.isfinite(value) else "?"


def signed(gap: np.ndarray) -> str:
    """A mean difference with half of its interval."""
    return f"{'+' if gap.mean() >= 0 else '-'}{short(abs(gap.mean()))} ± {short(interval(gap))}"


if __name__ == "__main__":
    main()
