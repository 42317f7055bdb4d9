"""The same numbers as `lm_eval.simple_evaluate`, for all that a task may ask and be scored by."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.datatypes import Objective, Split, Statistic
from evomerge.live_model import LoadedModel
from fitness.lm_eval import LmEvalFitness
from tests.support.harness import build, evaluate_all, scores_of, simple_evaluate

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}"
    "{% if not loop.last %}\n{% elif continue_final_message is not true %}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
)
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: byte_perplexity}
  - {metric: bits_per_byte}
"""
CODE = """
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


def halves(document, answers):
    text = answers[0]
    nan = float("nan") if "a" in document["question"] else float(len(text))
    return {"size": len(text), "some": nan, "strict": [c in "abc" for c in text + "z"]}


def flat_mean(lists):
    flat = [one for numbers in lists for one in numbers]
    return sum(flat) / len(flat)


class Both(ConfigurableTask):
    '''Writes an answer, and scores the right one beside it: two kinds of requests.'''

    def __init__(self, config=None):
        config = {name: value for name, value in config.items() if name != "class"}
        super().__init__(config=config)

    def construct_requests(self, doc, ctx, apply_chat_template=False, chat_template=None, **kwargs):
        write = (ctx, {"until": ["\\n"], "max_gen_toks": 5})
        return [
            Instance("loglikelihood", doc, (ctx, " b"), 1, **kwargs),
            Instance("generate_until", doc, write, 0, **kwargs),
        ]

    def process_results(self, doc, results):
        text, (likelihood, _) = results
        return {"length": len(text), "likely": likelihood}

    def aggregation(self):
        return {"length": lambda lengths: sum(lengths) / len(lengths)}

    def higher_is_better(self):
        return {"length": True, "likely": True}
"""


PLAIN = """
import json
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task


class Plain(Task):
    VERSION = 0

    def download(self, *args, **kwargs):
        lines = (Path(__file__).parent / "choice.{}.jsonl").read_text().splitlines()
        self.documents = [json.loads(line) for line in lines]

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.documents

    def doc_to_text(self, doc):
        return doc["question"] + " is"

    def doc_to_target(self, doc):
        return " b"

    def construct_requests(self, doc, ctx, apply_chat_template=False, chat_template=None, **kwargs):
        return Instance("loglikelihood", doc, (ctx, self.doc_to_target(doc)), 0, **kwargs)

    def process_results(self, doc, results):
        return {"likely": results[0][0]}

    def aggregation(self):
        return {"likely": mean}

    def higher_is_better(self):
        return {"likely": True}
"""


def bound(path: str, metrics: Any, model: Any, tokenizer: Any, **options: Any) -> LmEvalFitness:
    fitness = build(path, metrics, **options)
    fitness.bind(LoadedModel(model, tokenizer))
    return fitness


def asked(fitness: LmEvalFitness) -> list[list[Any]]:
    """What held-out items are asked, as lm-eval's samples have it."""
    return [[one.args for one in item.instances] for item in fitness._items[Split.HELD_OUT]]


def answered(fitness: LmEvalFitness) -> list[list[Any]]:
    return [[one.resps for one in item.instances] for item in fitness._items[Split.HELD_OUT]]


def of(samples: list[dict[str, Any]], key: str) -> list[Any]:
    return [one[key] for one in samples if one["filter"] == samples[0]["filter"]]


def changed(tasks: Any, name: str, *pairs: tuple[str, str], to: str | None = None) -> str:
    text = tasks.text(name)
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return tasks.write(to or name, text)


# metrics


def test_rolling_likelihoods_and_their_perplexities(tasks, model, tokenizer):
    rng = np.random.default_rng(0)
    lengths = {"search": [3, 9], "held_out": [5, 700, 256, 255, 257, 1, 511, 512, 513]}
    for split, sizes in lengths.items():
        texts = ["".join(rng.choice(list("abc d\n"), size)) for size in sizes]
        tasks.write_split("choice", split, [{"text": text} for text in texts])
    text = tasks.text("choice").split("output_type")[0] + ROLLING
    path = tasks.write("choice", text)
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    fitness = bound(path, names, model, tokenizer, batch_size=3)
    assert fitness.objectives[0].statistic == Statistic("fitness.statistics:weighted_perplexity", 2)
    scores = scores_of(fitness)
    theirs, samples = simple_evaluate(path, model, tokenizer)
    assert scores == pytest.approx([theirs[f"{name},none"] for name in names], rel=1e-6)
    ours = [resps[0][0] for resps in answered(fitness)]
    assert ours == pytest.approx([resps[0][0] for resps in of(samples, "resps")], rel=1e-6)


