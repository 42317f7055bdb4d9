"""The contracts between the engine and what is plugged into it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from evomerge.datatypes import (
    Answers,
    Candidate,
    Dimension,
    Estimate,
    Evaluation,
    Evidence,
    FloatArray,
    Group,
    Job,
    Objective,
    Recipe,
    Split,
    WorkerFacts,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
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


class LiveModel(Protocol):
    """The one model of a worker as a fitness sees it: its weights change, the object stays."""

    @property
    def model(self) -> "nn.Module":
        """In evaluation mode, without gradients."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """Of the base, if it has one."""

    @property
    def recipe(self) -> Recipe:
        """What the weights are now; while binding they are the base's."""

    @property
    def experts(self) -> tuple[str, ...]:
        """Names, in the order of the recipes."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """Parts of the model, in the order of the recipes."""

    @property
    def digest(self) -> str:
        """Of base and experts: what depends on them only may be kept in `cache` under it."""

    @property
    def cache(self) -> Path:
        """A folder for what is computed once for these models; shared between runs."""

    def write(self, name: str) -> None:
        """Give the model the weights of `base` or of an expert: while binding only."""

    def weights(self) -> "Iterator[tuple[int, Tensor, Tensor]]":
        """For each tensor: number of its group, the base's weights, the model's, on any devices."""


class Fitness(Protocol):
    """How good a model is on some items; one object per task, one or more objectives each.

    Built in the worker as `Fitness(objectives=(Objective, ...), seed=..., **options of the user)`;
    construction reads the task and its items and raises `TaskError`, without a model.
    """

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What each item is answered for, at least one; each with its statistic."""

    @property
    def settings(self) -> str:
        """Digest of all that decides an answer besides the weights and the items' contents."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before a search, one sentence each."""

    def items(self, split: Split) -> tuple[str, ...]:
        """Digests of the contents of a split's items, in order; never empty for `SEARCH`."""

    def bind(self, live: LiveModel) -> None:
        """Do once what no candidate needs to repeat: tokenize, sort, batch. Raises `TaskError`.

        The model's weights change in place between calls of `respond`; the object stays.
        """

    def respond(self, split: Split, items: Sequence[int]) -> FloatArray:
        """Answers of the bound model, in the items' order, shape `(len(items), n_columns)`.

        The columns are those of the objectives' statistics side by side: one per objective where
        all scores are means.

        Raises:
            FloatingPointError: the model computes NaN; non-finite answers say the same.
        """


class Estimator(Protocol):
    """From answers to some items to scores on all of them, for one objective."""

    def estimate(self, answers: Sequence[Answers], known: FloatArray) -> list[Estimate]:
        """The score of each model on the whole pool of items, with its standard error.

        `answers` has one entry per model, each with at least one item. `known` are the answers of
        models that answered the whole pool (baselines first), shape `(n_known, n_pool)`; it may
        have no rows, and be used or not.
        """


class Sampler(Protocol):
    """Proposes points of the unit cube; minimises; deterministic in its seed and its calls.

    Built as `Sampler(problem, seed=int, **options of the user)`. Three attributes are optional:

    - `readmit(candidate)` takes a candidate that an earlier process was given, in the place of the
      `ask` that made it. Who has it is not asked again on resume: what it proposes follows from
      what it was told, from what is pending and from the number of asks. Who lacks it is replayed.
    - `remarks`, sentences that the user should know by now; new ones are journaled.
    - `wants_answers = True` has the items' answers put into the evidence.
    """

    @property
    def generation_size(self) -> int | None:
        """How many candidates it asks for before it waits for their losses; None: it never does."""

    def ask(self) -> Candidate | None:
        """The next candidate, or None until more of what was asked has been told."""

    def tell(
        self,
        candidate: Candidate,
        losses: Sequence[float] | None,
        evidence: Evidence | None = None,
    ) -> None:
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
