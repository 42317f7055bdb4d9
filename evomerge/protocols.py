"""The five contracts between the engine and what is plugged into it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from evomerge.datatypes import (
    Candidate,
    Dimension,
    Estimate,
    Evaluation,
    FloatArray,
    Job,
    Objective,
    Recipe,
    Split,
    WorkerFacts,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class SearchSpace(Protocol):
    """What may vary: pure numpy, bound to the experts and groups of one model at construction.

    Built as `Space(experts=(names...), groups=(Group, ...), **options of the user)`.
    """

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The coordinates of the unit cube, at least one."""

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """Points that decode to merges known to be good, best guess first; at least one."""

    def decode(self, u: Sequence[float]) -> Recipe:
        """The recipe of a point; the same point gives the same recipe, digest included."""


class Fitness(Protocol):
    """How good a model is on some items; one object per task, one or more objectives each.

    Built in the worker as `Fitness(objectives=(Objective, ...), seed=..., **options of the user)`;
    construction reads the task and its items and raises `TaskError`, without a model.
    """

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What each item is answered for, at least one."""

    def items(self, split: Split) -> tuple[str, ...]:
        """Digests of the contents of a split's items, in order; never empty for `SEARCH`."""

    def bind(self, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase | None") -> None:
        """Do once what no candidate needs to repeat: tokenize, sort, batch. Raises `TaskError`.

        The model's weights change in place between calls of `respond`; the object stays.
        """

    def respond(self, split: Split, items: Sequence[int]) -> FloatArray:
        """Answers of the bound model, shape `(len(items), n_objectives)`, in the items' order.

        Raises:
            FloatingPointError: the model computes NaN; non-finite answers say the same.
        """


class Estimator(Protocol):
    """From responses to a score with a standard error."""

    def estimate(self, responses: Sequence[float]) -> Estimate:
        """`responses` are one candidate's answers to the items of one objective."""


class Sampler(Protocol):
    """Proposes points of the unit cube; minimises; deterministic in its seed and its calls.

    Built as `Sampler(problem, seed=int, **options of the user)`.
    """

    def ask(self) -> Candidate | None:
        """The next candidate, or None until more of what was asked has been told."""

    def tell(self, candidate: Candidate, losses: Sequence[float] | None) -> None:
        """Finite losses, one per objective, or None for a failed candidate; in any order."""


class Executor(Protocol):
    """Where evaluations happen. Same promises in-process and on a cluster."""

    @property
    def facts(self) -> WorkerFacts:
        """What the workers found when they started."""

    @property
    def n_free(self) -> int:
        """How many jobs can be submitted now without queueing behind others."""

    def submit(self, job: Job) -> None:
        """Start an evaluation; returns at once or, in-process, when `next_done` runs it."""

    def next_done(self, timeout_seconds: float | None = None) -> Evaluation | None:
        """The next finished evaluation in any order, or None after the time-out."""

    def close(self) -> None:
        """Release workers; what is in flight is abandoned."""
