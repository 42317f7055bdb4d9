"""Objectives of every kind in one real run, and their exports."""

import json

import pytest

from evomerge.config import read_config
from evomerge.datatypes import Split
from evomerge.export import export
from evomerge.search import resume, start

WORDS = ["sort: b a =", "twice: c d =", "last: a b c =", "sort: d c a =", "twice: e ="]


@pytest.fixture
def text(tmp_path):
    """Forty lines without labels."""
    path = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"{WORDS[n % 5]} {'abcde'[n % 5]} {'fghij'[n // 8]}"})
             for n in range(40)]  # fmt: skip
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    return str(path)


def test_labels_text_and_facts_of_the_merge_are_searched_together(
    write_config, tiny_zoo, text, tmp_path
):
    unlabeled = {"text": text, "held_out": 8, "direction": "minimize"}
    config = write_config(
        objectives=[
            {"name": "sort", "lm_eval": str(tiny_zoo.tasks["sort"]), "items": 20, "held_out": 30},
            {"name": "surprise", "unlabeled": "perplexity", **unlabeled},
            {"name": "drift", "unlabeled": "js_to_experts", **unlabeled},
            {"name": "distance", "merge": "distance", "direction": "minimize"},
            {"name": "parts", "merge": "active_pairs", "direction": "minimize"},
        ],
        sampler="sobol",
        budget={"evaluations": 6},
        fidelity={"first": 4, "cohort": 3, "contest": 2},
    )
    history = start(read_config(config), tmp_path / "run")
    assert history.finished == "budget spent"
    assert history.started.fitness == (
        ("sort",), ("surprise", "drift"), ("distance", "parts")
    )  # fmt: skip
    base = history.trials["base"]
    assert base.search is not None
    assert base.held_out is not None
    assert base.search["distance"].score == base.search["parts"].score == 0.0
    assert base.search["distance"].standard_error == 0.0
    assert base.search["surprise"].standard_error > 0.0
    assert base.search["surprise"].score > 1.0
    expert = history.trials["expert:sort"].search
    assert expert is not None
    assert expert["distance"].score > 0.0
    assert expert["parts"].score > 0
    assert history.front is not None
    for name in history.front.trials:
        assert history.has_all_items(history.trials[name])
    scored = [t for t in history.scored() if not t.is_baseline]
    assert len(scored) == 6
    # what was learned from experts is found again: on resume and by an export
    done = export(tmp_path / "run", scored[0].name, tmp_path / "merged")
    assert done.rescored is not None
    assert set(done.rescored) == {"sort", "surprise", "drift", "distance", "parts"}
    assert resume(tmp_path / "run").trials == history.trials
    assert history.answers("base", Split.SEARCH, "surprise").values.shape[1] == 2
