import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "safetensors", "ray", "optuna", "pymoo", "lm_eval"}


def evomerge(*arguments: object, **options):
    """The command as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "evomerge", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_check_search_status_front_report_export_as_a_user(write_config, tmp_path):
    config, run = write_config(), tmp_path / "run"
    checked = evomerge("check", config)
    assert checked.returncode == 0, checked.stderr
    assert "everything is in place" in checked.stdout
    assert "real genes" in checked.stdout
    assert not run.exists()

    searched = evomerge("search", config, "--run", run)
    assert searched.returncode == 0, searched.stderr
    assert "hypervolume" in searched.stdout
    assert "Traceback" not in searched.stderr

    again = evomerge("search", config, "--run", run)
    assert again.returncode == 6
    assert again.stdout.count("\n") <= 1
    assert "evomerge resume" in again.stderr

    assert evomerge("resume", run).returncode == 0
    status = json.loads(evomerge("status", run, "--json").stdout)
    assert {row["name"]: row["value"] for row in status}["finished"] == "budget spent"

    front = json.loads(evomerge("front", run, "--json").stdout)
    assert front["picked"] in {row["trial"] for row in front["front"]}
    best_sort = json.loads(evomerge("front", run, "--json", "--prefer", "sort=1").stdout)
    scores = {r["trial"]: r["search"]["sort"]["score"] for r in best_sort["front"]}
    assert scores[best_sort["picked"]] == max(scores.values())
    bound = min(scores.values())
    ordered = json.loads(
        evomerge("front", run, "--json", "--prefer", f"sort>={bound}, twice").stdout
    )
    assert ordered["why"] == f"preferred by sort>={bound:g}, twice"
    twice = {r["trial"]: r["search"]["twice"]["score"] for r in ordered["front"]}
    assert twice[ordered["picked"]] == max(twice.values())
    assert isinstance(ordered["remarks"], list)
    for preference, sentence in (
        ("sort>=1.5, twice", "lower them, or search on"),
        ("sort<=0.5", "write sort>=0.5"),
        ("speed", "speed is none: it has sort, twice, last"),
    ):
        refused = evomerge("front", run, "--prefer", preference)
        assert refused.returncode == 2
        assert sentence in refused.stderr
        assert refused.stderr.count("\n") == 1
    table = evomerge("front", run)
    assert "Pareto front" in table.stdout
    assert "±" in table.stdout

    report = evomerge("report", run)
    assert report.returncode == 0, report.stderr
    assert (run / "views" / "report.html").stat().st_size > 100_000
    assert (run / "views" / "front.png").read_bytes().startswith(b"\x89PNG")

    nowhere = evomerge("report", run, "--page", tmp_path / "config.yaml" / "report.html")
    assert nowhere.returncode == 6
    assert nowhere.stderr.startswith("error: files must be readable and writable")
    assert nowhere.stderr.count("\n") == 1

    exported = evomerge("export", run, "--prefer", "sort=2,twice=1", "--out", tmp_path / "merged")
    assert exported.returncode == 0, exported.stderr
    assert "scores as journaled" in exported.stdout
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["status", "nowhere"], 6, "no run directory"),
        (["front", "nowhere"], 6, "no run directory"),
        (["check", "none.yaml"], 2, "readable YAML file"),
        (["export", "nowhere", "3", "--prefer", "a=1"], 2, "named or preferred"),
        (["front", "nowhere", "--prefer", "math>0.6"], 2, "one of the forms"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(tmp_path, arguments, code, message):
    done = evomerge(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_help_and_reading_a_run_load_nothing_heavy(tmp_path):
    code = """
import sys
from evomerge.cli import app
try:
    app(sys.argv[1:])
except BaseException:
    pass
print("LOADED", *sorted(m for m in sys.modules if "." not in m))
"""
    for arguments in (["--help"], ["front", "x"], ["front", "--help"], ["status", "x"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        loaded = set(done.stdout.splitlines()[-1].split()[1:])
        assert "evomerge" in loaded
        assert not loaded & HEAVY, (arguments, loaded & HEAVY)


def test_a_configured_preference_decides_what_is_named_and_exported(write_config, tmp_path):
    run = tmp_path / "run"
    config = write_config(
        budget={"evaluations": 4}, final={"prefer": "twice"}, start={"layer_priors": [0.3]}
    )
    searched = evomerge("search", config, "--run", run)
    assert searched.returncode == 0, searched.stderr
    assert "preferred by twice: " in searched.stdout
    front = json.loads(evomerge("front", run, "--json").stdout)
    twice = {r["trial"]: r["search"]["twice"]["score"] for r in front["front"]}
    assert twice[front["picked"]] == max(twice.values())
    exported = evomerge("export", run, "--no-verify", "--out", tmp_path / "merged")
    assert exported.returncode == 0, exported.stderr
    assert f"(trial {front['picked']})" in exported.stdout.replace("\n", " ")
