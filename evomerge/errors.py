"""Every error that evomerge raises on purpose, as one tree.

EvomergeError
├── ConfigError              a configuration or an option is wrong
├── CheckpointError          a model folder is missing, truncated, unsafe or not finite
│   └── IncompatibleError    two checkpoints cannot be merged
├── TaskError                a fitness, a task or its items cannot be used
├── MissingExtraError        an optional dependency is not installed
├── RunError                 a run directory exists, is missing or contradicts itself
│   ├── RunLockedError       another driver holds the run
│   └── JournalError         the journal is damaged or does not replay
├── ExecutorError            workers cannot be started or are all gone
└── FuseError                too many evaluations failed in a row: the run was stopped

A message states the rule, the fact and the remedy in one line: the command line prints it as is.
"""

from typing import ClassVar


class EvomergeError(Exception):
    """Base of all; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class ConfigError(EvomergeError):
    """A configuration or an option is wrong."""

    exit_code = 2


class CheckpointError(EvomergeError):
    """A model folder is missing, truncated, unsafe or holds non-finite weights."""

    exit_code = 3


class IncompatibleError(CheckpointError):
    """Two checkpoints cannot be merged."""


class TaskError(EvomergeError):
    """A fitness, a task or its items cannot be used."""

    exit_code = 4


class MissingExtraError(EvomergeError):
    """An optional dependency is not installed."""

    exit_code = 5


class RunError(EvomergeError):
    """A run directory exists, is missing, is not writable or contradicts itself."""

    exit_code = 6


class RunLockedError(RunError):
    """Another driver holds the run."""


class JournalError(RunError):
    """The journal is damaged or does not replay."""


class ExecutorError(EvomergeError):
    """Workers cannot be started or are all gone."""

    exit_code = 7


class FuseError(EvomergeError):
    """Too many evaluations failed in a row: the run was stopped."""

    exit_code = 8
