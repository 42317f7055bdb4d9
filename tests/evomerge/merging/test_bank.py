import errno
import gc
import json
import multiprocessing
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from evomerge.checkpoints.reading import Checkpoint
from evomerge.errors import CheckpointError, ConfigError
from evomerge.merging import bank as bank_module
from evomerge.merging.bank import Bank


class Changed:
    """An expert that differs from another in one tensor."""

    def __init__(self, expert, name, change):
        self.name, self.digest, self.warnings = expert.name, "0" * 16, ()
        self._expert, self._tensor, self._change = expert, name, change

    def delta(self, name, start=0, stop=None):
        delta = self._expert.delta(name)
        return (self._change(delta) if name == self._tensor else delta)[start:stop]


def contents(bank: Bank) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(bank.path.iterdir())}


def test_holds_the_deltas_in_the_dtype_of_the_base(make_world):
    for dtype in ("bfloat16", "float16", "float32"):
        world = make_world(dtype)
        bank = world.bank()
        for name in world.base.tensors:
            for expert, basis in zip(world.experts, bank.bases(name), strict=True):
                delta = expert.delta(name)
                assert (delta is None) == (basis is None)
                if delta is not None:
                    assert torch.equal(basis.reshape(-1), delta.to(getattr(torch, dtype)))


def test_norms_are_those_of_the_deltas_whatever_the_operator(world):
    for operator in ("task_arithmetic", "ties"):
        norms = world.bank(operator).norms
        for expert in world.experts:
            deltas = [expert.delta(name) for name in world.base.tensors]
            rounded = [delta.bfloat16().double() for delta in deltas if delta is not None]
            square = sum(float(t.square().sum()) for t in rounded)
            assert norms[expert.name] == pytest.approx(square**0.5)


def test_opens_what_is_there_without_reading_experts_again(world, monkeypatch):
    first = world.bank()
    monkeypatch.setattr(bank_module, "_build", None)
    second = world.bank()
    assert second.key == first.key
    assert second.norms == first.norms
    with pytest.raises(TypeError):
        world.bank("ties")


def test_every_ingredient_changes_the_key(world, make_world):
    keys = [
        world.bank().key,
        world.bank("ties").key,
        world.bank("ties", knobs={"density": 0.3}).key,
        world.bank("random_delta", seed=1).key,
        world.bank("random_delta", seed=2).key,
        make_world(experts=("math", "chat", "code")).bank().key,
        make_world(experts=("chat", "math")).bank().key,
        make_world("float32").bank().key,
    ]
    assert len(set(keys)) == len(keys)


def test_the_seed_is_ignored_by_operators_without_chance(world):
    assert world.bank(seed=1).key == world.bank("linear", seed=2).key
    assert world.bank("ties", seed=1).key == world.bank("ties", knobs={"density": 0.2}).key


def test_bytes_do_not_depend_on_the_number_of_threads(world, tmp_path):
    for operator in ("task_arithmetic", "ties", "model_stock", "random_delta"):
        seen = []
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            seen.append(contents(world.bank(operator)))
            shutil.rmtree(tmp_path / "banks")
        assert seen[0] == seen[1]


def test_is_a_plain_safetensors_file(world):
    bank = world.bank()
    for k, expert in enumerate(world.experts):
        loaded = safetensors.torch.load_file(bank.path / f"basis_{k}.safetensors")
        assert set(loaded) == {n for n in world.base.tensors if expert.delta(n) is not None}


def mapped_ranges(part):
    """Where files whose path has this part are in memory."""
    with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123 (no file on a disk)
        ranges = [line.split()[0].split("-") for line in maps if part in line]
    return [(int(low, 16), int(high, 16)) for low, high in ranges]


def test_tensors_are_mapped_and_not_read(world):
    basis = world.bank().bases("model.embed_tokens.weight")[0]
    ranges = mapped_ranges("basis_0.safetensors")
    assert any(low <= basis.data_ptr() < high for low, high in ranges)


def test_released_files_are_unmapped_and_mapped_again_when_read(world):
    gc.collect()  # earlier tests leave the same files mapped, in cycles
    bank, (name, *_) = world.bank(), world.base.tensors
    before = [basis.clone() for basis in bank.bases(name)]
    bank.release()
    assert not mapped_ranges(bank.key)
    assert all(torch.equal(a, b) for a, b in zip(before, bank.bases(name), strict=True))
    bank.release()
    for model in (world.base, *world.experts):
        model.release()
    assert not mapped_ranges(str(world.base.path.parent))
    assert world.experts[0].delta(name) is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_delta_that_is_not_finite_is_refused_by_name(world, value):
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(delta):
        delta[77] = value
        return delta

    experts = [world.experts[0], Changed(world.experts[1], name, spoil)]
    with pytest.raises(CheckpointError, match=f"math changes {name} by"):
        replace_experts(world, experts).bank()
    assert not [
        p for p in (world.folder / "banks").rglob("*") if p.suffix != ".lock" and p.is_file()
    ]


def test_a_delta_too_large_for_the_dtype_is_refused(make_world):
    world = make_world("float16")
    spoiled = Changed(world.experts[0], "model.norm.weight", lambda delta: delta + 70_000)
    with pytest.raises(CheckpointError, match=r"as torch\.float16"):
        replace_experts(world, [spoiled]).bank()


def test_a_full_disk_is_a_sentence_and_leaves_nothing(world, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(bank_module.TensorFile, "write", full)
        with pytest.raises(CheckpointError, match="free some space"):
            world.bank()
    assert [p.suffix for p in (world.folder / "banks" / "banks").iterdir()] == [".lock"]
    assert world.bank().norms


def test_a_cache_that_is_a_file_is_a_sentence(world):
    (world.folder / "banks").write_text("in the way")
    with pytest.raises(CheckpointError, match="choose another cache folder"):
        world.bank()


def test_a_half_written_bank_is_not_used(world):
    whole = world.bank()
    expected = contents(whole)
    partial = whole.path.with_name(f"{whole.key}.partial")
    whole.path.rename(partial)
    (partial / "basis_1.safetensors").write_bytes(b"torn")
    assert contents(world.bank()) == expected
    assert not partial.exists()


def test_a_damaged_bank_names_its_folder(world):
    whole = world.bank()
    (whole.path / "basis_1.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="delete that folder"):
        world.bank()


def test_an_unknown_knob_is_refused(world):
    with pytest.raises(ConfigError, match="densty"):
        world.bank("ties", knobs={"densty": 0.3})


def test_no_expert_at_all_is_an_empty_bank(make_world):
    world = make_world(experts=())
    assert world.bank().bases("model.norm.weight") == []


@pytest.mark.slow
def test_of_two_processes_one_builds_and_both_open(world):
    context = multiprocessing.get_context("spawn")
    arguments = (str(world.base.path.parent), [e.name for e in world.experts], str(world.folder))
    with context.Pool(2) as pool:
        keys = pool.starmap(_open, [arguments] * 2)
    assert len(set(keys)) == 1
    assert json.loads((world.bank().path / "bank.json").read_text())["base"] == world.base.digest


def _open(folder, names, cache):
    from pathlib import Path

    from evomerge.checkpoints.anatomy import Anatomy
    from evomerge.checkpoints.experts import open_expert

    base = Checkpoint.open(Path(folder) / "base")
    experts = [open_expert(name, Path(folder) / name, base) for name in names]
    return Bank.open_or_build(Path(cache) / "banks", base, experts, Anatomy.of(base)).key


def replace_experts(world, experts):
    return replace(world, experts=tuple(experts))
