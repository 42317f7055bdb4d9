"""The frozen values that cross borders between the parts: no I/O, no torch.

Everything here is hashable or plain, compares by value and survives a pickle, so that the same
value can go through the journal, to another process and back.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Knob = float | int | str | bool


class Direction(StrEnum):
    """Which way an objective improves."""

    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


class Split(StrEnum):
    """What items are for: the search sees `SEARCH` only, reports also show `HELD_OUT`."""

    SEARCH = "search"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Statistic:
    """How the answers to items become one score.

    `target` names a function of the `(n_items, n_columns)` answers (`package.module:name`), or is
    `mean` (of one column) or `exact` (one item whose answer is the score, without an error).
    """

    target: str = "mean"
    n_columns: int = 1


@dataclass(frozen=True, slots=True)
class Objective:
    """One number to optimise. `worst` is its hypervolume reference in score units, if declared.

    `statistic` is the fitness's to say: how its answers to items become the score.
    """

    name: str
    direction: Direction = Direction.MAXIMIZE
    worst: float | None = None
    statistic: Statistic = Statistic()

    def loss(self, score: float) -> float:
        """Orient a score so that less is better: the only place where a sign flips."""
        return -score if self.direction is Direction.MAXIMIZE else score

    def score(self, loss: float) -> float:
        """The inverse of `loss` (a sign flip is its own inverse)."""
        return self.loss(loss)


@dataclass(frozen=True, slots=True)
class Group:
    """The smallest part of a model with a coefficient of its own: all tensors of a kind in a layer.

    `kind` is one of embed, attn.q, attn.k, attn.v, attn.o, attn.qkv, attn.other, mlp.gate, mlp.up,
    mlp.down, mlp.other, norm, head, other; `layer` is None outside the stack of layers (embed,
    head, final norm). `depth` is in [0, 1]: layer / (n_layers - 1) inside the stack, 0 before it,
    1 after it.
    """

    layer: int | None
    kind: str
    depth: float
    n_parameters: int

    @property
    def label(self) -> str:
        """A unique readable name: `3.attn.q`, `embed`, `norm`, `head`."""
        return self.kind if self.layer is None else f"{self.layer}.{self.kind}"


@dataclass(frozen=True, slots=True)
class Dimension:
    """One coordinate of the unit cube.

    `binary` ones decode to 1 where u >= 0.5, else 0. `categorical` ones decode to one of
    `n_choices` that have no order; a point names a choice by the middle of its share of [0, 1].
    """

    label: str
    kind: Literal["real", "binary", "categorical"] = "real"
    n_choices: int = 0

    def __post_init__(self) -> None:
        if (self.kind == "categorical") != (self.n_choices >= 2):
            raise ValueError(
                f"a categorical dimension has two choices at least and no other has any, but "
                f"{self.label!r} is {self.kind} with {self.n_choices}"
            )

    def choice(self, u: float) -> int:
        """The choice of a coordinate in [0, 1], counted from 0."""
        return min(int(u * self.n_choices), self.n_choices - 1)

    def position(self, choice: int) -> float:
        """The coordinate that names a choice, in nine digits as samplers propose."""
        return round((choice + 0.5) / self.n_choices, 9)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a sampler knows: the cube, how many losses come back, and where good merges are known.

    `anchors` are points of the unit cube, best guess first (at least one): the centre of every
    initial design. `budget` is the number of evaluations planned.

    What follows is known where the space has it: the objectives' `names`, the point nearest to the
    base (`origin`), one near each expert alone (`experts`), and for each dimension the number of
    the expert that it moves (`owners`) and where in the model, from 0 to 1 (`depths`).
    """

    dimensions: tuple[Dimension, ...]
    n_objectives: int
    anchors: tuple[tuple[float, ...], ...]
    budget: int
    names: tuple[str, ...] = ()
    origin: tuple[float, ...] | None = None
    experts: tuple[tuple[float, ...], ...] = ()
    owners: tuple[int | None, ...] = ()
    depths: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposal: ids count from 0 in the order of asks; `u` is a point of the unit cube."""

    id: int
    generation: int
    u: tuple[float, ...]
    rung: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge, complete: the same recipe on the same checkpoints gives the same bytes.

    `coefficients` is `C[k, g]`, shape `(n_experts, n_groups)`, in the order of `experts` and
    `groups` (group labels). `prepare` holds the knobs that select a bank, `runtime` those that
    cost nothing to change; `seed` feeds whatever is random in the operator.
    """

    operator: str
    experts: tuple[str, ...]
    groups: tuple[str, ...]
    coefficients: tuple[tuple[float, ...], ...]
    prepare: Mapping[str, Knob] = field(default_factory=dict)
    runtime: Mapping[str, Knob] = field(default_factory=dict)
    seed: int = 0

    def matrix(self) -> FloatArray:
        """The coefficients as an array, shape `(n_experts, n_groups)`."""
        return np.array(self.coefficients, dtype=np.float64).reshape(
            len(self.experts), len(self.groups)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain types; floats round-trip."""
        return {
            "operator": self.operator,
            "experts": list(self.experts),
            "groups": list(self.groups),
            "coefficients": [list(row) for row in self.coefficients],
            "prepare": dict(self.prepare),
            "runtime": dict(self.runtime),
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            operator=plain["operator"],
            experts=tuple(plain["experts"]),
            groups=tuple(plain["groups"]),
            coefficients=tuple(tuple(float(c) for c in row) for row in plain["coefficients"]),
            prepare=dict(plain["prepare"]),
            runtime=dict(plain["runtime"]),
            seed=int(plain["seed"]),
        )

    @property
    def digest(self) -> str:
        """Content address: 16 hex digits of the canonical JSON."""
        return digest_of(self.to_json())


@dataclass(frozen=True, slots=True)
class Job:
    """One evaluation to be made. `key` is unique in a run and names its file in the spool.

    `items` holds, for each fitness of the run in order, the indices of the items to answer in
    `split`; None stands for all of them.
    """

    key: str
    recipe: Recipe
    split: Split = Split.SEARCH
    items: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an evaluation has no scores. `kind` decides whether another worker may try it again."""

    kind: Literal["non_finite", "out_of_memory", "error", "worker_lost", "timeout"]
    message: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a worker answers to a job.

    `responses[objective]` has one finite number per item, in the order of the job's items (with a
    statistic of several columns: so many numbers per item, item by item);
    `seconds` is wall time by phase (`materialize`, `respond`, `total`). With a `failure` there
    are no responses.
    """

    key: str
    responses: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, float]
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What one model answered to some items of one objective in one split.

    `items` are their `(n_items,)` numbers in the split, each once; `values` the answers, in the
    same order, shape `(n_items,)`.
    """

    items: NDArray[np.int64]
    values: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a candidate's losses rest on: one entry per objective.

    `standard_errors` are of the losses, `n_items` how many items were answered. `answers` are the
    items' losses (less is better), for samplers that say `wants_answers = True`.
    """

    standard_errors: tuple[float, ...]
    n_items: tuple[int, ...]
    answers: tuple[Answers, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score with its standard error, both in the objective's own units, from `n_items`."""

    score: float
    standard_error: float
    n_items: int


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """The items of one fitness in one split, as digests of their content (order matters)."""

    objectives: tuple[str, ...]
    split: Split
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker found when it started: the driver learns it here and never loads a model.

    `items` holds search and held-out items of each fitness in turn, `settings` one digest each.
    """

    model_digests: Mapping[str, str]
    groups: tuple[Group, ...]
    objectives: tuple[Objective, ...]
    items: tuple[ItemFacts, ...]
    model_bytes: int
    settings: tuple[str, ...] = ()
    norms: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """How to build an object elsewhere: `target` is `package.module:Name`."""

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def canonical_json(plain: Any) -> str:
    """One text for one value: sorted keys, no spaces, NaN refused, floats that round-trip."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(plain: Any) -> str:
    """16 hex digits of SHA-256 over the canonical JSON of plain data."""
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()[:16]
