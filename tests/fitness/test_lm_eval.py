import logging
import os
import random
import subprocess
import sys
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from evomerge.datatypes import Split
from evomerge.live_model import LoadedModel
from tests.support.harness import build, simple_evaluate

METRICS = {
    "choice": ("acc", "acc_norm"),
    "answer": ("acc,none",),
    "writing": ("exact_match,whole", "exact_match,first"),
}
N_SEARCH, N_HELD_OUT = 21, 33


def answer_some_right(tasks, model, tokenizer):
    """Make every second answer of the loglikelihood task the one that the model gives itself."""
    documents = tasks.split("answer", "held_out")
    for document in documents[::2]:
        tokens = tokenizer(document["question"], return_tensors="pt")
        with torch.no_grad():
            document["answer"] = tokenizer.decode(model(**tokens).logits[0, -1].argmax()).strip()
    documents = [document for document in documents if document["answer"]]
    tasks.write_split("answer", "held_out", documents)


# lm-eval's numbers


@pytest.mark.parametrize("name", METRICS)
def test_responses_equal_simple_evaluate_item_by_item(name, tasks, model, tokenizer):
    answer_some_right(tasks, model, tokenizer)
    fitness = build(tasks.path(name), METRICS[name])
    fitness.bind(LoadedModel(model, tokenizer))
    n_items = len(fitness.items(Split.HELD_OUT))
    responses = fitness.respond(Split.HELD_OUT, range(n_items))
    scores, samples = simple_evaluate(tasks.path(name), model, tokenizer)
    assert 0 < responses.mean() < 1  # otherwise equality says little
    for number, given in enumerate(METRICS[name]):
        metric, _, chosen = given.partition(",")
        chosen = chosen or "none"
        theirs = {s["doc_id"]: float(s[metric]) for s in samples if s["filter"] == chosen}
        assert responses[:, number].tolist() == [theirs[number] for number in range(n_items)]
        assert responses[:, number].mean() == pytest.approx(scores[f"{metric},{chosen}"], abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_every_request_is_answered_as_by_lm_eval(name, tasks, model, tokenizer):
    fitness = build(tasks.path(name), METRICS[name], batch_size=7)
    fitness.bind(LoadedModel(model, tokenizer))
    fitness.respond(Split.HELD_OUT, range(N_HELD_OUT))
    _, samples = simple_evaluate(tasks.path(name), model, tokenizer)
    theirs = {sample["doc_id"]: [r[0] for r in sample["resps"]] for sample in samples}
    for number, item in enumerate(fitness._items[Split.HELD_OUT]):
        ours = [instance.resps[0] for instance in item.instances]
        if name == "writing":
            assert ours == theirs[number]
        else:
            assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs[number]]
            assert [p for p, _ in ours] == pytest.approx([p for p, _ in theirs[number]], rel=1e-5)


def test_generated_text_follows_the_generation_config_as_in_lm_eval(tasks, model, tokenizer):
    model.generation_config.update(
        repetition_penalty=1.4, do_sample=True, temperature=0.6, top_p=0.9, top_k=20
    )
    fitness = build(tasks.path("writing"), METRICS["writing"])
    fitness.bind(LoadedModel(model, tokenizer))
    fitness.respond(Split.HELD_OUT, range(N_HELD_OUT))
    _, samples = simple_evaluate(tasks.path("writing"), model, tokenizer)
    theirs = {sample["doc_id"]: sample["resps"][0][0] for sample in samples}
    items = fitness._items[Split.HELD_OUT]
    ours = {number: item.instances[0].resps[0] for number, item in enumerate(items)}
    assert ours == theirs
    assert len(set(ours.values())) > 5
    model.generation_config.repetition_penalty = 1.0
    plain = build(tasks.path("writing"), METRICS["writing"])
    plain.bind(LoadedModel(model, tokenizer))
    plain.respond(Split.HELD_OUT, range(N_HELD_OUT))
    assert ours != {
        number: item.instances[0].resps[0]
        for number, item in enumerate(plain._items[Split.HELD_OUT])
    }


def test_a_choice_of_items_equals_simple_evaluate_on_the_same_documents(tasks, model, tokenizer):
    fitness = build(tasks.path("choice"), METRICS["choice"], items=5, held_out=12, seed=4)
    fitness.bind(LoadedModel(model, tokenizer))
    responses = fitness.respond(Split.HELD_OUT, range(12))
    everything = build(tasks.path("choice")).items(Split.HELD_OUT)
    chosen = [everything.index(digest) for digest in fitness.items(Split.HELD_OUT)]
    assert chosen == sorted(set(chosen))
    scores, _ = simple_evaluate(
        tasks.path("choice"), model, tokenizer, samples={"choice": list(chosen)}
    )
    assert responses.mean(axis=0).tolist() == pytest.approx(
        [scores["acc,none"], scores["acc_norm,none"]], abs=1e-6
    )


