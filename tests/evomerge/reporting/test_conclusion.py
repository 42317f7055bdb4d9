"""What a report claims: probabilities of the front, optimism, and the verdict."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Direction, Objective, Split, Statistic
from evomerge.errors import ConfigError
from evomerge.fidelity import Schedule
from evomerge.history import History, history_of
from evomerge.preferences import parse_preference
from evomerge.reporting.conclusion import conclude, front_confidence, optimism_rows, verdict_of
from evomerge.reporting.rows import (
    baseline_trials,
    best_in_mean,
    front_trials,
    hypervolume_growth,
    is_partial,
    n_provisional,
    picked,
    schedule_text,
    share_of_full,
    status_rows,
)

SCHEDULE = Schedule(first=16, growth=3.0, keep=0.4, contest=12)
MIXED = (Objective("math"), Objective("drift", Direction.MINIMIZE), Objective("chat"))

Runs = Callable[..., Any]


@pytest.fixture(scope="module")
def noise_verdicts() -> list[tuple[bool | None, float]]:
    """Of runs in which every merge is equally good."""
    from tests.evomerge.reporting.conftest import Synthetic

    found = []
    for seed in range(100):
        problem = Synthetic(
            is_noise=True, seed=seed, n_evaluations=35, n_layers=1, n_items=(60, 120)
        )
        verdict = verdict_of(history_of(problem.events()))
        assert verdict.is_gain is not None
        found.append((verdict.is_gain, verdict.difference.value if verdict.difference else 0.0))
    return found


def test_over_pure_noise_no_gain_is_claimed(noise_verdicts: Any) -> None:
    assert sum(is_gain for is_gain, _ in noise_verdicts) <= 4  # of 100; 2 are to be expected
    # search scores chose, held-out scores judge: no bias in favour of the choice
    assert abs(np.mean([value for _, value in noise_verdicts])) < 0.01


def test_a_real_gain_is_claimed_with_its_error(run_of: Runs) -> None:
    _, history = run_of(n_items=(400, 400), n_evaluations=100, budget=100, schedule=SCHEDULE)
    verdict = verdict_of(history)
    chosen = best_in_mean(front_trials(history), history.objectives)
    rival = best_in_mean(baseline_trials(history), history.objectives)
    assert (verdict.chosen, verdict.baseline) == (chosen.name, rival.name)
    a, b = history.losses([chosen, rival], Split.HELD_OUT).mean(axis=1)
    assert verdict.is_gain
    assert verdict.difference.value == pytest.approx(b - a)
    assert 0 < verdict.difference.standard_error < 0.05
    assert verdict.sentence.startswith("gain over the best baseline (uniform average) on held-out")
    assert verdict.difference.text() in verdict.sentence
    assert set(verdict.by_objective) == {"math", "code", "chat"}


def test_objectives_of_other_directions_are_judged_one_by_one(run_of: Runs) -> None:
    _, history = run_of(objectives=MIXED)
    verdict = verdict_of(history)
    assert "read them one by one: math" in verdict.sentence
    assert "drift" in verdict.sentence
    chosen, rival = (history.trials[n].held_out for n in (verdict.chosen, verdict.baseline))
    gain = rival["drift"].score - chosen["drift"].score  # less is better
    assert verdict.by_objective["drift"].value == pytest.approx(gain)


def test_without_held_out_answers_there_is_no_verdict(run_of: Runs) -> None:
    _, history = run_of(held_out=False, finish=False)
    found = conclude(history)
    assert found.verdict.sentence.startswith("no verdict yet: held-out items are answered when")
    assert found.verdict.is_gain is None
    assert found.optimism == []
    assert found.confidence.split is Split.SEARCH


@pytest.mark.parametrize("n_events", [1, 9, 30, 60])
@pytest.mark.parametrize("schedule", [None, SCHEDULE])
def test_a_run_that_has_just_begun_concludes_nothing(
    synthetic: Any, n_events: int, schedule: Schedule | None
) -> None:
    history = history_of(synthetic(schedule=schedule).events()[:n_events])
    assert conclude(history).verdict.is_gain is None
    json.dumps([conclude(history).verdict.row(), status_rows(history)])


def test_probabilities_come_from_held_out_items_of_all_who_answered_them(run_of: Runs) -> None:
    _, history = run_of()
    found = front_confidence(history)
    assert found.split is Split.HELD_OUT
    assert set(found.probabilities) == {t.name for t in history.scored(Split.HELD_OUT)}
    assert all(0 <= share <= 1 for share in found.probabilities.values())
    assert found.probabilities["random_delta"] < 0.05
    assert max(found.probabilities[name] for name in history.front.trials) > 0.9
    assert front_confidence(history) == found


def test_scores_from_different_items_are_no_pairs(synthetic: Any) -> None:
    problem = synthetic(schedule=SCHEDULE, held_out=False, finish=False)
    events = problem.events()
    first = next(i for i, e in enumerate(events) if e["event"] == "front")
    history = history_of(events[: first + 40])
    assert history.front.is_provisional
    found = front_confidence(history)
    assert not found.is_paired
    assert set(history.front.trials) <= set(found.probabilities)


def test_optimism_is_search_minus_held_out_with_the_error_of_shared_items(run_of: Runs) -> None:
    _, history = run_of(objectives=MIXED)
    rows = {row["objective"]: row for row in optimism_rows(history)}
    candidates = [t for t in front_trials(history) if not t.is_baseline]
    for objective in history.objectives:
        gaps = [
            objective.loss(t.held_out[objective.name].score)
            - objective.loss(t.search[objective.name].score)
            for t in candidates
        ]
        assert rows[objective.name]["front"]["value"] == pytest.approx(np.mean(gaps))
        # items that are hard for all do not average away, so no division by the root of trials
        single = max(t.search[objective.name].standard_error for t in candidates)
        assert rows[objective.name]["front"]["standard_error"] > single / 2
    mean = np.mean([rows[o.name]["chosen"]["value"] for o in history.objectives])
    assert rows[None]["chosen"]["value"] == pytest.approx(mean)
    # paired by items: what is common to front and baselines cancels
    beyond, alone = rows[None]["front_beyond_baselines"], rows[None]["front"]
    assert beyond["standard_error"] < alone["standard_error"]


def test_selection_from_noise_is_seen_to_flatter(synthetic: Any) -> None:
    gaps = []
    for seed in range(10):
        problem = synthetic(is_noise=True, seed=seed, n_items=(40, 120), n_layers=1)
        rows = optimism_rows(history_of(problem.events()))
        gaps.append(rows[-1]["chosen_beyond_baselines"]["value"])
    assert np.mean(gaps) > 0.03


def test_fidelity_is_told_in_the_status(run_of: Runs) -> None:
    _, history = run_of(schedule=SCHEDULE, n_known=3, n_items=(400, 400))
    values = {row["name"]: row["value"] for row in status_rows(history)}
    assert values["search items answered"] == history.n_item_answers
    assert values["share of full evaluation"] == share_of_full(history)
    n = sum(t.rung > 0 for t in history.trials.values())
    assert share_of_full(history) == pytest.approx(history.n_item_answers / (n * 1200))
    assert 0 < share_of_full(history) < 0.6
    assert values["reused evaluations"] == 3
    assert values["stage"] == "contest"
    assert values["promotions: race"] > 0
    assert values["promotions: contest"] > 0
    assert values["estimator, ranking"].endswith(":MeanEstimator")
    assert "first 16, growth 3" in schedule_text(history)
    # several jobs of one trial add up; who was known already took no time
    spent = [t.seconds["total"] for t in history.trials.values() if t.seconds]
    assert values["seconds per evaluation: total"] == pytest.approx(np.mean(spent))
    assert max(spent) > 2.6


def test_provisional_fronts_are_told_from_the_final_one(run_of: Runs) -> None:
    _, history = run_of(schedule=SCHEDULE, n_items=(400, 400))
    n = n_provisional(history)
    assert 0 < n < len(hypervolume_growth(history))
    assert all(front.is_provisional for front in history.fronts[:n])
    assert not history.front.is_provisional
    assert all(history.has_all_items(t) for t in front_trials(history))
    assert any(is_partial(history, t) for t in history.scored())
    _, full = run_of()
    assert n_provisional(full) == 0
    assert share_of_full(full) == 1.0


def test_objectives_of_one_fitness_err_together(synthetic: Any) -> None:
    """Two objectives that are the same answers are no better known than one."""
    events = synthetic(n_layers=1).events()
    started = events[0]
    started["fitness"] = [["math", "code", "chat"]]
    for event in events:
        if event["event"] == "told":
            event["responses"] = dict.fromkeys(event["responses"], event["responses"]["math"])
    history = history_of(events)
    verdict = verdict_of(history, history.trials["0"])
    if verdict.difference is None:  # the trial is no finalist
        verdict = verdict_of(history, next(t for t in front_trials(history) if not t.is_baseline))
    assert verdict.difference.value == pytest.approx(verdict.by_objective["math"].value)
    error = verdict.by_objective["math"].standard_error
    assert verdict.difference.standard_error == pytest.approx(error)


def test_exact_objectives_have_no_error(run_of: Runs) -> None:
    exact = Objective("math", statistic=Statistic("exact"))
    _, history = run_of(objectives=(exact,), n_items=(1, 1), n_evaluations=20)
    verdict = verdict_of(history, next(t for t in history.scored(Split.HELD_OUT)))
    assert verdict.difference.standard_error == 0.0
    assert verdict.difference.text().endswith("(exact)")
    assert set(front_confidence(history).probabilities.values()) <= {0.0, 1.0}


def test_concluding_a_run_loads_nothing_heavy(run_of: Runs, tmp_path: Path) -> None:
    run_of()
    (run,) = tmp_path.glob("run-*")
    code = """
