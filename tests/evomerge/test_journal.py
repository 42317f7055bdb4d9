import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.errors import JournalError, RunLockedError
from evomerge.journal import Journal, decode, encode, read_events

EVENTS = [{"event": "started", "x": 0.1 + 0.2}, {"event": "note", "text": "ä\n\u2028"}, {"n": 3}]


def write_all(folder: Path) -> bytes:
    with Journal(folder) as journal:
        for event in EVENTS:
            journal.append(dict(event))
    return (folder / "journal.jsonl").read_bytes()


def test_events_come_back_equal_floats_included(tmp_path):
    write_all(tmp_path)
    events, _ = read_events(tmp_path / "journal.jsonl")
    assert events == EVENTS


def test_a_tail_torn_at_any_byte_loses_only_its_own_event(tmp_path):
    content = write_all(tmp_path)
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content) + 1):
        (tmp_path / "journal.jsonl").write_bytes(content[:length])
        with Journal(tmp_path) as journal:
            n_whole = sum(end <= length for end in ends)
            assert journal.events == EVENTS[:n_whole]
            journal.append({"event": "after"})
        events, _ = read_events(tmp_path / "journal.jsonl")
        assert events == [*EVENTS[:n_whole], {"event": "after"}]


def test_zeros_after_a_power_loss_are_a_torn_tail(tmp_path):
    content = write_all(tmp_path)
    (tmp_path / "journal.jsonl").write_bytes(content + b"\0" * 100)
    with Journal(tmp_path) as journal:
        assert journal.events == EVENTS


def test_a_changed_byte_is_found(tmp_path):
    content = write_all(tmp_path)
    damaged = content.replace(b"0.30000000000000004", b"0.40000000000000004")
    assert damaged != content
    (tmp_path / "journal.jsonl").write_bytes(damaged)
    with pytest.raises(JournalError, match=r"line 1 of .* does not: restore"):
        Journal(tmp_path)
    assert (tmp_path / "journal.jsonl").read_bytes() == damaged


def test_a_line_is_json_with_its_own_checksum():
    line = encode({"a": 1})
    assert decode(line) == {"a": 1}
    assert decode(line[:-3]) is None
    assert decode(b"[1]\n") is None
    assert decode(encode({})) == {}


def test_a_second_driver_is_refused_with_the_holders_name(tmp_path):
    with Journal(tmp_path):
        code = (
            "import sys; from pathlib import Path\n"
            "from evomerge.journal import Journal\n"
            "Journal(Path(sys.argv[1]))"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert other.returncode != 0
    assert RunLockedError.__name__ in other.stderr
    assert "process" in other.stderr


def test_the_lock_goes_with_its_holder(tmp_path):
    write_all(tmp_path)
    write = Journal(tmp_path)
    write.close()
    with Journal(tmp_path) as journal:
        assert journal.events == EVENTS


def test_a_full_disk_is_said_and_leaves_no_torn_line(tmp_path, monkeypatch):
    from evomerge import journal as module
    from evomerge.errors import RunError

    with Journal(tmp_path) as journal:
        journal.append({"event": "first"})
        before = (tmp_path / "journal.jsonl").read_bytes()
        real_write = module.os.write

        def half_write(descriptor: int, line: bytes) -> int:
            return real_write(descriptor, line[: len(line) // 2])

        monkeypatch.setattr(module.os, "write", half_write)
        with pytest.raises(RunError, match="make room"):
            journal.append({"event": "second"})
        monkeypatch.undo()
        assert (tmp_path / "journal.jsonl").read_bytes() == before
