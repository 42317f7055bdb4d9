import inspect
import re
import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from evomerge.datatypes import Objective, Split
from evomerge.errors import TaskError
from evomerge.live_model import LoadedModel
from fitness.python_callable import PythonFitness

ITEMS = [{"prompt": f"question {number}", "size": number} for number in range(10)]
FUNCTIONS = """
import numpy as np
import torch

def size(model, tokenizer, items, factor=1.0):
    assert not model.training and not torch.is_grad_enabled()
    return [float(item["size"] * factor * model.weight) for item in items]

def two(model, tokenizer, items):
    return torch.tensor([[item["size"], -item["size"]] for item in items], dtype=torch.bfloat16)

def column(model, tokenizer, items):
    return [[item["size"]] for item in items]

def too_few(model, tokenizer, items):
    return [1.0] * (len(items) + 1)

def words(model, tokenizer, items):
    return ["good" for item in items]

def ragged(model, tokenizer, items):
    return [[1.0], [2.0, 3.0]]

def infinite(model, tokenizer, items):
    return [float("inf")] * len(items)

def no_items(model, tokenizer):
    return []

number = 3

class Pool:
    def __init__(self, n_search=6, n_held_out=3, factor=1.0, kind=float):
        self.counts = {"search": n_search, "held_out": n_held_out}
        self.factor = factor

    def items(self, split):
        start = 0 if split == "search" else 100
        numbers = range(start, start + self.counts[split])
        return [{"tag": (n, "x"), "image": np.full((2, 2), n)} for n in numbers]

    def respond(self, model, tokenizer, items):
        assert not model.training and not torch.is_grad_enabled()
        return [torch.tensor(item["image"].sum() * self.factor) * model.weight for item in items]

pool = Pool(factor=3.0)

class WithoutItems:
    def respond(self, model, tokenizer, items):
        return []

class WithoutRespond:
    def items(self, split):
        return [1]

class Answers(WithoutRespond):
    def respond(self, model):
        return []

class Given:
    def __init__(self, given):
        self.given = given

    def items(self, split):
        return self.given if split == "search" else []

    def respond(self, model, tokenizer, items):
        return torch.arange(len(items))

class Strange:
    pass

class Named:
    digest = "a name"

strange, named = Given([1, [Strange()]]), Given([{"digest": "b", "it": Strange()}, Named()])
text, nothing, one_number = Given("abc"), Given([]), Given(7)
"""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "user_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "user_functions", raising=False)
    return tmp_path


def write(folder: Any, name: str, items: list[dict[str, Any]]) -> str:
    import json

    path = folder / name
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def build(folder: Any, function: str, n_objectives: int = 1, **options: Any) -> PythonFitness:
    objectives = tuple(Objective(f"o{number}") for number in range(n_objectives))
    options.setdefault("items", write(folder, "items.jsonl", ITEMS))
    return PythonFitness(objectives, callable=f"user_functions:{function}", **options)


def test_the_function_answers_the_items_that_are_asked_in_their_order(folder):
    fitness = build(folder, "size", arguments={"factor": 2.0})
    model = Model().train()
    fitness.bind(LoadedModel(model, None))
    assert fitness.respond(Split.SEARCH, (4, 0, 9)).tolist() == [[8.0], [0.0], [18.0]]
    with torch.no_grad():
        model.weight.mul_(10)
    assert fitness.respond(Split.SEARCH, (4,)).tolist() == [[80.0]]
    assert fitness.respond(Split.SEARCH, ()).shape == (0, 1)


@pytest.mark.parametrize(("function", "n_objectives"), [("two", 2), ("column", 1)])
def test_several_objectives_and_tensors_are_taken(function, n_objectives, folder):
    fitness = build(folder, function, n_objectives)
    fitness.bind(LoadedModel(Model(), None))
    expected = [[3.0, -3.0][:n_objectives], [1.0, -1.0][:n_objectives]]
    assert fitness.respond(Split.SEARCH, (3, 1)).tolist() == expected


def test_numbers_that_are_not_finite_pass(folder):
    fitness = build(folder, "infinite")
    fitness.bind(LoadedModel(Model(), None))
    assert np.isinf(fitness.respond(Split.SEARCH, (0, 1))).all()


