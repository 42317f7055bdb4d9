"""A digest of how a task asks and scores, whatever its documents are."""

import inspect
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evomerge.datatypes import digest_of

_ABOUT_DOCUMENTS = frozenset(
    {
        "custom_dataset",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
        "fewshot_split",
        "metadata",
        "num_fewshot",  # the number that is asked for is counted apart
        "process_docs",
        "tag",
        "task",
        "task_alias",
    }
)


def described(task: Any) -> Any:
    """What a task's configuration and code say of asking and scoring, as plain data.

    To be called before `remember_templates`, which replaces templates by functions.
    """
    config = {
        name: _plain(value)
        for name, value in vars(task.config).items()
        if name not in _ABOUT_DOCUMENTS
    }
    return [_plain(type(task)), config]


def digest_of_asking(*parts: Any) -> str:
    """Digest of plain parts and of lm-eval's version."""
    return digest_of([version("lm_eval"), _plain(parts)])


def _plain(value: Any) -> Any:
    """Plain data for anything that a task's configuration may hold; functions by their source."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if inspect.isclass(value) or inspect.isroutine(value):
        return [value.__qualname__, _source(value)]
    if hasattr(value, "__dict__"):
        return [type(value).__qualname__, _plain(vars(value))]
    return repr(value)


def _source(code: Any) -> str:
    """The text of the whole file: what a task's function calls usually stands beside it."""
    try:
        path = inspect.getsourcefile(code)
    except TypeError:  # built in
        return ""
    if path is None or (code.__module__ or "").startswith("lm_eval."):  # its version is counted
        return ""
    return Path(path).read_text(encoding="utf-8")
