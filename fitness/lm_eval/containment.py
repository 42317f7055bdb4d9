"""What lm-eval does beside its work is kept in, and what it raises becomes one sentence."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.errors import TaskError


@contextmanager
def contained() -> Iterator[None]:
    """lm-eval and datasets give no advice, show no progress and draw no numbers of the process.

    lm-eval draws from Python's global generator whenever it is asked for the name of a task.
    """
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars_off, state = logger.level, datasets.are_progress_bars_disabled(), random.getstate()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
        if not bars_off:
            datasets.enable_progress_bars()


def lm_eval_errors() -> tuple[type[Exception], ...]:
    """What lm-eval, datasets and a task's own code raise for what they cannot read or score."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    return (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        NotImplementedError,
        OSError,
        StopIteration,
        TypeError,
        ValueError,
        DatasetsError,
        TemplateError,
        YAMLError,
    )


def unusable(name: str, error: Exception) -> TaskError:
    """One of `lm_eval_errors` as a sentence about the task."""
    fact = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, StopIteration) or "corresponds to no data" in fact:
        return TaskError(
            f"{name}: every split of a task must have documents, but one is empty ({fact}): fill "
            "its file, or take the split out of the task"
        )
    if isinstance(error, ConnectionError):
        return TaskError(
            f"{name}: the documents of a task must be here or in reach, but {fact}: go online (and "
            "unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE) once, they are then kept"
        )
    return TaskError(
        f"{name}: lm-eval must be able to read the task, but it says {fact}: check its YAML and "
        "its files (relative data_files count from the working directory: make them absolute)"
    )
