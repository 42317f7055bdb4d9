import copy
import re
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.datatypes import Objective, Split
from evomerge.errors import TaskError
from evomerge.live_model import LoadedModel
from fitness.lm_eval import LmEvalFitness
from fitness.lm_eval.tasks import _named as load_named
from fitness.lm_eval.tasks import _of_folder
from tests.support.harness import build, refused

METRICS = {
    "choice": ("acc", "acc_norm"),
    "answer": ("acc,none",),
    "writing": ("exact_match,whole", "exact_match,first"),
}
N_SEARCH = 21


def spoiled(tasks: Any, name: str, old: str, new: str) -> str:
    text = tasks.text(name)
    assert old in text
    return text.replace(old, new)


def spoil(tasks: Any, name: str, old: str, new: str) -> str:
    return tasks.write(name, spoiled(tasks, name, old, new))


def test_an_unknown_path_is_refused(tasks):
    refused(tasks.path("missing"), "there is no such file")


def test_an_unknown_name_is_refused_with_the_nearest(tasks):
    """In a folder of the user's own: reading lm-eval's catalogue takes half a minute."""
    with pytest.raises(TaskError, match=r"choise: .* did you mean choice\?"):
        load_named("choise", _of_folder(tasks.folder), tasks.folder)
    with pytest.raises(TaskError, match="check the spelling"):
        load_named("gsm8k", _of_folder(tasks.folder), tasks.folder)


def test_a_folder_with_several_groups_is_refused(tasks):
    for name in ("one", "two"):
        tasks.write(name, f"group: {name}\ntask: [choice]\n")
    refused(str(tasks.folder), "the groups one, two")


def test_a_folder_without_tasks_is_refused(tmp_path):
    refused(str(tmp_path), "a folder must hold tasks")
    missing = str(tmp_path / "none")
    with pytest.raises(TaskError, match="include_path must be a folder"):
        build("choice", include_path=missing)


@pytest.mark.parametrize("metric", ["f1", "acc,whole", "acc,", ""])
def test_an_unknown_metric_is_refused_with_the_known_ones(metric, tasks):
    refused(
        tasks.path("choice"), f"{metric!r} is not", "acc,none, acc_norm,none", metrics=(metric,)
    )


def test_a_bare_metric_is_refused_when_the_task_has_several_filters(tasks):
    refused(
        tasks.path("writing"),
        "choose from exact_match,first, exact_match,whole",
        metrics=("exact_match",),
    )


@pytest.mark.parametrize(
    ("aggregation", "fact"),
    [("!function code.largest", "'largest'"), ("bypass", "'bypass_agg'")],
)
def test_a_metric_that_is_combined_in_an_unknown_way_is_refused(aggregation, fact, tasks):
    (tasks.folder / "code.py").write_text("def largest(values):\n    return max(values)\n")
    given = f"metric: acc, aggregation: {aggregation}"
    path = spoil(tasks, "choice", "metric: acc, aggregation: mean", given)
    refused(path, f"'acc' is combined by {fact}")


def test_f1_of_more_than_two_labels_is_refused(tasks, model, tokenizer):
    path = spoil(tasks, "choice", "metric: acc, aggregation: mean", "metric: f1, aggregation: f1")
    fitness = build(path, ("f1",))
    fitness.bind(LoadedModel(model, tokenizer))
    with pytest.raises(TaskError, match="F1 is of the labels 0 and 1, but one item has"):
        fitness.respond(Split.SEARCH, range(N_SEARCH))


def test_each_objective_needs_a_metric(tasks):
    with pytest.raises(TaskError, match="1 objectives and 2 metrics"):
        LmEvalFitness((Objective("one"),), task=tasks.path("choice"), metrics=("acc", "acc_norm"))


def test_overlapping_splits_are_refused_with_the_first_item(tasks):
    search, held_out = tasks.split("choice", "search"), tasks.split("choice", "held_out")
    tasks.write_split("choice", "held_out", [*held_out[:3], search[5], search[2]])
    refused(tasks.path("choice"), "2 of 5 are", repr(search[5]["question"] + " ="))


@pytest.mark.parametrize("split", ["search", "held_out"])
def test_an_empty_split_is_refused(split, tasks):
    tasks.write_split("choice", split, [])
    refused(tasks.path("choice"), "every split of a task must have documents")


def test_no_documents_at_all_are_refused(tasks):
    for split in Split:
        tasks.write_split("choice", split.value, [])
    refused(tasks.path("choice"), "every split of a task must have documents")


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"items": 22}, "22 search items are asked for and there are 21"),
        ({"held_out": 34}, "34 held_out items are asked for and there are 33"),
        ({"items": 0}, "at least 1 search items"),
        ({"held_out": -1}, "at least 0 held_out items"),
        ({"items": "search.jsonl"}, "search items are 'search.jsonl'"),
        ({"held_out": {"choice": 34}}, "34 held_out items are asked for and there are 33"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_fewshot": -1}, "num_fewshot"),
        ({"num_fewshot": 2}, "there are 0 documents for 2 examples"),
    ],
)
def test_numbers_that_the_task_cannot_meet_are_refused(options, fact, tasks):
    refused(tasks.path("choice"), fact, **options)


