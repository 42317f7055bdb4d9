"""Rows, tables and the choice of a trial."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from evomerge.datatypes import Direction, Estimate, Objective, Split
from evomerge.errors import ConfigError, RunError
from evomerge.fidelity import Schedule
from evomerge.history import Trial, history_of
from evomerge.pareto import hypervolume
from evomerge.preferences import Preference, Weights
from evomerge.reporting.conclusion import conclude
from evomerge.reporting.rows import hypervolume_growth, mean_estimate
from evomerge.reporting.terminal import (
    baseline_rows,
    baseline_table,
    front_rows,
    front_table,
    pick,
    result_tables,
    score_text,
    status_rows,
    status_table,
)

Runs = Callable[..., Any]


def shown(table: Table) -> str:
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.capture() as capture:
        console.print(table)
    console.file.close()
    return capture.get()


def test_the_terminal_loads_nothing_heavy() -> None:
    code = (
        "import sys, evomerge.reporting.terminal, evomerge.reporting.live\n"
        "heavy = 'torch transformers ray optuna pymoo lm_eval plotly matplotlib jinja2 scipy'\n"
        "print(*(name for name in heavy.split() if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_rows_are_plain_json_and_best_mean_comes_first(run_of: Runs) -> None:
    _, history = run_of()
    rows = front_rows(history)
    assert json.loads(json.dumps([rows, baseline_rows(history), status_rows(history)])) == [
        rows,
        baseline_rows(history),
        status_rows(history),
    ]
    assert {row["trial"] for row in rows} == set(history.front.trials)
    means = [row["mean"] for row in rows]
    assert means == sorted(means, reverse=True)
    assert [row["trial"] for row in rows if row["knee"]] == [pick(history).name]
    first = history.trials[rows[0]["trial"]]
    assert rows[0]["search"]["math"] == {
        "score": first.search["math"].score,
        "standard_error": first.search["math"].standard_error,
        "n_items": 200,
    }
    assert rows[0]["mean"] == mean_estimate(first, history.objectives).score


def test_tables_show_every_score_with_its_standard_error(run_of: Runs) -> None:
    _, history = run_of()
    rows = front_rows(history)
    text = shown(front_table(rows, history.objectives))
    for row in rows:
        for estimate in row["search"].values():
            assert score_text(estimate["score"], estimate["standard_error"]) in text
        for mean in ("mean", "held_out_mean"):
            assert score_text(row[mean], row[f"{mean}_standard_error"]) in text
    assert f"{pick(history).name} ◆" in text
    baselines = shown(baseline_table(baseline_rows(history), history.objectives))
    assert all(name in baselines for name in ("base", "expert:law", "ties", "random_delta"))


def test_tables_leave_held_out_away_while_there_is_none(run_of: Runs) -> None:
    _, history = run_of(held_out=False, finish=False)
    assert "held-out" not in shown(front_table(front_rows(history), history.objectives))


def test_text_of_the_run_is_not_markup(run_of: Runs) -> None:
    _, history = run_of(experts=("[red]x", "[/]", "c", "d"))
    assert "expert:[red]x" in shown(baseline_table(baseline_rows(history), history.objectives))
    assert "[3.1 to 9.4]" in shown(status_table(status_rows(history)))


def test_status_tells_where_the_run_stands(run_of: Runs) -> None:
    _, history = run_of(finish=False, held_out=False, n_pending=2, budget=100)
    values = {row["name"]: row["value"] for row in status_rows(history)}
    assert values["evaluations"] == 60
    assert values["planned"] == 100
    assert values["pending"] == 2
    assert values["failures"] == values["failures: out_of_memory"] == 2
    assert values["front size"] == len(history.front.trials)
    assert values["hypervolume"] == history.front.hypervolume
    assert values["seconds per evaluation: total"] == pytest.approx(2.6)
    assert values["finished"] is None
    assert "60 of 100" in shown(status_table(status_rows(history)))


def test_a_preference_moves_the_pick_along_the_front(run_of: Runs) -> None:
    _, history = run_of()
    for objective in history.objectives:
        picked = pick(history, Preference(rule=Weights({objective.name: 1.0})))
        best = max(history.scored(), key=lambda t: t.search[objective.name].score)
        assert picked.search[objective.name].score == best.search[objective.name].score
    with pytest.raises(ConfigError, match="speed is none: it has math, code, chat"):
        pick(history, Preference(rule=Weights({"speed": 1.0})))
    with pytest.raises(ConfigError):
        pick(history, Preference(rule=Weights({"math": 0.0})))


def test_a_run_without_a_front_has_rows_but_no_pick(synthetic: Any) -> None:
    history = history_of(synthetic().events()[:1])
    assert front_rows(history) == []
    assert baseline_rows(history) == []
    assert {row["name"] for row in status_rows(history)} >= {"evaluations", "hypervolume"}
    with pytest.raises(RunError, match="none yet"):
        pick(history)


def trial_of(search: list[float], held_out: list[float] | None = None) -> Trial:
    estimates = [
        None
        if scores is None
        else {n: Estimate(s, 0.03, 10) for n, s in zip("ab", scores, strict=True)}
        for scores in (search, held_out)
    ]
    return Trial("1", 0, "", u=(0.5,), search=estimates[0], held_out=estimates[1])


def test_mean_counts_minimised_objectives_against_the_others() -> None:
    up, down = Direction.MAXIMIZE, Direction.MINIMIZE
    trial = trial_of([0.6, 0.2])

    def mean(*directions: Direction) -> float:
        objectives = [Objective(n, d) for n, d in zip("ab", directions, strict=True)]
        return mean_estimate(trial, objectives, Split.SEARCH).score

    assert mean(up, up) == pytest.approx(0.4)
    assert mean(down, down) == pytest.approx(0.4)
    assert mean(up, down) == pytest.approx(0.2)
    estimate = mean_estimate(trial, [Objective("a"), Objective("b")])
    assert estimate.standard_error == pytest.approx(math.sqrt(2 * 0.03**2) / 2)


def test_hypervolumes_of_a_moving_reference_are_measured_again(run_of: Runs) -> None:
    _, still = run_of(held_out=False)
    assert hypervolume_growth(still) == [(f.n_evaluations, f.hypervolume) for f in still.fronts]
    _, moving = run_of(held_out=False, moving_reference=True)
    growth = hypervolume_growth(moving)
    assert len(growth) == len(moving.fronts)
    volumes = [volume for _, volume in growth]
    assert np.all(np.diff(volumes) >= 0)
    first = moving.fronts[0]
    losses = moving.losses([moving.trials[n] for n in first.trials])
    assert volumes[0] == pytest.approx(hypervolume(losses, moving.fronts[-1].reference))


def test_a_long_front_shows_its_best_rows_and_says_so(run_of: Runs) -> None:
    _, history = run_of()
    rows = front_rows(history)
    table = front_table(rows, history.objectives, most=3)
    assert table.row_count == 3
    assert f"({len(rows)} trials" in str(table.title)
    assert "best 3 in mean" in str(table.title)


def test_results_end_with_a_verdict_and_say_how_sure_the_front_is(run_of: Runs) -> None:
    _, history = run_of(schedule=Schedule(first=16, growth=3.0, keep=0.4), n_items=(400, 400))
    conclusion = conclude(history)
    parts = result_tables(history, conclusion)
    assert str(parts[-1]) == conclusion.verdict.sentence
    text = "".join(shown(part) for part in parts)
    probabilities = conclusion.confidence.probabilities
    for row in front_rows(history, probabilities):
        assert row["on_front"] == probabilities[row["trial"]]
        assert f"{100 * row['on_front']:.0f} %" in text
    assert conclusion.confidence.caption in text
    assert "ranking on a part of the items by fitness.estimators:MeanEstimator" in text
    assert "Optimism of selection" in text
    # baselines answered different numbers of items, so these are shown
    assert {row["n_items"] for row in baseline_rows(history)} >= {3 * 48}
    assert " items" in shown(parts[3])
