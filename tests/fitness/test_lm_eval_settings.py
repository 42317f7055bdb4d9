"""What a search is told and remembers of a task: settings, warnings, statistics."""

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest

from evomerge.datatypes import Direction, Objective, canonical_json
from evomerge.live_model import LoadedModel
from fitness.lm_eval import LmEvalFitness
from fitness.lm_eval.benchmarks import is_public
from tests.support.harness import build

CATALOGUE = Path("/somewhere/lm_eval/tasks")
CODE = """
def results(document, answers):
    return {"exact_match": float(answers[0] == "b")}
"""


def settings(path: str, metric: str = "exact_match,whole", **options: Any) -> str:
    return build(path, (metric,), **options).settings


# settings


def test_settings_are_of_how_and_not_of_what_or_how_fast(tasks):
    path = tasks.path("writing")
    before = settings(path)
    assert before == settings(path)
    assert before == settings(path, batch_size=3, max_batch_tokens=99)
    assert before == settings(path, items=5, held_out=3, seed=9)
    tasks.write_split("writing", "search", tasks.split("writing", "search")[3:])
    assert before == settings(path)
    assert before == settings(path, gen_kwargs={"max_gen_toks": 12})  # as the task has it


@pytest.mark.parametrize(
    "options",
    [
        {"metric": "exact_match,first"},
        {"gen_kwargs": {"max_gen_toks": 13}},
        {"gen_kwargs": {"num_beams": 2}},
        {"gen_kwargs": {"do_sample": True, "temperature": 0.5}},
        {"system_instruction": "be brief"},
        {"apply_chat_template": True},
        {"num_fewshot": 1, "items": 5},
        {"too_long": "truncate_left"},
    ],
)
def test_settings_change_with_what_decides_an_answer(options, tasks):
    assert settings(tasks.path("writing")) != settings(tasks.path("writing"), **options)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"{{question}} ="', '"{{question}}  ="'),
        ('"([a-z0-9])"', '"([a-z])"'),
        ("aggregation: mean, higher", "aggregation: mean, ignore_case: true, higher"),
        ("output_type", "repeats: 2\noutput_type"),
        ("output_type", "process_results: !function code.results\noutput_type"),
    ],
)
def test_settings_change_with_the_task(old, new, tasks):
    (tasks.folder / "code.py").write_text(CODE)
    before = settings(tasks.path("writing"))
    text = tasks.text("writing")
    assert old in text
    assert settings(tasks.write("writing", text.replace(old, new))) != before


def test_settings_change_with_the_code_beside_a_task_s_function(tasks):
    text = tasks.text("writing").replace(
        "output_type", "process_results: !function code.results\noutput_type"
    )
    path = tasks.write("writing", text)
    (tasks.folder / "code.py").write_text(CODE)
    before = settings(path)
    (tasks.folder / "code.py").write_text("LIMIT = 3\n" + CODE)
    assert settings(path) != before


def test_settings_hold_no_addresses(tasks):
    """They must be the same in another process."""
    (tasks.folder / "code.py").write_text(CODE)
    text = tasks.text("writing").replace(
        "output_type", "process_results: !function code.results\noutput_type"
    )
    fitness = build(tasks.write("writing", text), ("exact_match,first",))
    assert " at 0x" not in canonical_json(fitness._described)


def test_settings_change_with_the_seed_where_it_draws(tasks):
    path = tasks.path("writing")
    for drawn in ({"num_fewshot": 1, "items": 5}, {"gen_kwargs": {"do_sample": True}}):
        assert settings(path, seed=1, **drawn) == settings(path, seed=1, **drawn)
        assert settings(path, seed=1, **drawn) != settings(path, seed=2, **drawn)


def test_settings_change_with_the_chat_template(tasks, model, tokenizer):
    after = []
    for template in ("{{ messages[0]['content'] }}", "{{ messages[0]['content'] + ' ' }}"):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template
        fitness = build(tasks.path("choice"), apply_chat_template=True)
        fitness.bind(LoadedModel(model, tokenizer))
        after.append(fitness.settings)
    assert after[0] != after[1]


# warnings


@pytest.mark.parametrize(
    ("config_source", "dataset_path", "data_files", "expected"),
    [
        (f"{CATALOGUE}/gsm8k/gsm8k.yaml", "openai/gsm8k", None, True),
        (f"{CATALOGUE}/own/own.yaml", "json", "own.jsonl", True),
        ("/srv/me/gsm8k.yaml", "openai/gsm8k", None, True),
        ("/srv/me/own.yaml", "json", {"test": ["own.jsonl"]}, False),
        ("/srv/me/own.yaml", "csv", {"test": "hf://datasets/some/one.csv"}, True),
        ("/srv/me/own.yaml", "csv", {"test": "file:///srv/me/one.csv"}, False),
        ("/srv/me/own.yaml", "parquet", ["https://host/one.parquet"], True),
        ("/srv/me/own.yaml", "/", None, False),
        ("inline", None, None, False),
        (None, "openai/gsm8k", None, True),
    ],
)
def test_a_task_of_the_catalogue_or_the_hub_is_public(
    config_source, dataset_path, data_files, expected
):
    assert is_public(config_source, dataset_path, data_files, CATALOGUE) is expected


@pytest.fixture
def served(tasks, monkeypatch):
    """The documents of the choice task as if they came from the Hub."""
    load = datasets.load_dataset

    def from_the_hub(path: str, **arguments: Any) -> Any:
        return load("json" if path == "someone/benchmark" else path, **arguments)

    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    return tasks.text("choice").replace("dataset_path: json", "dataset_path: someone/benchmark")


def test_searching_on_a_benchmark_s_test_split_is_warned_of(tasks, served):
    path = tasks.write("choice", served.replace("validation_split: validation\n", ""))
    (warning,) = build(path).warnings
    assert "the test split of a public benchmark (choice)" in warning
    path = tasks.write("choice", served.replace("test_split: test\n", ""))
    (warning,) = build(path).warnings
    assert "the validation split of a public benchmark" in warning


def test_a_benchmark_with_a_split_for_search_is_not_warned_of(tasks, served):
    assert build(tasks.write("choice", served)).warnings == ()


def test_own_tasks_are_not_warned_of(tasks):
    text = tasks.text("choice").replace("validation_split: validation\n", "")
    assert build(tasks.write("choice", text)).warnings == ()


def test_a_direction_that_worsens_the_metric_is_warned_of(tasks):
    objectives = (Objective("o", Direction.MINIMIZE), Objective("p"))
    fitness = LmEvalFitness(objectives, task=tasks.path("choice"), metrics=("acc", "acc_norm"))
    (warning,) = fitness.warnings
    assert "acc is better when it is higher, but the objective o would minimize it" in warning
