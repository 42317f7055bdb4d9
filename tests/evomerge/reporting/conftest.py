"""A real journal of a synthetic merge problem: written by Journal, read by history."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from evomerge.allocation import Allocation, plain_estimates
from evomerge.datatypes import Direction, FloatArray, Group, Objective, Recipe, Split, digest_of
from evomerge.fidelity import Schedule
from evomerge.history import History, Trial, history_of, losses_of, read_history
from evomerge.journal import Event, Journal
from evomerge.packing import pack
from evomerge.pareto import hypervolume, non_dominated, reference_point
from evomerge.scoring import Scoring
from fitness.estimators import MeanEstimator

KINDS = {"attn.q": 4096, "attn.o": 4096, "mlp.up": 16384, "norm": 128}


@dataclass
class Synthetic:
    """A merge problem whose scores are a smooth function of the coefficients.

    Expert k is good at objective k, in layers around a depth of its own; others disturb it there.
    """

    experts: tuple[str, ...] = ("math", "code", "chat", "law")
    objectives: tuple[Objective, ...] = (
        Objective("math"),
        Objective("code"),
        Objective("chat"),
    )
    n_layers: int = 4
    n_evaluations: int = 60
    budget: int = 60
    n_failures: int = 2
    n_candidates_held_out: int | None = None  # None: the whole last front
    held_out: bool = True
    finish: bool = True
    n_pending: int = 0
    seed: int = 1
    constant: str | None = None
    moving_reference: bool = False
    schedule: Schedule | None = None
    is_noise: bool = False  # all merges are equally good
    n_known: int = 0  # baselines whose answers come from a cache
    n_items: tuple[int, int] = (200, 400)
    n_events: int | None = None  # None: all

    @property
    def groups(self) -> tuple[Group, ...]:
        last = max(self.n_layers - 1, 1)
        stack = [
            Group(layer, kind, layer / last, n)
            for layer in range(self.n_layers)
            for kind, n in KINDS.items()
        ]
        return (
            Group(None, "embed", 0.0, 32000),
            *stack,
            Group(None, "norm", 1.0, 64),
            Group(None, "head", 1.0, 32000),
        )

    def decode(self, u: Sequence[float]) -> Recipe:
        """Two knots per expert: a line over depth, halved in norms."""
        depths = np.array([g.depth for g in self.groups])
        halved = np.array([0.5 if g.kind == "norm" else 1.0 for g in self.groups])
        knots = 1.7 * np.array(u).reshape(len(self.experts), 2) - 0.2
        C = (knots[:, :1] * (1 - depths) + knots[:, 1:] * depths) * halved
        return self.recipe(C)

    def recipe(self, C: FloatArray, operator: str = "task_arithmetic") -> Recipe:
        return Recipe(
            operator=operator,
            experts=self.experts,
            groups=tuple(g.label for g in self.groups),
            coefficients=tuple(tuple(float(c) for c in row) for row in C),
            prepare={"density": 0.2} if operator == "ties" else {},
        )

    def baselines(self) -> dict[str, Recipe]:
        K, G = len(self.experts), len(self.groups)
        ones = np.ones((K, G))
        eye = np.eye(K)
        return {
            "base": self.recipe(0 * ones),
            **{
                f"expert:{name}": self.recipe(np.outer(eye[k], np.ones(G)))
                for k, name in enumerate(self.experts)
            },
            "uniform_average": self.recipe(ones / K),
            "task_arithmetic_0.3": self.recipe(0.3 * ones),
            "task_arithmetic_0.4": self.recipe(0.4 * ones),
            "ties": self.recipe(0.5 * ones, "ties"),
            "model_stock": self.recipe(0.2 * ones, "model_stock"),
            "random_delta": self.recipe(0.1 * ones, "random_delta"),
        }

    def quality(self, recipe: Recipe) -> FloatArray:
        """True accuracies, shape `(n_objectives,)`: each objective lives at a depth of its own."""
        C = recipe.matrix()
        depths = np.array([g.depth for g in self.groups])
        q = np.empty(len(self.objectives))
        for k in range(len(q)):
            weights = np.exp(-6 * (depths - k / max(len(q) - 1, 1)) ** 2)
            weights /= weights.sum()
            own = C[k % len(C)] @ weights
            others = np.abs(np.delete(C, k % len(C), axis=0)).sum(axis=0) @ weights
            q[k] = 0.22 + 0.6 * (1 - np.exp(-2.2 * max(own, -0.2))) - 0.10 * others**1.5
        if self.is_noise:
            return np.full(len(self.objectives), 0.5)
        if recipe.operator == "random_delta":
            q = np.full(len(q), 0.22)
        if recipe.operator == "ties":
            q = q + 0.03
        return np.clip(q, 0.02, 0.98)

    def answer(self, recipe: Recipe, split: Split) -> dict[str, FloatArray]:
        """Right or wrong by item: hard items are hard for every merge, so answers are paired."""
        n = self.n_items[0 if split is Split.SEARCH else 1]
        responses: dict[str, FloatArray] = {}
        for k, (objective, q) in enumerate(zip(self.objectives, self.quality(recipe), strict=True)):
            of_items = np.random.default_rng([self.seed, len(split), k])
            of_model = np.random.default_rng(
                [self.seed, int(recipe.digest, 16) % 2**32, len(split), k]
            )
            hardness = (of_items.standard_normal(n) + of_model.standard_normal(n)) / np.sqrt(2)
            right = (hardness < NormalDist().inv_cdf(float(q))).astype(np.float64)
            if objective.direction is Direction.MINIMIZE:
                right = 1 - right
            if objective.name == self.constant:
                right = np.full(n, 0.5)
            responses[objective.name] = right
        return responses

    def started(self) -> Event:
        return {
            "event": "started",
            "versions": {"evomerge": "0.1.0", "torch": "2.9.0", "python": "3.11.9"},
            "config_digest": digest_of({"seed": self.seed}),
            "model_digests": {name: digest_of(name) for name in ("base", *self.experts)},
            "item_digests": {o.name: digest_of(o.name) for o in self.objectives},
            "settings": digest_of("settings"),
            "n_items": {o.name: list(self.n_items) for o in self.objectives},
            "fitness": [[o.name] for o in self.objectives],
            "experts": list(self.experts),
            "groups": [
                {
                    "layer": g.layer,
                    "kind": g.kind,
                    "depth": g.depth,
                    "n_parameters": g.n_parameters,
                }
                for g in self.groups
            ],
            "objectives": [
                {
                    "name": o.name,
                    "direction": o.direction.value,
                    "worst": o.worst,
                    "statistic": [o.statistic.target, o.statistic.n_columns],
                }
                for o in self.objectives
            ],
            "dimensions": [f"{e}.{end}" for e in self.experts for end in ("first", "last")],
            "sampler": "cma_es",
            "sampler_reason": "8 real dimensions, 3 objectives, 60 evaluations",
            "seed": self.seed,
            "fidelity": None if self.schedule is None else asdict(self.schedule),
            "fidelity_reason": "asked for" if self.schedule is None else "default: about 10%",
            "estimators": dict.fromkeys(
                ("ranking", "reporting"), "fitness.estimators:MeanEstimator"
            ),
            "n_baselines": len(self.baselines()),
            "budget": self.budget - len(self.baselines()),
            "time": 1_760_000_000.0,
        }

    def points(self) -> FloatArray:
        """Random points that close in on good ones, shape `(n_candidates, n_dimensions)`."""
        rng = np.random.default_rng(self.seed)
        n = self.n_evaluations - len(self.baselines())
        d = 2 * len(self.experts)
        narrowing = np.linspace(0.42, 0.16, max(n, 0))[:, None]
        points = 0.36 + narrowing * rng.standard_normal((max(n, 0), d))
        return np.clip(points, 0, 1)

    def events(self) -> list[Event]:
        """The run as its driver would write it, one question at a time."""
        return _Writer(self).events[: self.n_events]

    def history(self, folder: Path) -> History:
        """Write the run's journal and read it back."""
        folder.mkdir(parents=True, exist_ok=True)
        with Journal(folder) as journal:
            for event in self.events():
                journal.append(json.loads(json.dumps(event)))
        return read_history(folder)