import sys
from evomerge.cli import app
try:
    app(["front", sys.argv[1]])
except SystemExit:
    pass
heavy = "torch transformers ray optuna pymoo lm_eval plotly matplotlib jinja2 scipy pyarrow"
print("LOADED", *(name for name in heavy.split() if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
    )
    assert "Optimism of selection" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def preferring(history: History, text: str) -> History:
    """The same run, had its configuration preferred something."""
    return replace(history, started=replace(history.started, prefer=text))


def test_the_configuration_prefers_whom_the_verdict_judges_and_the_cards_take(run_of: Runs) -> None:
    _, history = run_of()
    for objective in history.objectives:
        preferred = preferring(history, f"{objective.name}=1")
        taken = picked(preferred)
        best = max(history.scored(), key=lambda t: t.search[objective.name].score)
        assert taken.trial.search[objective.name].score == best.search[objective.name].score
        verdict = conclude(preferred).verdict
        assert verdict.chosen == taken.trial.name
        assert f"{objective.name}=1" in verdict.sentence
    assert picked(history, parse_preference("math=1")) == picked(preferring(history, "math=1"))
    assert picked(history).why == "knee"


def test_held_out_items_say_when_a_threshold_was_met_by_luck(run_of: Runs) -> None:
    _, history = run_of()
    highest = max(t.search["math"].score for t in front_trials(history))
    taken = picked(preferring(history, f"math>={highest!r}, chat"))
    assert taken.trial.search["math"].score == highest
    assert "within one standard error only" in taken.remarks[0]
    assert taken.trial.held_out["math"].score < highest  # selection flatters
    assert any(remark.startswith("on held-out items math") for remark in taken.remarks)


def test_thresholds_that_no_trial_meets_leave_a_run_without_verdict(run_of: Runs) -> None:
    _, history = run_of()
    preferred = preferring(history, "math>=0.99, chat")
    assert conclude(preferred).verdict.sentence.startswith("no verdict: a preference's thresholds")
    with pytest.raises(ConfigError, match="nearest is"):
        picked(preferred)
