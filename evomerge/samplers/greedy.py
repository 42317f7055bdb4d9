"""Greedy forward selection: from the best model known, step by step towards one expert at a time.

The steps are those of Frank and Wolfe (1956), 2 / (t + 2) in round t (Jaggi 2013); the direction is
not the gradient's but the best of all, each being evaluated. A cheap baseline.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.design import Kinds, centred_design, proposal
from evomerge.samplers.generational import Generational, Point
from evomerge.samplers.ledger import Told
from evomerge.samplers.scalarization import scalarizer

N_DRAWN = 12
"""Directions of a round that are drawn where no experts are known or these are exhausted."""

N_START = 16
"""Points of the centred design that the first round starts from where no experts are known."""

SMALLEST_STEP = 1.0 / 512.0
"""Share of the way below which a step hardly changes a model: then the rounds begin again."""


class GreedySampler(Generational):
    """Minimises one loss, or a scalarization of several, by moving one incumbent.

    Generation 0 is the anchors, the experts alone and the base. The best of it is the incumbent. A
    later generation has one candidate for each expert and for the base, the incumbent moved by the
    share `step` of the way there; the best is the next incumbent if it improves, else the step is
    halved. Bits and choices are taken over from the expert with probability `step`, but no fewer
    than one in every other candidate. Where a move leads nowhere, it is left out.

    When steps have become too small to matter they start anew, towards points drawn in the cube:
    experts have no more to give. So do they from the start where the problem knows no experts;
    generation 0 is the centred design then.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        scalarization: str = "weighted",
    ) -> None:
        """Start with the anchors, the experts and the base.

        Args:
            problem: dimensions, anchors, objectives; experts and origin where it knows them.
            seed: of bits, choices and points drawn.
            weights: one per objective, in the problem's order or by name.
            scalarization: `weighted`, `tchebycheff` or `percentile`.

        Raises:
            ConfigError: an option does not fit, or there are several objectives and no weights.
        """
        self._scalarizer = scalarizer(problem, weights, scalarization, sampler="greedy")
        self._kinds = Kinds.of(problem)
        self._seed = seed
        ends = [*problem.experts, *([] if problem.origin is None else [problem.origin])]
        # without experts the base alone would be the only way to go
        self._vertices = np.array(ends if problem.experts else [], dtype=np.float64)
        written = [tuple(proposal(np.array(end, dtype=np.float64), self._kinds)) for end in ends]
        n_start = 0 if problem.experts else N_START
        design = centred_design(problem, max(n_start, len(set(problem.anchors))), seed).tolist()
        super().__init__(problem.n_objectives, list(dict.fromkeys([*map(tuple, design), *written])))
        self._n_improvements = 0
        self._n_halvings = 0
        self._incumbent: tuple[FloatArray, tuple[float, ...]] | None = None
        self._fallback = np.array(problem.anchors[0], dtype=np.float64)
        self._history: list[tuple[float, ...]] = []

    def _take(self, generation: Sequence[Told]) -> None:
        rows = [
            (np.array(told.candidate.u, dtype=np.float64), told.losses)
            for told in generation
            if told.losses is not None
        ]
        self._history += [losses for _, losses in rows]
        contenders = rows if self._incumbent is None else [self._incumbent, *rows]
        if not contenders:
            return  # all failed: the same directions once more, other draws
        values = self._scalarizer.losses(
            np.array([losses for _, losses in contenders]), np.array(self._history)
        )
        best = int(np.argmin(values))  # of equals the first: the incumbent stays
        if self._incumbent is None or best > 0:
            self._n_improvements += self._incumbent is not None
            self._incumbent = contenders[best]
            return
        self._n_halvings += 1
        if self._step() < SMALLEST_STEP:
            self._n_improvements = self._n_halvings = 0
            self._vertices = np.zeros((0, len(self._fallback)))

    def _step(self) -> float:
        """Share of the way to a vertex; round 1 has no step of 1, which would forget all."""
        return 2.0 / (self._n_improvements + 3.0) / 2.0**self._n_halvings

    def _breed(self) -> list[Point]:
        rng = np.random.default_rng([self._seed, 0x62EED, self._generation])
        x = self._fallback if self._incumbent is None else self._incumbent[0]
        vertices = self._vertices if len(self._vertices) else rng.random((N_DRAWN, len(x)))
        step = self._step()
        # a jump in every other candidate at least: what is taken over whole has no smaller step
        n_whole = int((~self._kinds.real).sum())
        jumps = rng.random(vertices.shape) < max(step, 0.5 / max(n_whole, 1))
        along = x + step * (vertices - x)
        moved = np.where(self._kinds.real, along, np.where(jumps, vertices, x))
        moves = list(dict.fromkeys(tuple(proposal(row, self._kinds)) for row in moved))
        return [move for move in moves if move != tuple(x.tolist())] or moves
