import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from evomerge.config import read_config
from evomerge.evaluation_cache import EvaluationCache, cache_key
from evomerge.history import read_history
from evomerge.journal import read_events
from evomerge.search import start

KEY = cache_key({"base": "a", "math": "b"}, "settings", "recipe", ("items",))


def test_the_key_depends_on_all_that_decides_an_answer():
    others = {
        cache_key({"base": "a", "math": "c"}, "settings", "recipe", ("items",)),
        cache_key({"base": "a", "math": "b"}, "other", "recipe", ("items",)),
        cache_key({"base": "a", "math": "b"}, "settings", "other", ("items",)),
        cache_key({"base": "a", "math": "b"}, "settings", "recipe", ("others",)),
    }
    assert len(others | {KEY}) == 5


def test_another_process_finds_what_was_kept(tmp_path):
    EvaluationCache(tmp_path).put(KEY, {"math": "bits:1:gA=="})
    assert EvaluationCache(tmp_path).get(KEY) == {"math": "bits:1:gA=="}
    assert EvaluationCache(None).get(KEY) is None


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": "x"}\n', b"\0" * 40])
def test_a_damaged_file_counts_as_missing_and_is_written_over(tmp_path, damage):
    EvaluationCache(tmp_path).put(KEY, {"math": "bits:1:gA=="})
    (path,) = (tmp_path / "evaluations").rglob("*.json")
    path.write_bytes(damage)
    assert EvaluationCache(tmp_path).get(KEY) is None
    EvaluationCache(tmp_path).put(KEY, {"math": "bits:1:gA=="})
    assert EvaluationCache(tmp_path).get(KEY) == {"math": "bits:1:gA=="}


def _write_many(folder: str) -> int:
    cache = EvaluationCache(Path(folder))
    for n in range(200):
        cache.put(f"{n % 20:016x}", {"math": f"f8:{n}:"})
        assert EvaluationCache(Path(folder)).get(f"{n % 20:016x}") is not None
    return 1


def test_several_writers_never_show_each_other_half_a_file(tmp_path):
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        assert sum(pool.map(_write_many, [str(tmp_path)] * 3)) == 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_disk_that_cannot_be_written_costs_nothing_but_the_reuse(tmp_path):
    (tmp_path / "evaluations").write_text("a file where the folder should be")
    cache = EvaluationCache(tmp_path)
    cache.put(KEY, {"math": "bits:1:gA=="})
    assert cache.get(KEY) == {"math": "bits:1:gA=="}


def test_a_run_says_that_a_kept_evaluation_is_damaged_and_makes_it_again(
    write_config, python_objective, tmp_path, monkeypatch
):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    config = read_config(
        write_config(
            objectives=[python_objective("skill")],
            budget={"evaluations": 3},
            reuse_evaluations=True,
        )
    )
    first = start(config, tmp_path / "first")
    files = sorted((tmp_path / "cache" / "evaluations").rglob("*.json"))
    for path in files[:4]:
        path.write_bytes(path.read_bytes()[:-9])
    second = start(config, tmp_path / "second")
    assert [t.search for t in second.trials.values()] == [t.search for t in first.trials.values()]
    (note,) = [note for note in second.notes if "checksum" in note]
    assert "made again" in note


def test_a_second_run_reuses_what_the_first_has_paid_for(write_config, python_objective, tmp_path):
    counter = tmp_path / "calls"
    objective = python_objective("skill", counter=str(counter))
    config = read_config(
        write_config(
            objectives=[objective],
            budget={"evaluations": 5},
            reuse_evaluations=True,
            cache=str(tmp_path / "cache"),
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("EVOMERGE_CACHE")
        first = start(config, tmp_path / "first")
        n_calls = len(counter.read_text())
        second = start(config, tmp_path / "second")
        assert len(counter.read_text()) == n_calls
        assert [t.search for t in second.trials.values()] == [
            t.search for t in first.trials.values()
        ]
        events, _ = read_events(tmp_path / "second" / "journal.jsonl")
        assert all(event["known"] for event in events if event["event"] == "told")
        # other settings of the fitness are other answers
        objective["options"]["arguments"]["counter"] = str(tmp_path / "other")
        changed = write_config(
            objectives=[objective],
            budget={"evaluations": 5},
            reuse_evaluations=True,
            cache=str(tmp_path / "cache"),
        )
        start(read_config(changed), tmp_path / "third")
    assert len((tmp_path / "other").read_text()) == n_calls
    assert json.loads((tmp_path / "second" / "journal.jsonl").read_text().splitlines()[1])
    assert read_history(tmp_path / "second").finished == "budget spent"