def test_held_out_items_come_from_a_second_file_or_are_drawn(folder):
    other = write(folder, "other.jsonl", [{"prompt": "another"}])
    assert len(build(folder, "size", held_out=other).items(Split.HELD_OUT)) == 1
    assert build(folder, "size").items(Split.HELD_OUT) == ()
    drawn = build(folder, "size", held_out=4, seed=1)
    assert (len(drawn.items(Split.SEARCH)), len(drawn.items(Split.HELD_OUT))) == (6, 4)
    assert not set(drawn.items(Split.SEARCH)) & set(drawn.items(Split.HELD_OUT))
    again = build(folder, "size", held_out=4, seed=1)
    assert drawn.items(Split.SEARCH) == again.items(Split.SEARCH)


@pytest.mark.parametrize(
    ("function", "n_objectives", "fact"),
    [
        ("too_few", 1, r"the shape \(1,\) or \(1, 1\), but it has \(2,\)"),
        ("size", 2, r"2 objectives must have the shape \(1, 2\), but it has \(1,\)"),
        ("words", 1, "the answer must be numbers"),
        ("ragged", 1, "the answer must be numbers"),
    ],
)
def test_a_wrong_answer_is_refused_at_once(function, n_objectives, fact, folder):
    fitness = build(folder, function, n_objectives)
    fitness.bind(LoadedModel(Model(), None))
    with pytest.raises(TaskError, match=fact):
        fitness.respond(Split.SEARCH, (0,))


@pytest.mark.parametrize(
    ("target", "fact"),
    [
        ("user_functions", "this has another form"),
        ("user_funtions:size", "there is no module 'user_funtions'"),
        ("user_functions:sise", "has none of this name"),
        ("user_functions:number", "it names something of type int"),
        ("user_functions:no_items", "must take"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(target, fact, folder):
    items = write(folder, "items.jsonl", ITEMS)
    with pytest.raises(TaskError, match=fact):
        PythonFitness((Objective("o"),), callable=target, items=items)


def test_an_argument_that_the_function_does_not_take_is_refused(folder):
    with pytest.raises(TaskError, match="unexpected keyword argument 'faktor'"):
        build(folder, "size", arguments={"faktor": 2.0})


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "it is empty"),
        ('{"a": 1}\n\n{"a"', "line 3 is not"),
        ("[1]", "line 1 is of type list"),
        ('{"a": NaN}', "NaN is no JSON number"),
    ],
)
def test_a_file_that_holds_no_items_is_refused(text, fact, folder):
    path = folder / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(TaskError, match=fact):
        build(folder, "size", items=str(path))


def test_a_missing_file_is_refused(folder):
    with pytest.raises(TaskError, match="cannot be read"):
        build(folder, "size", items=str(folder / "missing.jsonl"))


@pytest.mark.parametrize("items", [None, 5])
def test_items_without_a_path_are_refused(items, folder):
    with pytest.raises(TaskError, match="must be the path of a JSON-lines file"):
        build(folder, "size", items=items)


def test_overlapping_files_are_refused_with_the_first_item(folder):
    both = write(folder, "both.jsonl", [{"prompt": "another"}, ITEMS[3], ITEMS[1]])
    with pytest.raises(TaskError, match=r"2 of 3 are .*question 3"):
        build(folder, "size", held_out=both)


def test_too_many_held_out_items_are_refused(folder):
    with pytest.raises(TaskError, match="there are 10 different ones"):
        build(folder, "size", held_out=10)


def test_respond_needs_a_bound_model(folder):
    with pytest.raises(RuntimeError, match="bind"):
        build(folder, "size").respond(Split.SEARCH, (0,))


def build_task(name: str, n_objectives: int = 1, **options: Any) -> PythonFitness:
    objectives = tuple(Objective(f"o{number}") for number in range(n_objectives))
    return PythonFitness(objectives, callable=f"user_functions:{name}", **options)


def counts(fitness: PythonFitness) -> list[int]:
    return [len(fitness.items(split)) for split in Split]