def test_a_single_split_that_is_too_small_is_refused(tasks):
    path = spoil(tasks, "choice", "validation_split: validation\n", "")
    refused(path, "20 + 14 are needed and there are 33 different ones", items=20, held_out=14)
    refused(path, "are needed and there are 33 different ones", held_out=33)


@pytest.mark.parametrize(
    ("old", "new", "fact"),
    [
        ("test_split: test", "test_split: nothing", "KeyError"),
        ("choice.search.jsonl", "nowhere.jsonl", "FileNotFoundError"),
        ("{{question}}", "{{nothing}}", "'nothing' is undefined"),
        ("{{question}}", "{% if %}", "TemplateSyntaxError"),
        ("output_type: multiple_choice", "output_type: essay", "Got invalid output_type 'essay'"),
        ("output_type", " : [", "ParserError"),
    ],
)
def test_a_task_that_lm_eval_cannot_read_is_refused(old, new, fact, tasks):
    refused(spoil(tasks, "choice", old, new), "lm-eval must be able to read the task", fact)


def test_documents_that_are_out_of_reach_are_refused(tasks):
    path = spoil(tasks, "choice", "dataset_path: json", "dataset_path: someone/benchmark")
    refused(path, "the documents of a task must be here or in reach", "go online")


def test_a_task_that_fails_on_a_later_document_is_refused(tasks):
    documents = tasks.split("choice", "search")
    del documents[9]["question"]
    tasks.write_split("choice", "search", documents)
    path = spoil(tasks, "choice", "{{question}}", "{{question + ''}}")
    refused(path, "TypeError")


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ("temprature: 0.5", "'temprature' is not: did you mean temperature?"),
        ("max_length: 90", "max_length counts both"),
        ("do_sample: true, temperature: 0.0", "sampling needs a temperature above 0"),
    ],
)
def test_arguments_of_generation_that_mean_nothing_are_refused(arguments, fact, tasks):
    path = spoil(tasks, "writing", "do_sample: false", arguments)
    refused(path, fact, metrics=METRICS["writing"])


def test_options_that_contradict_the_task_are_refused(tasks):
    refused(tasks.path("choice"), "gen_kwargs are for tasks that", gen_kwargs={"num_beams": 2})
    refused(tasks.path("choice"), "gen_kwargs must be a mapping", gen_kwargs="num_beams=2")
    drawn = {"gen_kwargs": {"temperature": 0.7}, "metrics": METRICS["writing"]}
    refused(tasks.path("writing"), "temperature 0.7, but do_sample is false", **drawn)
    refused(tasks.path("choice"), "fewshot_as_multiturn needs", fewshot_as_multiturn=True)
    refused(tasks.path("choice"), "too_long must be one of", too_long="skip")


def test_code_that_models_write_is_run_only_where_confirmed(tasks):
    path = spoil(tasks, "answer", "output_type:", "unsafe_code: true\noutput_type:")
    refused(path, "unsafe_code", "confirm_run_unsafe_code: true")
    assert build(path, confirm_run_unsafe_code=True).items(Split.SEARCH)


CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("templates", "asked", "fact"),
    [
        (None, True, "the base's tokenizer has none"),
        (CHAT, "tools", "'tools' is asked for and it has one without a name"),
        ({"default": CHAT, "rag": CHAT}, "tools", "choose from default, rag"),
        ({"rag": CHAT}, True, "'default' is not: choose from rag"),
        ("{{ raise_exception('no users here') }}", True, "no users here"),
        ("{% if %}", True, "TemplateSyntaxError"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused(
    templates, asked, fact, tasks, model, tokenizer
):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = templates
    fitness = build(tasks.path("choice"), apply_chat_template=asked)
    with pytest.raises(TaskError, match=re.escape(fact)) as caught:
        fitness.bind(LoadedModel(model, tokenizer))
    assert "\n" not in str(caught.value)


def test_a_metric_that_is_not_a_number_is_refused_with_task_and_metric(tasks, model, tokenizer):
    (tasks.folder / "code.py").write_text(
        "def results(document, answers):\n"
        "    good = answers[0] != ''\n"
        "    return {'fine': 1.0, 'broken': float('nan') if good else 1.0}\n"
    )
    path = spoil(
        tasks,
        "writing",
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}",
        "process_results: !function code.results\nmetric_list:\n"
        "  - {metric: fine, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: broken, aggregation: mean, higher_is_better: true}",
    )
    fitness = build(path, ("fine,whole", "broken,whole"))
    fitness.bind(LoadedModel(model, tokenizer))
    with pytest.raises(FloatingPointError, match=r"writing.yaml: broken,whole is nan for an item"):
        fitness.respond(Split.SEARCH, range(N_SEARCH))


def test_a_metric_that_fails_on_an_empty_answer_is_refused(tasks):
    (tasks.folder / "code.py").write_text(
        "def results(document, answers):\n    return {'exact_match': 1 / len(answers[0])}\n"
    )
    path = spoil(
        tasks, "writing", "metric_list:", "process_results: !function code.results\nmetric_list:"
    )
    refused(path, "ZeroDivisionError", metrics=METRICS["writing"])


def test_a_metric_that_some_items_lack_is_refused(tasks, model, tokenizer):
    (tasks.folder / "code.py").write_text(
        "def results(document, answers):\n"
        "    has = document['label'] or document['question'].endswith(' 0')\n"
        "    return {'acc': 1.0} if has else {}\n"
    )
    path = spoil(
        tasks, "choice", "metric_list:", "process_results: !function code.results\nmetric_list:"
    )
    fitness = build(path)
    fitness.bind(LoadedModel(model, tokenizer))
    with pytest.raises(TaskError, match=r"'acc,none' is missing for an item that begins"):
        fitness.respond(Split.SEARCH, range(N_SEARCH))


def test_a_metric_of_only_some_subtasks_is_refused(tasks):
    path = tasks.write("both", "group: both\ntask: [choice, answer]\n")
    refused(path, "each of its tasks computes, but 'acc_norm' is not", metrics=("acc_norm",))


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"items": {"choise": 3}}, "'choise' is none: did you mean choice?"),
        ({"items": {"choice": 0}}, "at least 1 search items"),
        ({"items": 1}, "1 search items are asked of 2 subtasks with 42 documents"),
        ({"held_out": 67}, "67 held_out items are asked of 2 subtasks with 66 documents"),
    ],
)
def test_numbers_of_items_that_subtasks_cannot_meet_are_refused(options, fact, tasks):
    path = tasks.write("both", "group: both\ntask: [choice, answer]\n")
    refused(path, fact, **options)


def test_the_scores_of_several_tasks_are_combined_from_means_only(tasks):
    mcc = "metric: mcc, aggregation: matthews_corrcoef"
    text = spoiled(tasks, "choice", "metric: acc_norm, aggregation: mean", mcc)
    for name in ("choice", "again"):
        tasks.write(name, text.replace("task: choice", f"task: {name}"))
    path = tasks.write("both", "group: both\ntask: [choice, again]\n")
    refused(path, "'mcc' is no mean in each of them", metrics=("mcc",))


@pytest.mark.parametrize("name", METRICS)
def test_items_that_are_too_long_for_the_model_are_refused(name, tasks, model, tokenizer):
    documents = tasks.split(name, "held_out")
    documents[3]["question"] = "a " * 260
    tasks.write_split(name, "held_out", documents)
    fitness = build(tasks.path(name), METRICS[name])
    with pytest.raises(
        TaskError, match=r"held_out item 3 takes \d+ tokens and the model reads 256"
    ):
        fitness.bind(LoadedModel(model, tokenizer))


def test_a_model_without_tokenizer_is_refused(tasks, model):
    with pytest.raises(TaskError, match="need a tokenizer"):
        build(tasks.path("choice")).bind(LoadedModel(model, None))


def test_an_empty_answer_is_refused(tasks, model, tokenizer):
    documents = tasks.split("answer", "search")
    documents[3]["answer"] = ""
    tasks.write_split("answer", "search", documents)
    path = spoil(
        tasks,
        "answer",
        'doc_to_target: "{{answer}}"',
        'doc_to_target: "{{answer}}"\ntarget_delimiter: ""',
    )
    with pytest.raises(TaskError, match="each answer must have a token"):
        build(path).bind(LoadedModel(model, tokenizer))


@pytest.mark.parametrize("name", METRICS)
def test_a_model_that_computes_nan_gives_no_answers(name, tasks, model, tokenizer):
    """The best choice among NaN, or the text after them, would look like any other answer."""
    fitness = build(tasks.path(name), METRICS[name])
    fitness.bind(LoadedModel(model, tokenizer))
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"not finite|NaN"):
        fitness.respond(Split.SEARCH, range(N_SEARCH))


def test_a_metric_may_be_left_out_where_there_is_one(tasks, model, tokenizer):
    by_name, by_default = (build(tasks.path("answer"), [m]) for m in ("acc", None))
    answers = []
    for fitness in (by_name, by_default):
        fitness.bind(LoadedModel(model, tokenizer))
        answers.append(fitness.respond(Split.SEARCH, range(N_SEARCH)))
    assert np.array_equal(*answers)
    with pytest.raises(
        TaskError, match=r"several, but it does not: choose from acc,none, acc_norm"
    ):
        build(tasks.path("choice"), [None])