class _Writer:
    """Writes the events of a synthetic run; who answers which items is the engine's to say."""

    def __init__(self, problem: Synthetic) -> None:
        self.problem = problem
        self.time = 1_760_000_000.0
        self.events: list[Event] = [problem.started()]
        self.history = history_of(self.events)
        estimators = {o.name: MeanEstimator() for o in problem.objectives}
        self.scoring = Scoring(problem.objectives, estimators, estimators)
        self.allocation = Allocation(problem.schedule, self.scoring, self.history.started, None)
        self.recipes = problem.baselines()
        self.front: list[Trial] = []
        self.reference: tuple[float, ...] | None = None
        for name in problem.baselines():
            self.ask(name, Split.SEARCH)
        for i, name in enumerate(problem.baselines()):
            self.tell(name, Split.SEARCH, is_known=i < problem.n_known)
        self.search()
        if problem.held_out:
            chosen = self.front[: problem.n_candidates_held_out]
            for name in dict.fromkeys([t.name for t in chosen] + list(problem.baselines())):
                self.ask(name, Split.HELD_OUT)
                self.tell(name, Split.HELD_OUT)
        for i in range(problem.n_pending):
            self.ask(str(len(problem.points()) + i), Split.SEARCH, [0.5] * 2 * len(problem.experts))
        self.write({"event": "note", "text": "norms of experts differ [3.1 to 9.4]"})
        if problem.finish:
            self.write({"event": "finished", "reason": "budget"})

    def write(self, event: Event) -> None:
        self.time += 1.7
        self.events.append({**event, "time": self.time})
        self.history.apply(dict(self.events[-1]))

    def search(self) -> None:
        points = self.problem.points()
        n_asked = 0
        while True:
            goes_on = n_asked < len(points)
            promoted = self.history.next_promoted()
            if promoted is not None:
                self.ask(promoted, Split.SEARCH)
                self.tell(promoted, Split.SEARCH)
            elif goes_on and self.allocation.has_room(self.history, None):
                name = str(n_asked)
                self.ask(name, Split.SEARCH, points[n_asked].tolist())
                n_asked += 1
                if int(name) % 13 == 5 and int(name) // 13 < self.problem.n_failures:
                    self.fail(name)
                else:
                    self.tell(name, Split.SEARCH)
            else:
                conclusion = self.allocation.conclude(self.history, goes_on=goes_on)
                if conclusion is None:
                    break
                self.write(conclusion)
                self.update_front()

    def ask(self, name: str, split: Split, u: list[float] | None = None) -> None:
        event: Event = {"event": "asked", "trial": name, "split": split.value}
        if split is Split.SEARCH:
            is_baseline = name in self.problem.baselines()
            block = self.allocation.block_of(self.history, name, is_baseline=is_baseline)
            if block is not None:
                if block.name not in self.history.blocks:
                    items = [list(part) for part in block.items]
                    self.write({"event": "items", "block": block.name, "items": items})
                event |= {"block": block.name, "cohort": block.cohort}
        if u is not None:
            self.recipes[name] = self.problem.decode(u)
            event |= {"generation": int(name) // 8, "u": u}
        elif name not in self.history.trials:
            event |= {"generation": -1, "recipe": self.recipes[name].to_json()}
        self.write({**event, "recipe_digest": self.recipes[name].digest})

    def tell(self, name: str, split: Split, *, is_known: bool = False) -> None:
        block = self.history.pending[name, split]
        responses = self.problem.answer(self.recipes[name], split)
        event: Event = {
            "event": "told",
            "trial": name,
            "split": split.value,
            "seconds": {} if is_known else {"materialize": 0.4, "respond": 2.1, "total": 2.6},
        }
        if is_known:
            event["known"] = True
        if block is None:
            event["estimates"] = plain_estimates(self.scoring.report(responses))
        else:
            items = self.history.blocks[block]
            responses = {
                o: values[list(items[k])] for k, (o, values) in enumerate(responses.items())
            }
        self.write({**event, "responses": {o: pack(values) for o, values in responses.items()}})
        if split is Split.SEARCH and block is None:
            self.update_front(name)

    def fail(self, name: str) -> None:
        message = "CUDA out of memory: <b>8 GiB</b>"
        event = {"event": "failed", "kind": "out_of_memory", "message": message}
        self.write({**event, "trial": name, "split": "search"})

    def update_front(self, name: str | None = None) -> None:
        """Of all contenders, or the last front and one more."""
        problem, history = self.problem, self.history
        if len([t for t in history.scored() if t.is_baseline]) < len(problem.baselines()):
            return
        if name is None or problem.schedule is not None or self.reference is None:
            trials = self.allocation.contenders(history)
        else:
            trials = [*self.front, history.trials[name]]
        kept = non_dominated(losses_of(trials, problem.objectives))
        self.front = [t for t, keep in zip(trials, kept, strict=True) if keep]
        names = tuple(t.name for t in self.front)
        is_provisional = self.allocation.is_provisional(history)
        last = history.front
        if last and (last.trials, last.is_provisional) == (names, is_provisional):
            return
        if self.reference is None:
            self.reference = tuple(reference_point(history.losses(history.scored())))
        if problem.moving_reference:
            self.reference = tuple(r + 0.01 for r in self.reference)
        event: Event = {
            "event": "front",
            "n_evaluations": history.n_evaluations,
            "trials": list(names),
            "hypervolume": hypervolume(losses_of(self.front, problem.objectives), self.reference),
            "reference": list(self.reference),
        }
        self.write({**event, "provisional": True} if is_provisional else event)


@pytest.fixture
def synthetic() -> type[Synthetic]:
    return Synthetic


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., tuple[Synthetic, History]]:
    """Build a run with some options and read its history."""

    def build(**options: object) -> tuple[Synthetic, History]:
        problem = Synthetic(**options)  # type: ignore[arg-type]  # options of a dataclass
        return problem, problem.history(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")

    return build