def test_a_class_brings_its_items_and_is_built_with_the_arguments(folder):
    fitness = build_task("Pool", arguments={"factor": 0.5})
    fitness.bind(LoadedModel(Model().train(), None))
    assert counts(fitness) == [6, 3]
    assert fitness.respond(Split.SEARCH, (4, 0)).tolist() == [[8.0], [0.0]]
    assert fitness.respond(Split.HELD_OUT, (1,)).tolist() == [[202.0]]


def test_an_object_will_do(folder):
    fitness = build_task("pool")
    fitness.bind(LoadedModel(Model(), None))
    assert fitness.respond(Split.SEARCH, (1,)).tolist() == [[12.0]]
    with pytest.raises(TaskError, match=r"this is an object and there are \['factor'\]"):
        build_task("pool", arguments={"factor": 1.0})


def test_items_of_a_class_are_counted_drawn_and_held_out(folder):
    assert counts(build_task("Pool", items=4, held_out=2)) == [4, 2]
    assert counts(build_task("Pool", arguments={"n_held_out": 0})) == [6, 0]
    alone = build_task("Pool", held_out=2, arguments={"n_held_out": 0})
    assert counts(alone) == [4, 2]
    alone.bind(LoadedModel(Model(), None))
    answers = [alone.respond(split, range(n)) for split, n in zip(Split, [4, 2], strict=True)]
    assert sorted(np.concatenate(answers).ravel().tolist()) == [0, 4, 8, 12, 16, 20]
    again = build_task("Pool", held_out=2, arguments={"n_held_out": 0})
    assert again.items(Split.SEARCH) == alone.items(Split.SEARCH)
    with pytest.raises(TaskError, match="there are 6 different ones"):
        build_task("Pool", held_out=6, arguments={"n_held_out": 0})
    with pytest.raises(TaskError, match="there are 6: ask for fewer"):
        build_task("Pool", items=7)


def test_held_out_items_of_a_class_that_are_search_items_are_refused(folder):
    with pytest.raises(TaskError, match=r"1 of 101 are .*'tag': \(100, 'x'\)"):
        build_task("Pool", arguments={"n_search": 101, "n_held_out": 101})


def test_settings_tell_classes_and_arguments_apart(folder):
    settings = {
        build_task("Pool").settings,
        build_task("pool").settings,
        build_task("Pool", arguments={"factor": 2.0}).settings,
    }
    assert len(settings) == 3
    assert build_task("Pool", items=2).settings in settings


@pytest.mark.parametrize(
    ("name", "options", "fact"),
    [
        ("WithoutItems", {}, "it has no items"),
        ("WithoutRespond", {}, "it has no respond"),
        ("Answers", {}, r"its method respond must take \(model, tokenizer, items\)"),
        ("Pool", {"arguments": {"faktor": 1}}, "unexpected keyword argument 'faktor'"),
        ("Pool", {"items": "items.jsonl"}, "one is 'items.jsonl'"),
        ("text", {}, "for search it gives a str"),
        ("one_number", {}, "for search it gives a int"),
        ("nothing", {}, "there are none"),
        ("strange", {}, r"item 1 of search: .*holds a user_functions\.Strange: give the item"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused(name, options, fact, folder):
    with pytest.raises(TaskError, match=fact):
        build_task(name, **options)


def test_items_that_say_their_digest_may_hold_anything(folder):
    assert len(set(build_task("named").items(Split.SEARCH))) == 2


def test_the_example_of_a_class_works(tmp_path, monkeypatch):
    code = re.search(r"PYTHONPATH\n\n(.*?)\n\nthe fitness", inspect.getdoc(PythonFitness), re.S)
    (tmp_path / "digits.py").write_text(textwrap.dedent(code[1]))
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    images = rng.random((600, 3, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "digits.npz", images=images, labels=rng.integers(0, 4, 600))
    arguments = {"path": str(tmp_path / "digits.npz")}
    fitness = PythonFitness((Objective("accuracy"),), callable="digits:Digits", arguments=arguments)
    assert counts(fitness) == [200, 400]
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        image_size=8, patch_size=4, num_labels=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        fitness.bind(LoadedModel(ViTForImageClassification(config), None))
    answers = fitness.respond(Split.SEARCH, range(200))
    assert set(answers.ravel()) <= {0.0, 1.0}
    assert 0 < answers.mean() < 1
