import pickle
import re

import numpy as np
import pytest

from evomerge.errors import TaskError
from fitness.item_bank import ItemBank, load_tiny_benchmarks, scenario_of


@pytest.fixture
def bank():
    rng = np.random.default_rng(0)
    ids = tuple(f"item {i}" for i in range(20))
    return ItemBank(rng.normal(size=(20, 3)), rng.normal(size=(20, 3)), ids)


def test_a_bank_comes_back_as_it_was(bank, tmp_path):
    bank.save(tmp_path / "bank.npz")
    loaded = ItemBank.load(tmp_path / "bank.npz")
    np.testing.assert_array_equal(loaded.A, bank.A)
    np.testing.assert_array_equal(loaded.B, bank.B)
    assert loaded.item_ids == bank.item_ids
    assert [path.name for path in tmp_path.iterdir()] == ["bank.npz"]
    ItemBank(bank.A, bank.B).save(tmp_path / "nameless.npz")
    assert ItemBank.load(tmp_path / "nameless.npz").item_ids == ()


def test_a_missing_bank_is_told(tmp_path):
    with pytest.raises(TaskError, match="does not exist"):
        ItemBank.load(tmp_path / "bank.npz")


def test_a_damaged_bank_is_refused_wherever_it_is_damaged(bank, tmp_path):
    path = tmp_path / "bank.npz"
    bank.save(path)
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            loaded = ItemBank.load(path)
        except TaskError:
            continue
        # A byte that says nothing, such as a date in the archive's directory.
        np.testing.assert_array_equal(loaded.A, bank.A)
        np.testing.assert_array_equal(loaded.B, bank.B)


@pytest.mark.parametrize("keep", [0, 1, 100, -30])
def test_a_torn_bank_is_refused(bank, tmp_path, keep):
    path = tmp_path / "bank.npz"
    bank.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TaskError, match="damaged: write it again"):
        ItemBank.load(path)


def test_other_numbers_than_those_saved_are_refused(bank, tmp_path):
    path = tmp_path / "bank.npz"
    bank.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["A"][3, 1] += 1e-9
    np.savez(path, **arrays)
    with pytest.raises(TaskError, match="checksum"):
        ItemBank.load(path)
    np.savez(path, **{**arrays, "format_version": np.array(2)})
    with pytest.raises(TaskError, match="has format 2"):
        ItemBank.load(path)
    np.savez(path, A=arrays["A"])
    with pytest.raises(TaskError, match="KeyError"):
        ItemBank.load(path)


def test_a_file_with_a_pickle_inside_is_not_opened(tmp_path):
    path = tmp_path / "bank.npz"
    np.savez(path, format_version=np.array([print], dtype=object))
    with pytest.raises(TaskError, match="damaged"):
        ItemBank.load(path)


def test_parameters_that_cannot_be_are_refused(bank):
    A = bank.A.copy()
    A[7, 0] = np.nan
    with pytest.raises(TaskError, match=re.escape("1 items (first: 7)")):
        ItemBank(A, bank.B)
    with pytest.raises(TaskError, match="shape"):
        ItemBank(bank.A, bank.B[:-1])
    with pytest.raises(TaskError, match="shape"):
        ItemBank(bank.A[:0], bank.B[:0])
    with pytest.raises(TaskError, match="20 items have 2 names"):
        ItemBank(bank.A, bank.B, ("a", "b"))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_is_not_the_published_one_is_never_run(tmp_path):
    path, mark = tmp_path / "tinyBenchmarks.pkl", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(TaskError, match="opened only if it is the published"):
        load_tiny_benchmarks(path, "gsm8k")
    assert not mark.exists()
    with pytest.raises(TaskError, match="item bank is a file"):
        load_tiny_benchmarks(tmp_path / "none.pkl", "gsm8k")


def test_a_scenario_is_cut_out_of_all_items():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(2, 1, 4, 30))
    content = {
        "lb": {
            "irt_parameters": {"A": A, "B": B},
            "scenarios_position": {"gsm8k": list(range(10)), "arc": list(range(10, 30))},
        }
    }
    bank = scenario_of(content, "arc")
    np.testing.assert_array_equal(bank.A, A[0, :, 10:].T)
    np.testing.assert_array_equal(bank.B, B[0, :, 10:].T)
    with pytest.raises(TaskError, match="one of arc, gsm8k, but got 'mmlu'"):
        scenario_of(content, "mmlu")