def test_perplexity_of_answers(tasks, model, tokenizer):
    added = "  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}\n"
    path = tasks.write("answer", tasks.text("answer") + added)
    fitness = bound(path, ("perplexity", "acc"), model, tokenizer)
    theirs, _ = simple_evaluate(path, model, tokenizer)
    expected = [theirs["perplexity,none"], theirs["acc,none"]]
    assert scores_of(fitness) == pytest.approx(expected, rel=1e-6)


def test_metrics_of_choices(tasks, model, tokenizer):
    metrics = {
        "f1": "f1",
        "mcc": "matthews_corrcoef",
        "brier_score": "brier_score",
        "acc_bytes": "mean",
        "acc_mutual_info": "mean",
        "exact_match": "mean",
    }
    for split in ("search", "held_out"):
        documents = tasks.split("choice", split)
        for document in documents:
            document["choices"] = document["choices"][:2]
        tasks.write_split("choice", split, documents)
    listed = "".join(
        f"  - {{metric: {name}, aggregation: {how}, higher_is_better: true}}\n"
        for name, how in metrics.items()
    )
    path = tasks.write("choice", tasks.text("choice") + listed)
    fitness = bound(path, tuple(metrics), model, tokenizer)
    scores = scores_of(fitness)
    theirs, samples = simple_evaluate(path, model, tokenizer)
    assert scores == pytest.approx([theirs[f"{name},none"] for name in metrics], rel=1e-6)
    assert len(samples[0]["resps"]) == 4  # mutual information asks each choice twice
    assert len(set(scores)) == len(scores)


def test_choices_of_the_context_and_several_right_answers(tasks, model, tokenizer):
    """As in Winogrande, and in tasks whose target is a list."""
    given = '"{{choices}}"\ndoc_to_target: "{{label}}"'
    path = changed(
        tasks,
        "choice",
        ('"{{question}} ="', '"{{label}}"'),
        (given, '"{{choices}}"\ndoc_to_target: "{{question}}"'),
        to="context",
    )
    text = tasks.text("choice").replace(given, '"{{choices}}"\ndoc_to_target: "[{{label}}, 1]"')
    for each in (path, tasks.write("choice", text)):
        fitness = bound(each, ("acc", "acc_norm"), model, tokenizer)
        theirs, samples = simple_evaluate(each, model, tokenizer)
        expected = [theirs["acc,none"], theirs["acc_norm,none"]]
        assert scores_of(fitness) == pytest.approx(expected, abs=1e-6)
        assert asked(fitness) == [
            [tuple(one) for one in every] for every in of(samples, "arguments")
        ]


def test_scores_of_translations(tasks, model, tokenizer):
    answers = ["1 1 b a 1", "d = a", "a b c d e f", "b b b"]
    for split in ("search", "held_out"):
        documents = tasks.split("writing", split)
        for number, document in enumerate(documents):
            document["answer"] = answers[number % 4]
        tasks.write_split("writing", split, documents)
    metrics = {"bleu": "bleu", "chrf": "chrf", '"chrf++"': "chrf++", "ter": "ter"}
    listed = "\n".join(f"  - {{metric: {m}, aggregation: {m}}}" for m in metrics)
    path = changed(
        tasks,
        "writing",
        ("  - {metric: exact_match, aggregation: mean, higher_is_better: true}", listed),
        ('until: ["a", "5 ", "\\n"], max_gen_toks: 12', 'until: ["\\n"], max_gen_toks: 20'),
    )
    names = [f"{name},whole" for name in metrics.values()]
    fitness = bound(path, names, model, tokenizer)
    theirs, _ = simple_evaluate(path, model, tokenizer)
    scores = scores_of(fitness)
    assert scores == pytest.approx([theirs[name] for name in names], rel=1e-6)
    assert all(score > 0 for score in scores)


