"""The view of a running search."""

import io
from time import perf_counter
from typing import Any

import pytest
from rich.console import Console

from evomerge.fidelity import Schedule
from evomerge.history import FrontChange, History, history_of
from evomerge.reporting.live import SearchView, sparkline
from evomerge.reporting.rows import best_in_mean, front_trials, mean_estimate


def replay(events: list[Any], *, terminal: bool) -> tuple[str, History, float]:
    """What is shown while the events arrive one by one, and the mean seconds of an update."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=150, color_system=None)
    history = history_of(events[:1])
    seconds = 0.0
    with SearchView(console) as view:
        for event in events[1:]:
            history.apply(event)
            start = perf_counter()
            view.update(history)
            seconds += perf_counter() - start
    return screen.getvalue(), history, seconds / len(events)


def test_a_terminal_shows_progress_volume_and_front(synthetic: Any) -> None:
    events = synthetic(finish=False, n_pending=3, budget=80).events()
    screen, history, _ = replay(events, terminal=True)
    last = screen[screen.rindex("evaluations") :]
    assert "60/80" in last
    assert f"{history.front.hypervolume:.5g}" in last
    assert f"front {len(history.front.trials)}" in last
    assert "pending 3" in last
    assert "failures 2" in last
    best = best_in_mean([t for t in history.scored() if not t.is_baseline], history.objectives)
    rival = best_in_mean([t for t in history.scored() if t.is_baseline], history.objectives)
    assert f"({best.name})" in last
    assert f"best baseline {mean_estimate(rival, history.objectives).score:.3f}" in last
    assert "held-out" in last


def test_a_log_gets_one_line_for_each_change_of_the_front(synthetic: Any) -> None:
    log, history, _ = replay(synthetic().events(), terminal=False)
    lines = log.splitlines()
    assert len(lines) == len(history.fronts)
    for line, front in zip(lines, history.fronts, strict=True):
        assert f"{front.n_evaluations}/60 evaluations" in line
        assert f"hypervolume {front.hypervolume:.6g}, front of {len(front.trials)}" in line
    assert "\x1b" not in log


def test_a_resumed_search_is_shown_as_if_watched_from_the_start(synthetic: Any) -> None:
    events = synthetic(finish=False).events()
    watched, history, _ = replay(events, terminal=True)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=150, color_system=None)
    with SearchView(console) as view:
        view.update(history)

    def summary(text: str) -> str:
        return text[text.rindex("hypervolume") :].replace("\x1b[?25h", "").strip()

    assert summary(screen.getvalue()) == summary(watched)


def test_a_search_with_fidelity_shows_its_stage_and_what_is_provisional(synthetic: Any) -> None:
    problem = synthetic(schedule=Schedule(first=16, growth=3.0, keep=0.4), finish=False)
    events = problem.events()
    last_promotion = max(i for i, e in enumerate(events) if e.get("why") == "race")
    screen, _, _ = replay(events[:last_promotion], terminal=True)
    assert "provisional front" in screen
    assert "stage race" in screen
    screen, history, _ = replay(events, terminal=True)
    last = screen[screen.rindex("evaluations") :]
    assert "stage contest" in last
    assert "provisional" not in last
    # the best are of the final front, not lucky ones that answered few items
    best = best_in_mean(front_trials(history), history.objectives)
    assert f"({best.name})" in last[last.index("best mean") :]
    log, _, _ = replay(events, terminal=False)
    kinds = ["provisional front of" in line for line in log.splitlines()]
    assert kinds == [front.is_provisional for front in history.fronts]


@pytest.mark.slow
def test_an_update_costs_less_than_a_millisecond_with_ten_thousand_trials(synthetic: Any) -> None:
    events = synthetic(n_evaluations=10_000, budget=10_000, held_out=False, n_layers=1).events()
    for terminal in (True, False):
        _, history, seconds = replay(events, terminal=terminal)
        assert history.n_evaluations == 10_000
        assert seconds < 1e-3


def test_sparkline_rises_with_the_volume() -> None:
    assert sparkline([], 0) == ""
    fronts = [FrontChange(n, ("1",), n / 100, (0.0,)) for n in (10, 20, 40, 90)]
    line = sparkline(fronts, 100)
    assert line[0] == "▁"
    assert line[-1] == "█"
    assert list(line) == sorted(line)
    assert set(sparkline(fronts[:1], 10)) == {"▁"}
