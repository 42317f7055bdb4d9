"""A real journal of a synthetic merge problem: written by Journal, read by history."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from evomerge.datatypes import Direction, FloatArray, Group, Objective, Recipe, Split, digest_of
from evomerge.history import History, Trial, history_of, losses_of, read_history
from evomerge.journal import Event, Journal
from evomerge.pareto import hypervolume, non_dominated, reference_point

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
        if recipe.operator == "random_delta":
            q = np.full(len(q), 0.22)
        if recipe.operator == "ties":
            q = q + 0.03
        return np.clip(q, 0.02, 0.98)

    def answer(self, recipe: Recipe, split: Split) -> dict[str, list[float]]:
        """Scores with the standard error of a proportion; noise by recipe and split."""
        n = 200 if split is Split.SEARCH else 400
        rng = np.random.default_rng([self.seed, int(recipe.digest, 16) % 2**32, len(split)])
        estimates: dict[str, list[float]] = {}
        for objective, q in zip(self.objectives, self.quality(recipe), strict=True):
            error = float(np.sqrt(q * (1 - q) / n))
            score = float(np.clip(q + 0.6 * error * rng.standard_normal(), 0, 1))
            if objective.direction is Direction.MINIMIZE:
                score = 1 - score
            if objective.name == self.constant:
                score, error = 0.5, 0.0
            estimates[objective.name] = [score, error, n]
        return estimates

    def started(self) -> Event:
        return {
            "event": "started",
            "versions": {"evomerge": "0.1.0", "torch": "2.9.0", "python": "3.11.9"},
            "config_digest": digest_of({"seed": self.seed}),
            "model_digests": {name: digest_of(name) for name in ("base", *self.experts)},
            "item_digests": {o.name: digest_of(o.name) for o in self.objectives},
            "n_items": {o.name: [200, 400] for o in self.objectives},
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
                {"name": o.name, "direction": o.direction.value, "worst": o.worst}
                for o in self.objectives
            ],
            "dimensions": [f"{e}.{end}" for e in self.experts for end in ("first", "last")],
            "sampler": "cma_es",
            "sampler_reason": "8 real dimensions, 3 objectives, 60 evaluations",
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
        """The run as its driver would write it."""
        time = 1_760_000_000.0
        events = [self.started()]
        history = history_of(events)
        reference: tuple[float, ...] | None = None

        def write(event: Event) -> None:
            nonlocal time
            time += 1.7
            events.append({**event, "time": time})
            history.apply(dict(events[-1]))

        front: list[Trial] = []

        def evaluate(name: str, generation: int, u: list[float] | None, recipe: Recipe) -> None:
            nonlocal front, reference
            asked = {"event": "asked", "trial": name, "split": "search", "generation": generation}
            asked["recipe_digest"] = recipe.digest
            write({**asked, "u": u} if u is not None else {**asked, "recipe": recipe.to_json()})
            answer = {"trial": name, "split": "search"}
            if u is not None and int(name) % 13 == 5 and int(name) // 13 < self.n_failures:
                message = "CUDA out of memory: <b>8 GiB</b>"
                write({"event": "failed", "kind": "out_of_memory", "message": message, **answer})
                return
            write(
                {
                    "event": "told",
                    **answer,
                    "estimates": self.answer(recipe, Split.SEARCH),
                    "seconds": {"materialize": 0.4, "respond": 2.1, "total": 2.6},
                }
            )
            trials = [*front, history.trials[name]]
            losses = losses_of(trials, self.objectives)
            kept = [t for t, keep in zip(trials, non_dominated(losses), strict=True) if keep]
            front = kept
            if reference is None:
                if len(history.scored()) < len(self.baselines()):
                    return
                reference = tuple(reference_point(history.losses(history.scored())))
            if history.front and history.front.trials == tuple(t.name for t in front):
                return
            if self.moving_reference:
                reference = tuple(r + 0.01 for r in reference)
            volume = hypervolume(losses_of(front, self.objectives), reference)
            write(
                {
                    "event": "front",
                    "n_evaluations": history.n_evaluations,
                    "trials": [t.name for t in front],
                    "hypervolume": volume,
                    "reference": list(reference),
                }
            )

        for name, recipe in self.baselines().items():
            evaluate(name, -1, None, recipe)
        points = self.points()
        for i, u in enumerate(points):
            evaluate(str(i), i // 8, u.tolist(), self.decode(u.tolist()))
        if self.held_out:
            chosen = front[: self.n_candidates_held_out]
            names = dict.fromkeys([t.name for t in chosen] + list(self.baselines()))
            for name in names:
                trial = history.trials[name]
                recipe = history.recipe(trial, self.decode)
                ask = {"trial": name, "split": "held_out", "generation": trial.generation}
                write({"event": "asked", "recipe_digest": recipe.digest, **ask})
                write(
                    {
                        "event": "told",
                        "trial": name,
                        "split": "held_out",
                        "estimates": self.answer(recipe, Split.HELD_OUT),
                        "seconds": {"materialize": 0.4, "respond": 4.1, "total": 4.6},
                    }
                )
        for i in range(self.n_pending):
            u = [0.5] * (2 * len(self.experts))
            write(
                {
                    "event": "asked",
                    "trial": str(len(points) + i),
                    "split": "search",
                    "generation": 99,
                    "recipe_digest": self.decode(u).digest,
                    "u": u,
                }
            )
        write({"event": "note", "text": "norms of experts differ [3.1 to 9.4]"})
        if self.finish:
            write({"event": "finished", "reason": "budget"})
        return events

    def history(self, folder: Path) -> History:
        """Write the run's journal and read it back."""
        folder.mkdir(parents=True, exist_ok=True)
        with Journal(folder) as journal:
            for event in self.events():
                journal.append(json.loads(json.dumps(event)))
        return read_history(folder)


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
