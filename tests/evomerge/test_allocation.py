"""Fidelity in whole runs: who answers which items, and what the journal says of it."""

from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.config import read_config
from evomerge.datatypes import Split
from evomerge.errors import ConfigError, TaskError
from evomerge.journal import read_events
from evomerge.search import resume, start
from tests.support.runs import comparable

FIDELITY = {"first": 4, "growth": 2.0, "keep": 0.5, "race": 1, "sharpen": 1, "contest": 4}
FIDELITY["cohort"] = 5
WEIGHTS = {"sort": 1.0, "twice": 1.0, "last": 1.0}


def sampler_config(name: str) -> dict[str, object]:
    if name == "cma_es":
        return {"name": name, "weights": WEIGHTS, "population": 6}
    return {"name": name, "population": 6} if name == "nsga2" else {"name": name}


@pytest.mark.parametrize("sampler", ["cma_es", "nsga2", "sobol", "surrogate"])
def test_every_kind_of_sampler_is_told_scores_of_common_items(sampler, write_config, tmp_path):
    config = write_config(
        sampler=sampler_config(sampler), budget={"evaluations": 14}, fidelity=FIDELITY
    )
    history = start(read_config(config), tmp_path / "run")
    assert history.finished == "budget spent"
    candidates = [t for t in history.trials.values() if not t.is_baseline]
    assert len(candidates) == 14
    assert all(t.search is not None for t in candidates)
    for members in history.cohorts.values():
        first = [history.answers(name, Split.SEARCH, "sort").items[:4] for name in members]
        assert all(np.array_equal(items, first[0]) for items in first)
    orders = [
        tuple(history.answers(members[0], Split.SEARCH, "sort").items[:4].tolist())
        for members in history.cohorts.values()
    ]
    # fresh items for each cohort, but the same for all where survivors meet newcomers
    assert (len(set(orders)) > 1) == (sampler == "cma_es")
    # fewer answers than everybody on everything, and the front rests on all items
    n_full = len(history.trials) * 3 * 20
    assert history.n_item_answers < 0.85 * n_full
    assert history.front is not None
    assert not history.front.is_provisional
    for name in history.front.trials:
        assert history.has_all_items(history.trials[name])
        assert history.trials[name].held_out is not None


def test_nobody_answers_an_item_twice(write_config, tmp_path):
    config = write_config(sampler="sobol", budget={"evaluations": 10}, fidelity=FIDELITY)
    history = start(read_config(config), tmp_path / "run")
    for trial in history.trials.values():
        items = history.answers(trial.name, Split.SEARCH, "sort").items.tolist()
        assert len(items) == len(set(items))


def test_promotions_and_items_are_in_the_journal_and_a_finished_run_resumes_to_itself(
    write_config, tmp_path
):
    config = write_config(sampler="sobol", budget={"evaluations": 10}, fidelity=FIDELITY)
    history = start(read_config(config), tmp_path / "run")
    events, _ = read_events(tmp_path / "run" / "journal.jsonl")
    counts = Counter(event.get("why", event["event"]) for event in events)
    assert counts["race"] >= 2
    assert counts["contest"] >= 1
    assert counts["items"] == len(history.blocks)
    assert counts["scored"] >= len(history.cohorts)
    resume(tmp_path / "run")
    assert read_events(tmp_path / "run" / "journal.jsonl")[0] == events