def test_metrics_of_the_user_s_own_function(tasks, model, tokenizer):
    """A median, a mean of the items that have a number, and IFEval's mean over lists."""
    (tasks.folder / "code.py").write_text(CODE)
    path = changed(
        tasks,
        "writing",
        (
            "  - {metric: exact_match, aggregation: mean, higher_is_better: true}",
            "  - {metric: size, aggregation: median, higher_is_better: true}\n"
            "  - {metric: some, aggregation: nanmean, higher_is_better: true}\n"
            "  - {metric: strict, aggregation: !function code.flat_mean, higher_is_better: true}",
        ),
        ("output_type:", "process_results: !function code.halves\noutput_type:"),
    )
    names = ("size,whole", "some,whole", "strict,whole")
    fitness = bound(path, names, model, tokenizer)
    theirs, _ = simple_evaluate(path, model, tokenizer)
    scores = scores_of(fitness)
    assert scores == pytest.approx([theirs[name] for name in names], rel=1e-6)
    assert 0 < scores[2] < 1


def test_a_python_task_that_asks_in_two_ways(tasks, model, tokenizer):
    (tasks.folder / "code.py").write_text(CODE)
    text = tasks.text("writing").replace("task: writing", "task: both")
    path = tasks.write("both", text.split("filter_list")[0] + "class: !function code.Both\n")
    fitness = bound(path, ("length", "likely"), model, tokenizer, batch_size=5)
    scores = scores_of(fitness)
    theirs, samples = simple_evaluate(path, model, tokenizer)
    assert scores == pytest.approx([theirs["length,none"], theirs["likely,none"]], rel=1e-6)
    ours = [[resps[0] for resps in item] for item in answered(fitness)]
    assert [text for text, _ in ours] == [resps[0][0] for resps in of(samples, "resps")]
    assert len({text for text, _ in ours}) > 3


def test_a_python_task_without_a_configuration(tasks, model, tokenizer):
    (tasks.folder / "plain.py").write_text(PLAIN.replace("{}", "held_out"))
    path = tasks.write("plain", "task: plain\nclass: !function plain.Plain\n")
    fitness = bound(path, (None,), model, tokenizer, items=11)
    assert len(fitness.items(Split.HELD_OUT)) == 22
    documents = tasks.split("choice", "held_out")
    chosen = [documents.index(item.document) for item in fitness._items[Split.HELD_OUT]]
    theirs, _ = simple_evaluate(path, model, tokenizer, samples={"plain": chosen})
    assert scores_of(fitness) == pytest.approx([theirs["likely,none"]], rel=1e-6)


# prompts