def test_fewshot_prompts_equal_those_of_simple_evaluate(tasks, model, tokenizer):
    tasks.write_split("choice", "shots", tasks.split("answer", "search"))
    text = tasks.text("choice").replace(
        "{validation:", f"{{train: {tasks.folder}/choice.shots.jsonl, validation:"
    )
    path = tasks.write("choice", text + "training_split: train\n")
    fitness = build(path, num_fewshot=3, seed=11)
    _, samples = simple_evaluate(path, model, tokenizer, fewshot_seed=11, num_fewshot=3)
    theirs = {s["doc_id"]: [tuple(pair) for pair in s["arguments"]] for s in samples}
    for number, item in enumerate(fitness._items[Split.HELD_OUT]):
        assert [instance.args for instance in item.instances] == theirs[number]


def test_fewshot_examples_are_never_items(tasks):
    fitness = build(tasks.path("choice"), items=8, num_fewshot=3)
    questions = {document["question"] for document in tasks.split("choice", "search")}
    for split in Split:
        asked = {item.document["question"] for item in fitness._items[split]}
        for item in fitness._items[split]:
            *shots, last = item.instances[0].args[0].split("\n\n")
            assert len(shots) == 3
            assert last.removesuffix(" =") in asked
            for shot in shots:
                assert shot.partition(" =")[0] in questions - asked


# the path of a candidate


@pytest.mark.parametrize("name", METRICS)
def test_new_weights_in_place_are_seen(name, tasks, model, tokenizer):
    fitness = build(tasks.path(name), METRICS[name])
    fitness.bind(LoadedModel(model, tokenizer))
    before = fitness.respond(Split.HELD_OUT, range(N_HELD_OUT))
    old = [parameter.detach().clone() for parameter in model.parameters()]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    fresh = build(tasks.path(name), METRICS[name])
    fresh.bind(LoadedModel(model, tokenizer))
    after = fitness.respond(Split.HELD_OUT, range(N_HELD_OUT))
    assert after.tolist() == fresh.respond(Split.HELD_OUT, range(N_HELD_OUT)).tolist()
    with torch.no_grad():
        for parameter, weights in zip(model.parameters(), old, strict=True):
            parameter.copy_(weights)
    again = fitness.respond(Split.HELD_OUT, range(N_HELD_OUT))
    assert again.tolist() == before.tolist()
    if name != "answer":
        assert after.tolist() != before.tolist()


@pytest.mark.parametrize("name", METRICS)
def test_some_items_are_answered_in_their_order(name, tasks, model, tokenizer):
    fitness = build(tasks.path(name), METRICS[name], batch_size=4)
    fitness.bind(LoadedModel(model, tokenizer))
    everything = fitness.respond(Split.SEARCH, range(N_SEARCH))
    for items in ((), (7,), (3, 1, 20, 1), tuple(range(20, -1, -1))):
        responses = fitness.respond(Split.SEARCH, items)
        assert responses.shape == (len(items), len(METRICS[name]))
        assert responses.tolist() == everything[list(items)].tolist()


