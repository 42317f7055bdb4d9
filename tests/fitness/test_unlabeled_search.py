"""Unlabeled objectives and facts of a merge in a whole run, from a configuration to an export."""

import json

import pytest

from evomerge.config import read_config
from evomerge.datatypes import Split
from evomerge.export import export
from evomerge.search import start


@pytest.fixture
def config(write_config, tmp_path):
    text = tmp_path / "prompts.jsonl"
    prompts = [f"sort: {a} {b} {c} =" for a in "abc" for b in "def" for c in "gh"]
    text.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))

    def unlabeled(name: str, measure: str, direction: str) -> dict[str, object]:
        return {
            "name": name, "unlabeled": measure, "text": str(text), "direction": direction,
            "items": 10, "held_out": 5, "options": {"positions": 3, "max_new_tokens": 4},
        }  # fmt: skip

    objectives = [
        unlabeled("drift", "js_to_experts", "minimize"),
        unlabeled("surprise", "perplexity", "minimize"),
        unlabeled("length", "output_length", "minimize"),
        unlabeled("refusals", "refusal_rate", "minimize"),
        {"name": "moved", "merge": "relative_distance", "direction": "minimize"},
    ]
    return read_config(write_config(objectives=objectives, budget={"evaluations": 4}))


def test_a_run_on_text_without_labels(config, tmp_path):
    history = start(config, tmp_path / "run")
    assert not [trial for trial in history.trials.values() if trial.failure is not None]
    assert any("refusals is 0 for all baselines" in note for note in history.notes)
    base = history.trials["base"].search or {}
    assert base["moved"].score == 0.0
    assert base["moved"].standard_error == 0.0
    assert base["drift"].n_items == 10
    assert base["drift"].standard_error > 0.0
    assert base["surprise"].score > 1.0
    assert all((trial.search or {})["drift"].score > 0 for trial in history.scored(Split.SEARCH))
    held_out = history.trials["expert:sort"].held_out or {}
    assert held_out["drift"].n_items == 5
    assert held_out["moved"].score == (history.trials["expert:sort"].search or {})["moved"].score
    export(tmp_path / "run", "2", tmp_path / "merged")
