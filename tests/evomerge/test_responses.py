"""Every answer of a run as a table."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from pyarrow import parquet

from evomerge.datatypes import Split, Statistic
from evomerge.errors import ConfigError
from evomerge.history import history_of, read_history
from evomerge.packing import pack
from evomerge.reporting.responses import write_responses

COLUMNS = ["trial", "is_baseline", "split", "objective", "item", "column", "response"]


def events():
    """A run with two trials: one answers all items, one two blocks of them, out of order."""
    objective = {"direction": "maximize", "worst": None}
    yield {
        "event": "started",
        "versions": {},
        "config_digest": "",
        "model_digests": {},
        "item_digests": {},
        "settings": "",
        "n_items": {"right": [5, 3], "perplexity": [4, 2]},
        "fitness": [["right"], ["perplexity"]],
        "experts": ["a"],
        "groups": [],
        "objectives": [
            {"name": "right", "statistic": ["mean", 1], **objective},
            {
                "name": "perplexity",
                "statistic": ["fitness.statistics:weighted_mean", 2],
                **objective,
            },
        ],
        "dimensions": ["a"],
        "sampler": "s",
        "sampler_reason": "",
        "seed": 0,
        "n_baselines": 1,
        "budget": 1,
        "fidelity": {},
        "fidelity_reason": "",
        "estimators": {},
        "time": 0.0,
    }
    base = {"trial": "base", "generation": -1, "recipe_digest": ""}
    recipe = {
        "operator": "o",
        "experts": ["a"],
        "groups": [],
        "coefficients": [[]],
        "prepare": {},
        "runtime": {},
        "seed": 0,
    }
    for split, n in {"search": (5, 4), "held_out": (3, 2)}.items():
        yield {"event": "asked", "split": split, "recipe": recipe, **base}
        yield told("base", split, np.arange(n[0]) / 3, np.arange(2 * n[1]) + 0.1)
    yield {"event": "items", "block": "0.0", "items": [[1, 4], [3]]}
    yield {"event": "items", "block": "0.1", "items": [[0, 2], [0, 1]]}
    asked = {"event": "asked", "trial": "0", "split": "search", "generation": 0}
    for rung, n in enumerate([(2, 1), (2, 2)]):
        yield {**asked, "recipe_digest": "", "u": [0.5], "cohort": 0, "block": f"0.{rung}"}
        yield told("0", "search", np.arange(n[0]) % 2, np.arange(2 * n[1]) + 7.0)


def told(trial, split, right, perplexity):
    responses = {"right": pack(right), "perplexity": pack(perplexity)}
    return {"event": "told", "trial": trial, "split": split, "responses": responses, "seconds": {}}


def plain_rows(history):
    """What the table has to hold, from the history itself."""
    for trial in history.trials.values():
        for split in Split:
            for objective in history.objectives:
                answers = history.answers(trial.name, split, objective.name)
                for place in np.argsort(answers.items):
                    for column, value in enumerate(np.atleast_1d(answers.values[place])):
                        item = int(answers.items[place])
                        yield (
                            trial.name,
                            trial.is_baseline,
                            split.value,
                            objective.name,
                            item,
                            column,
                            float(value),
                        )


def rows_of(path):
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        assert table.column_names == COLUMNS
        return list(zip(*(table[name].to_pylist() for name in COLUMNS), strict=True))
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == COLUMNS
    return [
        (t, b == "true", s, o, int(item), int(column), float(value))
        for t, b, s, o, item, column, value in rows
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_table_is_what_the_history_holds(tmp_path, suffix):
    history = history_of(list(events()))
    assert history.objectives[1].statistic == Statistic("fitness.statistics:weighted_mean", 2)
    path = tmp_path / "new" / f"responses{suffix}"
    n_rows = write_responses(history, path)
    rows = rows_of(path)
    assert rows == list(plain_rows(history))
    assert n_rows == len(rows) == (5 + 8) + (3 + 4) + (4 + 6)
    assert [r[4] for r in rows if r[0] == "0" and r[3] == "right"] == [0, 1, 2, 4]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_run_without_answers_gives_a_table_with_headers(tmp_path, suffix):
    history = history_of(list(events())[:1])
    path = tmp_path / f"responses{suffix}"
    assert write_responses(history, path) == 0
    assert rows_of(path) == []


def test_another_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"\.parquet, \.csv, but the file is responses\.xlsx"):
        write_responses(history_of(list(events())), tmp_path / "responses.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_answers_of_a_real_run(write_config, tmp_path):
    run, out = tmp_path / "run", tmp_path / "answers.csv"

    def evomerge(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "evomerge", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    searched = evomerge("search", write_config(budget={"evaluations": 2}), "--run", run)
    assert searched.returncode == 0, searched.stderr
    done = evomerge("responses", run, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert rows == list(plain_rows(read_history(run)))
    assert f"({len(rows)} answers)" in " ".join(done.stdout.split())
    assert evomerge("responses", run).returncode == 0
    assert (run / "views" / "responses.parquet").exists()
    refused = evomerge("responses", run, "--out", tmp_path / "answers.txt")
    assert refused.returncode == 2
    assert "give it one of these endings" in refused.stderr