@pytest.mark.slow
def test_a_run_cut_after_any_event_goes_on_as_if_it_had_not_been(write_config, tmp_path):
    config = read_config(
        write_config(sampler="sobol", budget={"evaluations": 7}, fidelity=FIDELITY)
    )
    start(config, tmp_path / "whole")
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    expected, _ = read_events(tmp_path / "whole" / "journal.jsonl")
    rng = np.random.default_rng(0)
    for cut in sorted(rng.choice(np.arange(1, len(lines)), 6, replace=False).tolist()):
        run = tmp_path / f"cut-{cut}"
        (run / "spool").mkdir(parents=True)
        (run / "views").mkdir()
        (run / "config.yaml").write_bytes((tmp_path / "whole" / "config.yaml").read_bytes())
        (run / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
        resume(run)
        events, _ = read_events(run / "journal.jsonl")
        assert comparable(events) == comparable(expected)


@pytest.mark.parametrize("how", ["nan", "raise"])
def test_a_failure_on_any_rung_costs_one_candidate(write_config, python_objective, tmp_path, how):
    objective = python_objective(
        "misbehave", how=how, when=[14, 24, 31, 38], counter=str(tmp_path / "calls")
    )
    (tmp_path / "search.jsonl").write_text(
        "".join(f'{{"x": {n / 10 + 0.05:.2f}}}\n' for n in range(100, 112))
    )
    config = write_config(
        objectives=[objective],
        sampler={"name": "cma_es", "population": 5},
        budget={"evaluations": 15},
        fidelity={**FIDELITY, "first": 3},
    )
    history = start(read_config(config), tmp_path / "run")
    assert history.finished == "budget spent"
    failed = [t for t in history.trials.values() if t.failure is not None]
    kept = [note for note in history.notes if "keeps its scores" in note]
    assert len(failed) + len(kept) == 4
    assert failed
    assert history.n_evaluations == history.n_planned


def test_a_pareto_search_gives_all_cohorts_the_same_items_and_no_race_by_default(
    write_config, tmp_path
):
    config = write_config(budget={"evaluations": 13}, fidelity={"first": 4, "contest": 3})
    history = start(read_config(config), tmp_path / "run")
    assert history.started.fidelity is not None
    assert history.started.fidelity["race"] == 0
    firsts = {items[0] for block, items in history.blocks.items() if block.endswith(".0")}
    assert len(firsts) == 1 < len(history.cohorts)


def test_an_item_that_always_fails_in_the_contest_is_asked_once_of_each(
    write_config, python_objective, tmp_path
):
    objective = python_objective("stumble")
    lines = (f'{{"x": {n / 10 + 0.05:.2f}}}\n' for n in range(100, 112))
    (tmp_path / "search.jsonl").write_text("".join(lines))
    config = write_config(
        objectives=[objective],
        sampler={"name": "cma_es", "population": 5},
        budget={"evaluations": 10},
        fidelity={"first": 2, "race": 0, "contest": 4, "finalists": 3},
        fuse=60,
    )
    history = start(read_config(config), tmp_path / "run")
    assert history.finished == "budget spent"
    events, _ = read_events(tmp_path / "run" / "journal.jsonl")
    failures = Counter(event["trial"] for event in events if event["event"] == "failed")
    assert failures
    assert set(failures.values()) == {1}
    assert any(trial.is_stuck for trial in history.trials.values())


def test_tiny_tasks_are_answered_whole(write_config, tmp_path):
    history = start(read_config(write_config(budget={"evaluations": 2})), tmp_path / "run")
    assert history.started.fidelity is None
    assert "tiny" in history.started.fidelity_reason
    assert all(history.has_all_items(t) for t in history.scored())


ESTIMATORS = ["mean", "regression", "ridge", "pirt", "gpirt", "mpirt", "gmpirt"]


@pytest.fixture(scope="module")
def learned(tiny_zoo, tmp_path_factory):
    """Item banks of the tiny zoo's tasks, made by the command from a run that answered all."""
    import yaml

    folder = tmp_path_factory.mktemp("learned")
    plain = {
        "base": str(tiny_zoo.base),
        "experts": {n: str(p) for n, p in tiny_zoo.experts.items()},
        "objectives": [
            {"name": s, "lm_eval": str(t), "items": 20} for s, t in tiny_zoo.tasks.items()
        ],
        "sampler": "sobol",
        "budget": {"evaluations": 12},
        "workers": {"threads": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    start(read_config(folder / "config.yaml"), folder / "run")
    for skill in tiny_zoo.tasks:
        command = ["item-bank", str(folder / "run"), skill, "--out", str(folder / f"{skill}.npz")]
        assert CliRunner().invoke(app, command).exit_code == 0
    return folder


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_ranks_a_whole_run(estimator, learned, write_config, tiny_zoo, tmp_path):
    config = write_config(
        experts={n: str(p) for n, p in tiny_zoo.experts.items()},
        objectives=[
            {
                "name": skill, "lm_eval": str(task), "items": 20, "held_out": 10,
                "item_bank": str(learned / f"{skill}.npz"),
            }
            for skill, task in tiny_zoo.tasks.items()
        ],
        seed=0,
        sampler="sobol",
        budget={"evaluations": 6},
        fidelity={**FIDELITY, "items": "greedy"},
        estimators={"ranking": estimator},
    )  # fmt: skip
    history = start(read_config(config), tmp_path / "run")
    assert history.finished == "budget spent"
    assert history.started.fidelity is not None
    assert history.started.fidelity["baselines"] == "all"
    partial = [t for t in history.scored() if not history.has_all_items(t)]
    assert partial
    for trial in partial:
        for estimate in (trial.search or {}).values():
            assert -0.2 <= estimate.score <= 1.2
            assert estimate.standard_error > 0.0
    for trial in history.scored():
        if history.has_all_items(trial):  # every estimator is the plain mean there
            answers = history.answers(trial.name, Split.SEARCH, "sort")
            assert (trial.search or {})["sort"].score == pytest.approx(answers.values.mean())


def test_an_item_bank_of_other_items_is_refused_before_any_work(
    learned, write_config, tiny_zoo, tmp_path
):
    objective = {
        "name": "sort", "lm_eval": str(tiny_zoo.tasks["sort"]), "items": 20, "held_out": 10,
        "item_bank": str(learned / "twice.npz"),
    }  # fmt: skip
    config = write_config(objectives=[objective], fidelity=FIDELITY, estimators={"ranking": "pirt"})
    with pytest.raises(TaskError, match="not in it: fit one on these items"):
        start(read_config(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_estimator_that_needs_a_bank_and_has_none_says_so(write_config, tmp_path):
    config = write_config(fidelity=FIDELITY, estimators={"ranking": "gmpirt"})
    with pytest.raises(TaskError, match="give the objective an item_bank"):
        start(read_config(config), tmp_path / "run")


def test_an_unknown_estimator_is_refused_with_the_nearest_name(write_config, tmp_path):
    config = write_config(estimators={"ranking": "gpirtt"})
    with pytest.raises(ConfigError, match="did you mean 'gpirt'"):
        start(read_config(config), tmp_path / "run")