@pytest.mark.parametrize(
    ("name", "multiturn", "system"),
    [
        ("choice", False, "be brief"),
        ("choice", True, None),
        ("writing", False, None),
        ("writing", True, "be brief"),
    ],
)
def test_chat_templates_with_few_shot_examples(name, multiturn, system, tasks, model, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    tasks.write_split(name, "shots", tasks.split("answer", "search"))
    shots = f"{{train: {tasks.folder}/{name}.shots.jsonl, validation:"
    path = changed(
        tasks, name, ("{validation:", shots), ("output_type", "training_split: train\noutput_type")
    )
    options = {
        "num_fewshot": 2,
        "apply_chat_template": True,
        "fewshot_as_multiturn": multiturn,
        "system_instruction": system,
    }
    metric = {"choice": "acc,none", "writing": "exact_match,first"}[name]
    fitness = bound(path, (metric,), model, tokenizer, seed=11, held_out=12, **options)
    chosen = [
        build(path, (metric,)).items(Split.HELD_OUT).index(d) for d in fitness.items(Split.HELD_OUT)
    ]
    samples_of = {name: chosen} if len(chosen) < 33 else None
    theirs, samples = simple_evaluate(
        path, model, tokenizer, fewshot_seed=11, samples=samples_of, **options
    )
    assert scores_of(fitness) == pytest.approx([theirs[metric]], abs=1e-6)
    assert asked(fitness) == [[tuple(one) for one in every] for every in of(samples, "arguments")]
    prompt = asked(fitness)[0][0][0]
    assert prompt.count("u: ") == (3 if multiturn else 1)
    assert ("s: be brief" in prompt) == (system is not None)


def test_a_chat_template_without_system_messages_gets_the_others_only(tasks, model, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT
    )
    options = {"apply_chat_template": True, "system_instruction": "be brief"}
    fitness = bound(tasks.path("choice"), ("acc",), model, tokenizer, **options)
    theirs, samples = simple_evaluate(tasks.path("choice"), model, tokenizer, **options)
    assert scores_of(fitness) == pytest.approx([theirs["acc,none"]], abs=1e-6)
    assert asked(fitness) == [[tuple(one) for one in every] for every in of(samples, "arguments")]
    assert "takes no system messages" in fitness.warnings[-1]


def test_a_chat_template_is_chosen_by_name(tasks, model, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = {"default": "{{ messages[0]['content'] }}", "chat": CHAT}
    by_name = bound(tasks.path("choice"), ("acc",), model, tokenizer, apply_chat_template="chat")
    tokenizer.chat_template = CHAT
    alone = bound(tasks.path("choice"), ("acc",), model, tokenizer, apply_chat_template=True)
    assert asked(by_name) == asked(alone)


def test_a_system_instruction_without_a_chat(tasks, model, tokenizer):
    fitness = bound(tasks.path("choice"), ("acc",), model, tokenizer, system_instruction="be brief")
    _, samples = simple_evaluate(
        tasks.path("choice"), model, tokenizer, system_instruction="be brief"
    )
    assert asked(fitness) == [[tuple(one) for one in every] for every in of(samples, "arguments")]
    assert "be brief" in asked(fitness)[0][0][0]


@pytest.mark.parametrize("name", ["choice", "writing"])
def test_items_that_are_too_long_lose_their_beginning_where_asked(name, tasks, model, tokenizer):
    documents = tasks.split(name, "held_out")
    for number in range(0, 20, 3):
        documents[number]["question"] = "a c " * (110 + 6 * number) + documents[number]["question"]
    tasks.write_split(name, "held_out", documents)
    metric = {"choice": "acc_norm,none", "writing": "exact_match,first"}[name]
    fitness = bound(tasks.path(name), (metric,), model, tokenizer, too_long="truncate_left")
    theirs, samples = simple_evaluate(tasks.path(name), model, tokenizer)
    assert scores_of(fitness) == pytest.approx([theirs[metric]], abs=1e-6)
    for ours, resps in zip(answered(fitness), of(samples, "resps"), strict=True):
        if name == "writing":
            assert ours == resps
        else:
            expected = [likelihood for ((likelihood, _),) in resps]
            assert [likelihood for ((likelihood, _),) in ours] == pytest.approx(expected, rel=1e-5)


# generation


@pytest.mark.parametrize(
    "arguments",
    [
        # A stop string that occurs would end lm-eval's beams by what others of the batch write.
        {"num_beams": 3, "do_sample": False, "until": ["never"]},
        {"repetition_penalty": 1.5, "max_gen_toks": 7, "until": ["7"]},
        {"do_sample": True, "temperature": 1e-7},
        {"no_repeat_ngram_size": 2, "max_new_tokens": 9},
    ],
)
def test_arguments_of_generation(arguments, tasks, model, tokenizer):
    path, metrics = tasks.path("writing"), ("exact_match,first",)
    fitness = bound(path, metrics, model, tokenizer, gen_kwargs=arguments)
    scores = scores_of(fitness)
    theirs, samples = simple_evaluate(path, model, tokenizer, gen_kwargs=arguments)
    assert scores == pytest.approx([theirs["exact_match,first"]], abs=1e-6)
    assert answered(fitness) == of(samples, "resps")


VOTE = """  - name: vote
    filter:
      - {function: regex, regex_pattern: "([a-z0-9])", group_select: 0}
      - {function: majority_vote}
      - {function: take_first}
  - name: two
    filter:
      - {function: take_first_k, k: 2}
      - {function: take_first}
"""


def test_repeats_of_a_greedy_answer_are_the_same_answer(tasks, model, tokenizer):
    path = tasks.write("writing", tasks.text("writing") + VOTE + "repeats: 3\n")
    names = ("exact_match,vote", "exact_match,two")
    fitness = bound(path, names, model, tokenizer)
    scores = scores_of(fitness)
    theirs, samples = simple_evaluate(path, model, tokenizer)
    assert scores == pytest.approx([theirs[name] for name in names], abs=1e-6)
    assert answered(fitness) == of(samples, "resps")


def test_repeats_of_a_sampled_answer_differ_and_can_be_repeated(tasks, model, tokenizer):
    path = tasks.write("writing", tasks.text("writing") + VOTE + "repeats: 5\n")
    sampled = {"do_sample": True, "temperature": 1.0}
    names = ("exact_match,vote", "exact_match,two")
    answers = []
    for seed, batch_size in ((1, 64), (1, 4), (2, 64)):
        fitness = bound(
            path, names, model, tokenizer, gen_kwargs=sampled, seed=seed, batch_size=batch_size
        )
        fitness.respond(Split.HELD_OUT, range(33))
        answers.append(copy.deepcopy(answered(fitness)))
    assert all(len(resps) == 5 for ((resps),) in answers[0])
    assert sum(len(set(resps)) > 1 for (resps,) in answers[0]) > 20
    assert answers[0] == answers[1] != answers[2]
    some = fitness.respond(Split.HELD_OUT, (7, 3))
    assert some.tolist() == fitness.respond(Split.HELD_OUT, range(33))[[7, 3]].tolist()


def test_generation_that_never_ends_costs_only_max_gen_toks(tasks, model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = -100 * model.lm_head.weight.mean(dim=0)
    path = changed(tasks, "writing", ('until: ["a", "5 ", "\\n"]', 'until: ["never"]'))
    fitness = bound(path, ("exact_match,whole",), model, tokenizer)
    forwards = []
    handle = model.register_forward_hook(lambda *_: forwards.append(1))
    fitness.respond(Split.HELD_OUT, range(33))
    handle.remove()
    assert 1 <= len(forwards) <= 12
    _, samples = simple_evaluate(path, model, tokenizer)
    assert answered(fitness) == of(samples, "resps")


# groups


def group(tasks: Any, by_size: bool, **counts: int) -> str:
    """A group of a task and a nested group of two more, of different sizes."""
    for name in ("other", "third"):
        for split in ("search", "held_out"):
            documents = tasks.split("choice", split)[: counts.get(name, 9)]
            for document in documents:
                document["question"] = f"{name[0]} " + document["question"]
            tasks.write_split(name, split, documents)
        tasks.write(
            name,
            tasks.text("choice")
            .replace("task: choice", f"task: {name}")
            .replace("choice.", f"{name}."),
        )
    tasks.write("inner", "group: inner\ntask: [other, third]\n")
    return tasks.write(
        "all",
        "group: all\ntask: [choice, inner]\naggregate_metric_list:\n"
        f"  - {{metric: acc, weight_by_size: {by_size}}}\n"
        "  - {metric: acc_norm, weight_by_size: true}\n",
    )


@pytest.mark.parametrize("by_size", [True, False])
def test_the_score_of_a_group(by_size, tasks, model, tokenizer):
    path = group(tasks, by_size, other=20, third=5)
    fitness = bound(path, ("acc", "acc_norm"), model, tokenizer)
    results = evaluate_all("all", model, tokenizer, include_path=str(tasks.folder))
    theirs = results["groups"]["all"]
    assert scores_of(fitness) == pytest.approx(
        [theirs["acc,none"], theirs["acc_norm,none"]], abs=1e-6
    )
    target = "mean" if by_size else "fitness.statistics:mean_of_subtasks"
    assert [objective.statistic.target for objective in fitness.objectives] == [target, "mean"]
    means = [results["results"][name]["acc,none"] for name in ("choice", "other", "third")]
    assert len(set(means)) == 3
    assert len(fitness.items(Split.HELD_OUT)) == 33 + 20 + 5


def test_a_group_s_items_are_those_of_its_tasks_one_after_the_other(tasks, model, tokenizer):
    path = group(tasks, by_size=False, other=20, third=5)
    fitness = bound(path, ("acc", "acc_norm"), model, tokenizer)
    everything = fitness.respond(Split.HELD_OUT, range(58))
    assert everything[:, 0].tolist() == [0] * 33 + [1] * 20 + [2] * 5
    alone = bound(tasks.path("other"), ("acc", "acc_norm"), model, tokenizer)
    assert fitness.items(Split.HELD_OUT)[33:53] == alone.items(Split.HELD_OUT)
    assert everything[33:53, 1:].tolist() == alone.respond(Split.HELD_OUT, range(20)).tolist()
    some = (57, 2, 40, 41, 3)
    assert fitness.respond(Split.HELD_OUT, some).tolist() == everything[list(some)].tolist()


def test_a_name_a_folder_and_a_path_stand_for_the_same_group(tasks, model, tokenizer):
    path = group(tasks, by_size=False)
    by_path = build(path)
    by_name = build("all", include_path=str(tasks.folder))
    by_folder = build(str(tasks.folder))
    for split in Split:
        assert by_path.items(split) == by_name.items(split) == by_folder.items(split)
    assert by_path.settings == by_name.settings == by_folder.settings
    inner = build("inner", include_path=str(tasks.folder))
    assert inner.items(Split.SEARCH) == by_path.items(Split.SEARCH)[21:]


def test_a_folder_of_tasks_and_a_tag_count_each_item_the_same(tasks, model, tokenizer):
    (tasks.folder / "writing.yaml").unlink()
    folder = bound(str(tasks.folder), ("acc",), model, tokenizer)
    for name in ("answer", "choice"):
        tasks.write(name, tasks.text(name) + "tag: mine\n")
    tag = bound("mine", ("acc",), model, tokenizer, include_path=str(tasks.folder))
    both = evaluate_all("mine", model, tokenizer, include_path=str(tasks.folder))["results"]
    expected = (both["answer"]["acc,none"] + both["choice"]["acc,none"]) / 2
    assert scores_of(folder) == scores_of(tag) == [pytest.approx(expected, abs=1e-6)]


def test_a_number_of_items_is_divided_by_the_sizes_of_the_tasks(tasks):
    path = group(tasks, by_size=True, other=14, third=7)  # of 21, 14 and 7 search items
    assert [len(c) for c in counts_of(build(path, items=12))] == [6, 4, 2]
    assert [len(c) for c in counts_of(build(path, items={"choice": 3, "third": 1}))] == [3, 14, 1]
    single = {"choice": 4, "other": 0, "third": 5}
    assert [len(c) for c in counts_of(build(path, held_out=single), Split.HELD_OUT)] == [4, 0, 5]
    assert build(path, held_out=0).items(Split.HELD_OUT) == ()


def test_a_group_whose_tasks_have_one_split_each_is_divided(tasks):
    path = group(tasks, by_size=True, other=20, third=9)
    for name in ("choice", "other", "third"):
        changed(tasks, "choice", ("validation_split: validation\n", ""), to=name)
        text = (tasks.folder / f"{name}.yaml").read_text()
        tasks.write(
            name, text.replace("choice.", f"{name}.").replace("task: choice", f"task: {name}")
        )
    for options, search, held_out in (
        ({"items": 20, "held_out": 20}, [11, 6, 3], [10, 7, 3]),
        ({"items": 20}, [11, 6, 3], [22, 14, 6]),
        ({"held_out": 10}, [27, 17, 8], [6, 3, 1]),
        ({}, [17, 10, 5], [16, 10, 4]),
    ):
        fitness = build(path, **options)
        assert [len(one) for one in counts_of(fitness)] == search
        assert [len(one) for one in counts_of(fitness, Split.HELD_OUT)] == held_out


def counts_of(fitness: LmEvalFitness, split: Split = Split.SEARCH) -> list[list[str]]:
    items = fitness._items[split]
    return [[item.digest for item in items if item.subtask == number] for number in range(3)]


def test_few_shot_examples_of_a_group_are_those_of_each_task(tasks, model, tokenizer):
    path = group(tasks, by_size=True)
    fitness = build(path, items=12, num_fewshot=2, held_out=12)
    for split in Split:
        for item in fitness._items[split]:
            *shots, last = item.instances[0].args[0].split("\n\n")
            mark = {0: "", 1: "o ", 2: "t "}[item.subtask]
            assert all(shot.startswith(mark) for shot in (*shots, last))
            assert len(shots) == 2


# an exported copy


def test_scores_equal_those_of_an_exported_copy(tasks, model, tokenizer, tmp_path):
    """As a user would check a merge: saved, loaded by lm-eval itself, on its own terms."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks.folder.joinpath("copy").mkdir()
    model.save_pretrained(tasks.folder / "copy")
    tokenizer.save_pretrained(tasks.folder / "copy")
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tasks.folder / "copy"), "dtype": "float32"},
        device="cpu",
        batch_size=4,
        tasks=[tasks.path(name) for name in ("answer", "choice", "writing")],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    for name, metric in (
        ("answer", "acc,none"),
        ("choice", "acc_norm,none"),
        ("writing", "exact_match,first"),
    ):
        fitness = bound(tasks.path(name), (metric,), model, tokenizer)
        assert scores_of(fitness) == pytest.approx([results[name][metric]], abs=1e-6)


def test_objectives_keep_what_they_were_given(tasks):
    worst = Objective("o", worst=0.25)
    fitness = LmEvalFitness((worst,), task=tasks.path("choice"), metrics=("acc",))
    assert fitness.objectives == (worst,)
