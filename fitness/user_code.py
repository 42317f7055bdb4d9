"""Code of the user by its import path, checked before it is called."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from evomerge.errors import TaskError


def resolve(target: str) -> Any:
    """What an import path `package.module:name` names.

    Raises:
        TaskError: when the path has another form, or the module or the name does not exist.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise TaskError(
            f"{target}: a function or a class is named as package.module:name, but this has "
            "another form: give its import path"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise TaskError(
            f"{target}: the module must be importable, but there is no module {error.name!r}: "
            "install it, or put its folder on PYTHONPATH"
        ) from error
    if not hasattr(module, name):
        raise TaskError(
            f"{target}: the import path must name a function, a class or an object, but module "
            f"{module_name!r} has none of this name: check the path"
        )
    return getattr(module, name)


def is_task(target: Any) -> bool:
    """Whether it is a class, or an object with items and answers; else it may be a function."""
    return inspect.isclass(target) or hasattr(target, "respond")


def bound_function(
    name: str, function: Any, arguments: Mapping[str, Any]
) -> Callable[[Any, Any, list[Any]], Any]:
    """A function `(model, tokenizer, items, **arguments)` with its arguments.

    Raises:
        TaskError: when it cannot be called so.
    """
    if not callable(function):
        raise TaskError(
            f"{name}: the import path must name a function, a class or an object with items and "
            f"respond, but it names something of type {type(function).__name__}: check the path"
        )
    _must_take(
        name, "the function", "(model, tokenizer, items)", function, None, None, [], **arguments
    )
    return partial(function, **arguments)


def built_task(name: str, target: Any, arguments: Mapping[str, Any]) -> Any:
    """An object with `items(split)` and `respond(model, tokenizer, items)`, built if need be.

    Raises:
        TaskError: when it cannot be built, or has no such methods.
    """
    task = target
    if inspect.isclass(target):
        _must_take(name, "the class", "nothing", target, **arguments)
        task = target(**arguments)
    elif arguments:
        raise TaskError(
            f"{name}: arguments are for a function or a class, but this is an object and there are "
            f"{sorted(arguments)}: name its class instead, or leave them out"
        )
    for method, takes, given in (
        ("items", "(split)", ["search"]),
        ("respond", "(model, tokenizer, items)", [None, None, []]),
    ):
        if not callable(getattr(task, method, None)):
            raise TaskError(
                f"{name}: a class must have methods items(split) and respond(model, tokenizer, "
                f"items), but it has no {method}: write it, or name a function"
            )
        _must_take(name, f"its method {method}", takes, getattr(task, method), *given)
    return task


def source_of(target: Any) -> str:
    """The text of the file that defines a function, a class or an object's class, if any."""
    defined = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    try:
        source = inspect.getsourcefile(defined)
    except TypeError:  # built in, or made elsewhere
        return ""
    return "" if source is None else Path(source).read_text(encoding="utf-8")


def _must_take(
    name: str, what: str, takes: str, function: Any, /, *given: Any, **arguments: Any
) -> None:
    try:
        inspect.signature(function).bind(*given, **arguments)
    except TypeError as error:
        raise TaskError(
            f"{name}: {what} must take {takes} and the configured arguments, but {error}: change "
            "its signature or the arguments"
        ) from error
