import shutil

import pytest

from evomerge.merging.native import kernels


@pytest.fixture
def compile_again(monkeypatch):
    return kernels.__wrapped__


def test_is_compiled_once(compile_again, tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("this machine has no C compiler")
    assert compile_again() is not None
    (library,) = (tmp_path / "cache" / "native").iterdir()
    made = library.stat().st_mtime_ns
    assert compile_again() is not None
    assert library.stat().st_mtime_ns == made


def test_can_be_switched_off(compile_again, monkeypatch):
    monkeypatch.setenv("EVOMERGE_NATIVE", "0")
    assert compile_again() is None


@pytest.mark.parametrize("script", [None, "exit 1", "echo torn > made.so"])
def test_a_missing_or_failing_compiler_is_no_failure(compile_again, monkeypatch, tmp_path, script):
    folder = tmp_path / "bin"
    folder.mkdir()
    if script is not None:
        (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(tmp_path)
    assert compile_again() is None


def test_a_torn_library_is_no_failure(compile_again, monkeypatch, tmp_path):
    if compile_again() is None:
        pytest.skip("this machine has no C compiler")
    (library,) = (tmp_path / "cache" / "native").iterdir()
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "other"))
    (tmp_path / "other" / "native").mkdir(parents=True)
    (tmp_path / "other" / "native" / library.name).write_bytes(b"torn")
    assert compile_again() is None
