"""The report in a real browser: what a person who clicks a point gets to see."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import Select, WebDriverWait

from evomerge.fidelity import Schedule
from evomerge.history import history_of
from evomerge.reporting.page import write_page
from evomerge.reporting.rows import front_trials, is_partial, n_provisional, title_of
from evomerge.reporting.terminal import score_text

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>document.title='stolen'</script><img src=http://a.invalid/x onerror=1>"

PIXEL_OF_POINT = """
    const plot = document.getElementById(arguments[0]);
    const { xaxis, yaxis } = plot._fullLayout;
    const box = plot.getBoundingClientRect();
    for (const trace of plot.data) {
      const i = (trace.customdata || []).indexOf(arguments[1]);
      if (i >= 0) {
        return [box.left + xaxis._offset + xaxis.l2p(trace.x[i]),
                box.top + yaxis._offset + yaxis.l2p(trace.y[i])];
      }
    }
    return null;
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[WebDriver]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        reason = "needs a browser: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1440,1100",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(chromedriver)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def open_page(browser: WebDriver, page: Path) -> None:
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(
        lambda b: b.execute_script("return document.body.dataset.ready") == "true"
    )


def requested(browser: WebDriver, page: Path) -> set[str]:
    """Every address that the page (not Chromium's first tab) has asked for, data apart."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    own = [m["params"] for m in sent if m["params"]["documentURL"] == page.as_uri()]
    addresses = {params["request"]["url"] for params in own}
    return {address for address in addresses if not address.startswith("data:")}


def click_point(browser: WebDriver, plot: str, trial: str) -> None:
    """A click of the mouse where plotly has drawn the point."""
    browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", plot)
    position = browser.execute_script(PIXEL_OF_POINT, plot, trial)
    assert position is not None, f"{trial} is not drawn"
    x, y = (round(p) for p in position)
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(x - 3, y - 3)
    actions.w3c_actions.pointer_action.pause(0.3)
    actions.w3c_actions.pointer_action.move_to_location(x, y)
    actions.w3c_actions.pointer_action.pause(0.3)
    actions.w3c_actions.pointer_action.click()
    actions.perform()


def title(browser: WebDriver) -> str:
    return browser.find_element(By.ID, "detail-title").text


def wait_for_title(browser: WebDriver, expected: str) -> None:
    WebDriverWait(browser, 10).until(lambda b: title(b) == expected)


def heatmap(browser: WebDriver) -> dict[str, Any]:
    return browser.execute_script(
        "const d = document.getElementById('detail-heatmap').data[0];"
        "return {x: d.x, y: d.y, z: d.z}"
    )


def test_clicking_a_point_shows_its_scores_and_coefficients(
    browser: WebDriver, run_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem, history = run_of()
    open_page(browser, write_page(history, problem.decode, tmp_path / "report.html"))

    # one that is neither shown at first nor covered by another point
    shown = title(browser)
    alone = browser.execute_script(
        """
        const plot = document.getElementById("front-plot");
        const { xaxis, yaxis } = plot._fullLayout;
        const every = plot.data.flatMap((trace) => (trace.customdata || []).map((name, i) =>
          ({ name, x: xaxis.l2p(trace.x[i]), y: yaxis.l2p(trace.y[i]) })));
        const front = plot.data.find((trace) => trace.name === "front").customdata;
        return front.filter((name) => {
          const own = every.find((p) => p.name === name);
          return every.every((p) => p.name === name || Math.hypot(p.x - own.x, p.y - own.y) > 20);
        });
        """
    )
    name = next(n for n in alone if title_of(history.trials[n]) != shown)
    trial = history.trials[name]
    click_point(browser, "front-plot", name)
    wait_for_title(browser, f"Trial {name}")

    # hovering has shown the recipe
    hover = browser.find_element(By.CSS_SELECTOR, "#front-plot .hoverlayer").text
    assert f"Trial {name}" in hover
    assert "task_arithmetic" in hover
    assert all(expert in hover for expert in problem.experts)

    rows = browser.find_elements(By.CSS_SELECTOR, "#detail-scores tbody tr")
    assert [row.find_element(By.TAG_NAME, "th").text for row in rows] == [
        *(o.name for o in history.objectives),
        "mean",
    ]
    for row, objective in zip(rows, history.objectives, strict=False):
        search, held_out = (cell.text for cell in row.find_elements(By.TAG_NAME, "td"))
        s, h = trial.search[objective.name], trial.held_out[objective.name]
        assert search == score_text(s.score, s.standard_error)
        assert held_out == score_text(h.score, h.standard_error)

    # one kind: a cell is a coefficient of the recipe
    recipe = history.recipe(trial, problem.decode)
    C = recipe.matrix()
    Select(browser.find_element(By.ID, "detail-kind")).select_by_value("mlp.up")
    drawn = heatmap(browser)
    assert drawn["y"] == list(problem.experts)
    assert drawn["x"] == [str(layer) for layer in range(problem.n_layers)]
    columns = [recipe.groups.index(f"{layer}.mlp.up") for layer in range(problem.n_layers)]
    np.testing.assert_allclose(drawn["z"], C[:, columns], atol=1e-6)

    # all kinds: means by parameters, with what lies outside the layers
    Select(browser.find_element(By.ID, "detail-kind")).select_by_value("")
    drawn = heatmap(browser)
    assert drawn["x"] == ["embed", *map(str, range(problem.n_layers)), "norm", "head"]
    inside = [i for i, g in enumerate(problem.groups) if g.layer == 2]
    sizes = [problem.groups[i].n_parameters for i in inside]
    expected = C[:, inside] @ sizes / np.sum(sizes)
    np.testing.assert_allclose(np.array(drawn["z"])[:, 3], expected, atol=1e-6)
    # the cells are on the screen, not only in the data
    assert browser.find_element(By.CSS_SELECTOR, "#detail-heatmap .heatmaplayer image")

    browser.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert browser.get_log("browser") == []
    page = tmp_path / "report.html"
    assert requested(browser, page) == {page.as_uri()}


def test_axes_scores_and_table_can_be_chosen(
    browser: WebDriver, run_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem, history = run_of()
    open_page(browser, write_page(history, problem.decode, tmp_path / "report.html"))

    def front_y() -> dict[str, float]:
        return dict(
            browser.execute_script(
                "const t = document.getElementById('front-plot').data"
                ".find(t => t.name === 'front');"
                "return t.customdata.map((name, i) => [name, t.y[i]])"
            )
        )

    candidates = [t for t in front_trials(history) if not t.is_baseline]
    assert front_y() == {t.name: t.search["code"].score for t in candidates}
    Select(browser.find_element(By.ID, "axis-y")).select_by_visible_text("chat")
    assert front_y() == {t.name: t.search["chat"].score for t in candidates}
    label = browser.find_element(By.CSS_SELECTOR, "#front-plot .ytitle").text
    assert label == "chat (more is better)"
    Select(browser.find_element(By.ID, "split")).select_by_value("held_out")
    assert front_y() == {t.name: t.held_out["chat"].score for t in candidates}
    for axis in ("generation", "mean"):
        Select(browser.find_element(By.ID, "axis-x")).select_by_visible_text(axis)
        Select(browser.find_element(By.ID, "axis-colour")).select_by_visible_text(axis)

    # sorting the front by its second column, then opening its first row with the keyboard
    browser.find_element(By.CSS_SELECTOR, "#front-table thead th:nth-child(2) button").click()
    first = browser.find_element(By.CSS_SELECTOR, "#front-table tbody tr")
    best = max(front_trials(history), key=lambda t: t.search["math"].score)
    assert first.get_attribute("data-trial") == best.name
    button = first.find_element(By.TAG_NAME, "button")
    browser.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    wait_for_title(browser, title_of(best))

    # nothing offers to send the run anywhere
    assert not browser.find_elements(By.CSS_SELECTOR, "[data-title*='Share'], .plotlyjsicon")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"held_out": False, "finish": False, "n_pending": 2}, id="going on"),
        pytest.param({"n_evaluations": 11, "n_failures": 0}, id="baselines only"),
        pytest.param({"constant": "code", "n_failures": 9}, id="constant objective, failures"),
        pytest.param({"n_candidates_held_out": 3}, id="few re-scored"),
    ],
)
def test_page_opens_whatever_the_state_of_the_run(
    browser: WebDriver, run_of: Callable[..., Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    problem, history = run_of(**options)
    open_page(browser, write_page(history, problem.decode, tmp_path / "report.html"))
    assert title(browser) != "No trial yet"
    assert browser.get_log("browser") == []


def test_one_objective_is_drawn_over_the_run(
    browser: WebDriver, run_of: Callable[..., Any], synthetic: Any, tmp_path: Path
) -> None:
    objectives = synthetic.objectives[:1]
    problem, history = run_of(objectives=objectives)
    open_page(browser, write_page(history, problem.decode, tmp_path / "report.html"))
    label = browser.find_element(By.CSS_SELECTOR, "#front-plot .xtitle").text
    assert label == "generation"
    assert browser.get_log("browser") == []


def test_scores_from_a_part_of_the_items_are_hollow_and_the_final_volume_stands_apart(
    browser: WebDriver, run_of: Callable[..., Any], tmp_path: Path
) -> None:
    schedule = Schedule(first=16, growth=3.0, keep=0.4)
    problem, history = run_of(schedule=schedule, n_items=(400, 400))
    open_page(browser, write_page(history, problem.decode, tmp_path / "report.html"))
    drawn = browser.execute_script(
        "return document.getElementById('front-plot').data.slice(0, 4).filter(t => t.customdata)"
        ".flatMap(t => t.customdata.map((n, i) => [n, t.marker.symbol[i], t.text[i]]))"
    )
    assert {name for name, symbol, _ in drawn if symbol.endswith("-open")} == {
        t.name for t in history.scored() if is_partial(history, t)
    }
    hover = next(text for name, _, text in drawn if name == "base")
    assert "a part of the search items: 48, 48, 48" in hover
    growth = browser.execute_script(
        "return document.getElementById('growth-plot').data.map(t => [t.name, t.y])"
    )
    volumes = [front.hypervolume for front in history.fronts]
    n = n_provisional(history)
    assert growth[0] == ["provisional", volumes[:n]]
    assert set(growth[1][1]) == set(volumes[n:])
    remark = browser.find_element(By.ID, "growth-remark").text
    assert "Final, on all items" in remark
    assert browser.find_element(By.ID, "verdict").text.startswith("gain over the best baseline")
    # side by side, none over another
    boxes = [
        plot.rect for plot in browser.find_elements(By.CSS_SELECTOR, "#optimism-plots .main-svg")
    ]
    place = browser.find_element(By.ID, "optimism-plots").rect
    assert max(box["width"] for box in boxes) < 0.4 * place["width"]
    assert browser.get_log("browser") == []


def test_names_from_the_run_are_text_and_never_markup(
    browser: WebDriver, run_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem, history = run_of(experts=(HOSTILE, "{{ 7 * 7 }}", "chat", "law"))
    open_page(browser, write_page(history, problem.decode, tmp_path / "report.html"))
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith(f"Merging {HOSTILE}, {{{{ 7 *")
    assert browser.title.startswith(f"Merging {HOSTILE}")
    row = next(
        r
        for r in browser.find_elements(By.CSS_SELECTOR, "#baseline-table tbody tr")
        if r.get_attribute("data-trial") == f"expert:{HOSTILE}"
    )
    row.find_element(By.TAG_NAME, "button").click()
    wait_for_title(browser, HOSTILE)
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert browser.get_log("browser") == []
    page = tmp_path / "report.html"
    assert requested(browser, page) == {page.as_uri()}


@pytest.mark.slow
def test_a_run_of_ten_thousand_trials_opens(
    browser: WebDriver, synthetic: Any, tmp_path: Path
) -> None:
    problem = synthetic(n_evaluations=10_000, budget=10_000, held_out=False)
    history = history_of(problem.events())  # without a disk: 20,000 syncs take a minute
    page = write_page(history, problem.decode, tmp_path / "report.html")
    assert page.stat().st_size < 20e6
    open_page(browser, page)
    remark = browser.find_element(By.ID, "front-remark").text
    assert "dominated trials are not drawn" in remark
    click = [t.name for t in front_trials(history)][1]
    browser.find_element(By.CSS_SELECTOR, f"tr[data-trial='{click}'] button").click()
    wait_for_title(browser, title_of(history.trials[click]))
    assert browser.get_log("browser") == []
