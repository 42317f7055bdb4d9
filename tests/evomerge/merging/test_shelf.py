"""Which banks are made and kept; whatever is decided, the bytes are the same."""

import errno
import os
import subprocess
import sys

import pytest
import torch

from evomerge.merging import survey as survey_module
from evomerge.merging.bank import evict
from evomerge.merging.materialize import Materializer, merged_tensors
from evomerge.merging.shelf import Shelf
from evomerge.merging.variant import Variant

PLENTY = 10**12


def shelf_of(world, *, announced=(), most_bytes=PLENTY):
    model = world.model()
    cache = world.folder / "cache"
    variants = [Variant.of_recipe(recipe) for recipe in announced]
    return model, Shelf(
        cache,
        world.base,
        world.experts,
        world.anatomy,
        model,
        announced=variants,
        most_bytes=most_bytes,
    )


def banks(world):
    return sorted((world.folder / "cache" / "banks").glob("*/bank.json"))


def is_written(model, world, recipe):
    expected = merged_tensors(world.base, world.experts, world.anatomy, recipe)
    state = model.state_dict()
    return all(torch.equal(state[name], value) for name, value in expected)


def test_announced_variants_get_banks_and_others_when_asked_often(world):
    ties, pcb = world.varied(operator="ties"), world.varied(operator="pcb")
    model, shelf = shelf_of(world, announced=[ties])
    assert len(banks(world)) == 2
    assert any("bank of ties" in note for note in shelf.notes)
    for count in (2, 2, 3, 3):
        shelf.write(pcb)
        assert is_written(model, world, pcb)
        assert len(banks(world)) == count
    shelf.write(ties)
    assert is_written(model, world, ties)


def test_live_and_plain_recipes_need_no_bank_of_their_own(world):
    model, shelf = shelf_of(world)
    for operator in ("task_arithmetic", "karcher", "ties_exact"):
        recipe = world.varied(operator=operator)
        for _ in range(4):
            shelf.write(recipe)
        assert is_written(model, world, recipe)
    assert len(banks(world)) == 1


def test_a_bank_that_would_not_fit_is_not_made_and_the_user_is_told(world):
    recipe = world.varied(operator="ties")
    model, shelf = shelf_of(world, announced=[recipe], most_bytes=1000)
    for _ in range(4):
        shelf.write(recipe)
        assert is_written(model, world, recipe)
    assert len(banks(world)) == 1
    (note,) = shelf.notes
    assert "made for every candidate" in note
    assert "bank_gigabytes" in note


def test_what_was_used_longest_ago_goes_first_and_what_is_open_stays(world):
    cache = world.folder / "cache"
    for age, operator in enumerate(["ties", "pcb", "sce"]):
        path = make(world, cache, operator)
        os.utime(path, (1000 + age, 1000 + age))
    world.folder, cache = cache, cache / "banks"
    kept = world.bank("ties")  # used last, and open
    total = sum(f.stat().st_size for f in (cache / "banks").glob("*/*"))
    assert [path.name != kept.key for path in evict(cache, total - 1)] == [True]
    assert evict(cache, 0) != []
    assert [path.parent.name for path in (cache / "banks").glob("*/bank.json")] == [kept.key]
    kept.release()
    assert kept.bases("model.norm.weight")[0] is not None
    del kept
    assert len(evict(cache, 0)) == 1
    assert not list((cache / "banks").glob("*/*"))


def make(world, folder, operator):
    """A bank that nobody has open."""
    before, world.folder = world.folder, folder
    path = world.bank(operator).path
    world.folder = before
    return path


HOLD = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from evomerge.merging.bank import Bank

path = Path(sys.argv[1])
norms = json.loads((path / "bank.json").read_text())["norms"]
bank = Bank(path, None, [SimpleNamespace(name=str(i)) for i in range(len(norms))])
print("open", flush=True)
sys.stdin.read()
"""


def test_another_process_keeps_its_bank(world):
    bank = make(world, world.folder, "ties")
    command = [sys.executable, "-c", HOLD, str(bank)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        assert evict(world.folder / "banks", 0) == []
        other.communicate("")
    assert other.returncode == 0
    assert evict(world.folder / "banks", 0) == [bank]


@pytest.mark.parametrize("trouble", ["damaged", "full"])
def test_statistics_that_cannot_be_kept_are_made_again(world, monkeypatch, trouble):
    recipe, folder = world.varied(operator="ties_exact"), world.folder / "surveys"
    if trouble == "full":

        def no_room(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(survey_module, "save_file", no_room)
    else:
        folder.mkdir()
    for _ in range(2):
        model = world.model()
        bank = world.bank()
        materializer = Materializer(world.base, bank, world.anatomy, model, surveys=folder)
        materializer.write(recipe)
        assert is_written(model, world, recipe)
        for file in folder.glob("*.safetensors"):
            file.write_bytes(b"torn")
    assert not list(folder.glob("*.partial"))
