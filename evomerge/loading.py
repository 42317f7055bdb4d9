"""From `package.module:Name` and arguments to an object: the import path is the registry."""

import importlib
from typing import Any

from evomerge.datatypes import Spec
from evomerge.errors import ConfigError


def resolve(target: str) -> Any:
    """The attribute that an import path names.

    Raises:
        ConfigError: when the path has another form, or the module or the name does not exist.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f"an import path has the form package.module:Name, but got {target!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigError(
            f"{target!r} must be importable, but there is no module {error.name!r}: "
            "install it, or put its folder on PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        raise ConfigError(f"module {module_name!r} has no {attribute!r}: check the import path")
    return getattr(module, attribute)


def build(spec: Spec, *positional: Any, **bound: Any) -> Any:
    """Call what `spec` names with its arguments; `bound` ones come from the engine.

    Raises:
        ConfigError: when the arguments are not of its signature.
    """
    factory = resolve(spec.target)
    try:
        return factory(*positional, **bound, **spec.arguments)
    except TypeError as error:
        # A wrong option of the user shows as a TypeError of this very call; deeper ones are bugs.
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise ConfigError(f"{spec.target} does not take these options: {error}") from error
        raise