@pytest.mark.parametrize("name", METRICS)
def test_a_second_candidate_repeats_no_preparation(name, tasks, model, tokenizer, monkeypatch):
    from lm_eval import utils

    fitness = build(tasks.path(name), METRICS[name])
    fitness.bind(LoadedModel(model, tokenizer))
    first = fitness.respond(Split.SEARCH, range(N_SEARCH))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr(type(tokenizer), "_encode_plus", refuse)
    monkeypatch.setattr(utils, "apply_template", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    for engine in (fitness._asking.likelihood, fitness._asking.generation):
        if engine is not None:
            monkeypatch.setattr(engine, "plan", refuse)
    assert fitness.respond(Split.SEARCH, range(N_SEARCH)).tolist() == first.tolist()


def test_answers_do_not_depend_on_the_batches(tasks, model, tokenizer):
    responses = []
    for batch_size, max_batch_tokens in ((64, 16384), (5, 16384), (64, 1)):
        fitness = build(
            tasks.path("writing"),
            METRICS["writing"],
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
        )
        fitness.bind(LoadedModel(model, tokenizer))
        responses.append(fitness.respond(Split.SEARCH, range(N_SEARCH)).tolist())
    assert responses[0] == responses[1] == responses[2]


def test_only_so_many_plans_are_kept(tasks, model, tokenizer):
    fitness = build(tasks.path("choice"))
    fitness.bind(LoadedModel(model, tokenizer))
    for item in range(N_SEARCH):
        fitness.respond(Split.SEARCH, (item,))
    assert len(fitness._asking.plans) == 8


def test_respond_needs_a_bound_model(tasks):
    with pytest.raises(RuntimeError, match="bind"):
        build(tasks.path("choice")).respond(Split.SEARCH, (0,))


def test_nothing_of_the_process_is_changed(tasks, model, tokenizer):
    import lm_eval  # noqa: F401  # its import sets HF_XET_HIGH_PERFORMANCE

    weights = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002  # the global state is what is checked
    settings = (
        dict(os.environ),
        logging.getLogger("lm_eval").level,
        datasets.are_progress_bars_disabled(),
        torch.is_grad_enabled(),
    )
    for name, metrics in METRICS.items():
        fitness = build(tasks.path(name), metrics)
        fitness.bind(LoadedModel(model, tokenizer))
        fitness.respond(Split.SEARCH, range(3))
    assert weights == {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002  # the global state is what is checked
        torch.get_rng_state().tolist(),
    )
    assert settings == (
        dict(os.environ),
        logging.getLogger("lm_eval").level,
        datasets.are_progress_bars_disabled(),
        torch.is_grad_enabled(),
    )


def test_nothing_is_printed(tasks, model, tokenizer, capfd):
    for name, metrics in METRICS.items():
        fitness = build(tasks.path(name), metrics)
        fitness.bind(LoadedModel(model, tokenizer))
        fitness.respond(Split.SEARCH, range(3))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_torch_and_lm_eval_are_not_loaded_before_they_are_needed():
    modules = "fitness.lm_eval, fitness.python_callable, fitness.estimators"
    check = f"import sys, {modules}; print({{'torch', 'lm_eval', 'datasets'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# splits


def test_two_splits_are_search_and_held_out_in_the_order_of_the_documents(tasks):
    fitness = build(tasks.path("choice"))
    for split in Split:
        documents = tasks.split("choice", split.value)
        assert [item.document["question"] for item in fitness._items[split]] == [
            document["question"] for document in documents
        ]
        assert len(set(fitness.items(split))) == len(documents)


def test_the_same_seed_draws_the_same_items_and_more_items_keep_the_fewer(tasks):
    fewer = build(tasks.path("choice"), items=6, held_out=0, seed=2)
    assert fewer.items(Split.HELD_OUT) == ()
    assert fewer.items(Split.SEARCH) == build(tasks.path("choice"), items=6, seed=2).items(
        Split.SEARCH
    )
    more = build(tasks.path("choice"), items=9, seed=2).items(Split.SEARCH)
    assert set(fewer.items(Split.SEARCH)) < set(more)
    other = build(tasks.path("choice"), items=6, seed=3).items(Split.SEARCH)
    assert fewer.items(Split.SEARCH) != other


def test_one_split_is_divided_without_overlap(tasks):
    documents = tasks.split("choice", "held_out")
    tasks.write_split("choice", "held_out", [*documents, *documents[:7]])
    text = tasks.text("choice").replace("validation_split: validation\n", "")
    path = tasks.write("choice", text)
    for counts, expected in (
        ((None, None), (17, 16)),
        ((20, None), (20, 13)),
        ((None, 20), (13, 20)),
        ((5, 6), (5, 6)),
        ((33, 0), (33, 0)),
    ):
        fitness = build(path, items=counts[0], held_out=counts[1])
        search, held_out = fitness.items(Split.SEARCH), fitness.items(Split.HELD_OUT)
        assert (len(search), len(held_out)) == expected
        assert len({*search, *held_out}) == sum(expected)


def test_a_digest_is_of_the_content_alone(tasks):
    before = build(tasks.path("choice"))
    documents = tasks.split("choice", "search")
    documents[4]["question"] += " x"
    documents[5]["label"] = 1 - documents[5]["label"]
    documents[6]["unused"] = 1
    tasks.write_split("choice", "search", [*documents[1:], documents[0]])
    after = build(tasks.path("choice"))
    expected = list(before.items(Split.SEARCH))
    changed = list(after.items(Split.SEARCH))
    changed = [changed[-1], *changed[:-1]]
    assert [number for number in range(N_SEARCH) if changed[number] != expected[number]] == [4, 5]


def test_a_folder_with_one_task_stands_for_it(tasks):
    for name in ("answer", "writing"):
        (tasks.folder / f"{name}.yaml").unlink()
    assert build(str(tasks.folder)).items(Split.SEARCH) == build(tasks.path("choice")).items(
        Split.SEARCH
    )
