"""A swarm in the cube: where its particles start in a pool of experts, and how they fly.

The step is that of Model Swarms (Feng et al. 2024, arXiv 2410.11163), which GENOME+ takes too.
"""

from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.design import SPREAD, Kinds, centred_design, proposal
from evomerge.samplers.variation import inherited, mutated

DECAY, SHORTEST_STEP = 0.95, 0.1
"""What the step is multiplied by after each generation, and what it never falls below."""


@dataclass(frozen=True, slots=True)
class Pulls:
    """The phi of the velocity: what a particle is drawn by, at least one of them above 0."""

    inertia: float
    personal_best: float
    best: float
    worst: float


def flown(
    X: FloatArray,
    V: FloatArray,
    P: FloatArray,
    best: FloatArray,
    worst: FloatArray,
    *,
    pulls: Pulls,
    step: float,
    kinds: Kinds,
    rng: np.random.Generator,
) -> FloatArray:
    """Let particles fly one step.

    v <- (r_v phi_v v + r_p phi_p (p - x) + r_g phi_g (g - x) - r_w phi_w (w - x)) / C with C the
    sum of the four r phi, and x <- x + step v; each r is drawn from U(0, 1) for each particle.

    Bits and choices, which have no way in between, are taken over whole from p or g with the
    probability `step` r phi / C; those that equal w's change to another with w's probability.

    Args:
        X: `(n_particles, n_dimensions)` points.
        V: velocities, shape of `X`.
        P: the best points of each particle, shape of `X`.
        best: `(n_dimensions,)` point, the g above.
        worst: `(n_dimensions,)` point, the w above.
        pulls: the phi above.
        step: within 0 and 1.
        kinds: of the dimensions.
        rng: of the r, bits and choices.

    Returns:
        Points of the cube as they are proposed, shape of `X`.
    """
    phi = np.array([pulls.inertia, pulls.personal_best, pulls.best, pulls.worst])
    drawn = (1.0 - rng.random((len(X), 4))) * phi  # above 0, so that C is
    shares = drawn / drawn.sum(axis=1, keepdims=True)
    s_v, s_p, s_g, s_w = shares.T[:, :, None]
    along = X + step * (s_v * V + s_p * (P - X) + s_g * (best - X) - s_w * (worst - X))
    turn = rng.random(X.shape) / step
    others = _others(X, kinds, rng)
    whole = np.where((turn >= s_p + s_g) & (turn < s_p + s_g + s_w) & (worst == X), others, X)
    whole = np.where(turn < s_p + s_g, best, whole)
    whole = np.where(turn < s_p, P, whole)
    Q = np.where(kinds.real, np.clip(along, 0.0, 1.0), whole)
    return np.array([proposal(row, kinds) for row in Q]).reshape(X.shape)


def step_to(generation: int, first: float) -> float:
    """Share of the velocity that particles fly to a generation, the first being 1.

    It decays by the generation, not with every particle that flies.
    """
    return max(first * DECAY ** (generation - 1), SHORTEST_STEP)


def pool_start(problem: Problem, n: int, seed: int) -> FloatArray:
    """Place the first particles.

    Args:
        problem: anchors, and experts where it knows them.
        n: how many points, at least one.
        seed: of what is drawn.

    Returns:
        `(n, n_dimensions)` points: the distinct anchors, the experts alone, then points on the line
        between two experts drawn at random (of which bits and choices are inherited from either).
        Where fewer than two experts are known or they have no more to give, the centred design.
    """
    kinds = Kinds.of(problem)
    rng = np.random.default_rng([seed, 0x5BA3])
    points = list(dict.fromkeys(tuple(map(float, anchor)) for anchor in problem.anchors))
    n_anchors = len(points)
    experts = np.array(problem.experts, dtype=np.float64)
    known = {tuple(proposal(np.array(anchor), kinds)) for anchor in points}
    for expert in experts:
        point = tuple(proposal(expert, kinds))
        if point not in known:
            points.append(point)
            known.add(point)
    for _ in range(2 * n if len(experts) > 1 else 0):
        if len(points) >= n:
            break
        a, b = experts[rng.permutation(len(experts))[:2]]
        point = tuple(proposal(crossed(a, b, float(rng.random()), kinds, rng), kinds))
        if point not in known:
            points.append(point)
            known.add(point)
    if len(points) < n:
        design = centred_design(problem, n + n_anchors, seed).tolist()[n_anchors:]
        points += [tuple(row) for row in design if tuple(row) not in known]
        points += [tuple(row) for row in design]  # a cube of few points: repeats after all
    return np.array(points[:n], dtype=np.float64)


def crossed(
    a: FloatArray, b: FloatArray, t: float, kinds: Kinds, rng: np.random.Generator
) -> FloatArray:
    """The point at the share `t` of the way from a to b; bits and choices of b with that chance."""
    return np.asarray(np.where(kinds.real, a + t * (b - a), inherited(a, b, t, rng)))


def _others(X: FloatArray, kinds: Kinds, rng: np.random.Generator) -> FloatArray:
    """For each bit the other value, for each choice another at random; shape of `X`."""
    n = np.where(kinds.binary, 2, np.maximum(kinds.n_choices, 1))
    chosen = np.minimum(np.floor(X * n), n - 1)
    further = 1 + np.floor(rng.random(X.shape) * (n - 1))  # steps around the circle of choices
    other = (chosen + further) % n
    return np.asarray(np.where(kinds.binary, other, (other + 0.5) / n))


def scattered(X: FloatArray, kinds: Kinds, rng: np.random.Generator) -> FloatArray:
    """Points around others, as they are proposed: where nothing succeeded, nothing draws."""
    return np.array([proposal(mutated(x, kinds, SPREAD, rng), kinds) for x in X]).reshape(X.shape)


def default_swarm(problem: Problem) -> int:
    """A twentieth of the budget within 10 and 20, as published; all experts if there is room."""
    anchors = len(problem.anchors)
    pool = min(anchors + len(problem.experts), problem.budget // 4)
    return max(min(max(problem.budget // 20, 10), 20), pool, anchors)
