"""The page as a file; test_page_browser.py opens it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from evomerge.datatypes import Recipe
from evomerge.errors import JournalError
from evomerge.fidelity import Schedule
from evomerge.history import history_of
from evomerge.reporting.conclusion import conclude
from evomerge.reporting.page import write_page
from evomerge.reporting.rows import n_provisional


def report_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])


def test_page_is_one_file_that_may_load_nothing(run_of: Callable[..., Any], tmp_path: Path) -> None:
    problem, history = run_of()
    path = write_page(history, problem.decode, tmp_path / "views" / "report.html")
    html = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    own = html.replace(html[html.index("<script>/**") : html.rindex("<script>")], "")
    assert not re.search(r"""(src|href)=(?!["']data:)""", own)
    assert "http" not in own.replace("http-equiv", "")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_page_carries_the_coefficients_of_front_and_baselines(
    run_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem, history = run_of()
    html = write_page(history, problem.decode, tmp_path / "report.html").read_text()
    trials = {trial["name"]: trial for trial in report_of(html)["trials"]}
    assert set(trials) == {t.name for t in history.scored()}
    for name in [*history.front.trials, "base", "random_delta"]:
        recipe = history.recipe(history.trials[name], problem.decode)
        assert len(trials[name]["coefficients"]) == len(recipe.experts)
        for shown, row in zip(trials[name]["coefficients"], recipe.coefficients, strict=True):
            assert shown == pytest.approx(row, abs=1e-6)


def test_headline_compares_the_best_merge_with_its_rivals(
    run_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem, history = run_of()
    html = write_page(history, problem.decode, tmp_path / "report.html").read_text()
    for label in ("best expert", "uniform average", "best global scale"):
        assert f"Against {label}" in html


def test_text_of_the_run_is_escaped(run_of: Callable[..., Any], tmp_path: Path) -> None:
    hostile = "</script><b>&\u2028"
    problem, history = run_of(experts=(hostile, "code", "chat", "law"))
    html = write_page(history, problem.decode, tmp_path / "report.html").read_text("utf-8")
    assert hostile not in html
    assert report_of(html)["trials"][0]["experts"][0] == hostile
    assert "<b>8 GiB" not in html  # from the message of a failure


def test_another_search_space_is_refused(run_of: Callable[..., Any], tmp_path: Path) -> None:
    problem, history = run_of()

    def other(u: Any) -> Recipe:
        return problem.decode([0.5 for _ in u])

    with pytest.raises(JournalError, match="the search space has changed"):
        write_page(history, other, tmp_path / "report.html")
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize("n_events", [1, 9, 30])
def test_page_of_a_run_that_has_just_begun(synthetic: Any, tmp_path: Path, n_events: int) -> None:
    problem = synthetic()
    history = history_of(problem.events()[:n_events])
    html = write_page(history, problem.decode, tmp_path / "report.html").read_text()
    assert "no-held-out" in html


def test_page_tells_fidelity_verdict_and_confidence(
    run_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem, history = run_of(schedule=Schedule(first=16, growth=3.0, keep=0.4))
    html = write_page(history, problem.decode, tmp_path / "report.html").read_text()
    found = conclude(history)
    assert escape(found.verdict.sentence) in html
    assert found.confidence.caption in html
    assert f"Search items answered: {history.n_item_answers:,}" in html
    report = report_of(html)
    partial = {t["name"] for t in report["trials"] if t["partial"]}
    assert partial == {t.name for t in history.scored() if not history.has_all_items(t)}
    assert report["n_provisional"] == n_provisional(history) > 0
