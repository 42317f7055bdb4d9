"""What every sampler promises, whatever its algorithm."""

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evomerge.datatypes import Candidate, Dimension, Problem
from evomerge.errors import ConfigError
from evomerge.loading import resolve
from evomerge.pareto import hypervolume
from evomerge.samplers import SAMPLERS, auto

Loss = Callable[[Candidate], Sequence[float] | None]

MEMORYLESS = ("sobol", "uniform")

HISTORY_BASED = ("bayesian_map", "gaussian_process", "map", "surrogate", "tpe")
"""They never wait, and resume readmits what they have asked: floating point may differ between
processors."""

SAMPLES_FIRST = ("bayesian_map", "map")
"""They learn from half the budget before they propose anything."""

SLOW = ("gaussian_process",)
"""A proposal takes half a second and more: shorter runs."""

PROBLEMS_OF = {
    "bayesian_map": (
        "2 real, 2 objectives",
        "24 real, 3 objectives",
        "5 real, 2 binary and 2 categorical, 2 objectives",
    ),
    "map": (
        "1 categorical, 1 objective",
        "2 real, 2 objectives",
        "24 real, 3 objectives",
        "5 real, 2 binary and 2 categorical, 2 objectives",
    ),
    "tpe": (
        "2 real, 2 objectives",
        "24 real, 3 objectives",
        "2 binary, 6 objectives",
        "5 real, 2 binary and 2 categorical, 2 objectives",
        "1 categorical, 1 objective",
    ),
    "gaussian_process": (
        "2 binary, 6 objectives",
        "5 real, 2 binary and 2 categorical, 2 objectives",
        "1 categorical, 1 objective",
    ),
    "surrogate": (
        "2 real, 2 objectives",
        "2 binary, 6 objectives",
        "5 real, 2 binary and 2 categorical, 2 objectives",
        "1 categorical, 1 objective",
    ),
}
"""Where a proposal takes long, not all."""

PROBLEMS_OF_SEVERAL_KINDS = (
    "2 real, 2 objectives",
    "5 real, 2 binary and 2 categorical, 2 objectives",
)

ONE_LOSS = ("cma_es", "evo_merging", "genetic", "genome", "greedy", "lorahub", "model_swarms")
"""They take one loss or weights."""

NEEDS_EXPERTS = ("evo_merging", "lorahub", "nested_map")
"""Their problems know the base, the experts and whom they move."""

MIN_DIMENSIONS = {"nested_map": 2}
"""It needs two experts, each of which moves a dimension."""

CHARGES = ("evo_merging", "lorahub")
"""They charge for coefficients."""

MIN_OBJECTIVES = {"cycle_qd": 2, "map_elites": 2, "moead": 2, "nsga3": 2}
"""Samplers of trade-offs refuse problems without any."""

GENERATIONAL = tuple(sorted(set(SAMPLERS) - {*MEMORYLESS, *HISTORY_BASED}))


def problem_of(
    n_real: int,
    n_binary: int,
    n_objectives: int,
    budget: int = 120,
    n_choices: tuple[int, ...] = (),
) -> Problem:
    dimensions = [Dimension(f"x{i}") for i in range(n_real)]
    dimensions += [Dimension(f"bit {i}", kind="binary") for i in range(n_binary)]
    choices = [Dimension(f"choice {i}", "categorical", n) for i, n in enumerate(n_choices)]
    first = tuple(dimension.position(0) for dimension in choices)
    return Problem(
        dimensions=(*dimensions, *choices),
        n_objectives=n_objectives,
        anchors=tuple((c,) * n_real + (1.0,) * n_binary + first for c in (0.41, 0.3, 0.35)),
        budget=budget,
    )


PROBLEMS = {
    "1 real, 1 objective": problem_of(1, 0, 1),
    "2 real, 2 objectives": problem_of(2, 0, 2),
    "24 real, 3 objectives": problem_of(24, 0, 3),
    "64 real, 1 objective": problem_of(64, 0, 1),
    "6 real and 8 binary, 2 objectives": problem_of(6, 8, 2),
    "12 binary, 1 objective": problem_of(0, 12, 1),
    "2 binary, 6 objectives": problem_of(0, 2, 6),
    "5 real, 2 binary and 2 categorical, 2 objectives": problem_of(5, 2, 2, n_choices=(8, 2)),
    "1 categorical, 1 objective": problem_of(0, 0, 1, n_choices=(3,)),
}


def with_experts(problem: Problem) -> Problem:
    """The base at one end of all dimensions, and up to three experts at the other end of theirs."""
    d = len(problem.dimensions)
    owners = tuple(3 * i // d if d >= 3 else i for i in range(d))
    ends = [
        (one.position(0), one.position(1)) if one.kind == "categorical" else (0.0, 1.0)
        for one in problem.dimensions
    ]
    experts = [
        tuple(end[owner == k] for end, owner in zip(ends, owners, strict=True))
        for k in range(max(owners) + 1)
    ]
    origin = tuple(base for base, _ in ends)
    return replace(problem, origin=origin, experts=tuple(experts), owners=owners)


def build(name: str, problem: Problem, seed: int = 7) -> Any:
    options: dict[str, Any] = {}
    if name in ONE_LOSS:
        options["weights"] = [1.0] * problem.n_objectives
    if name in NEEDS_EXPERTS:
        problem = with_experts(problem)
    if name in CHARGES:
        options["regularization"] = 0.005  # in units of losses that are hundredths here
    return resolve(SAMPLERS[name])(problem, seed=seed, **options)


def spheres(problem: Problem) -> Loss:
    """Squared distances to one target per objective; they conflict. A wrong choice costs 0.2."""
    targets = np.random.default_rng(5).uniform(
        0.3, 0.7, (problem.n_objectives, len(problem.dimensions))
    )
    binary = np.array([dimension.kind == "binary" for dimension in problem.dimensions])

    def loss(candidate: Candidate) -> list[float]:
        u = np.array(candidate.u)
        decoded = np.where(binary, u >= 0.5, u)
        wanted = np.where(binary, targets >= 0.5, targets)
        losses = (decoded - wanted) ** 2
        for i, dimension in enumerate(problem.dimensions):
            if dimension.kind == "categorical":
                wrong = [dimension.choice(t) != dimension.choice(u[i]) for t in targets[:, i]]
                losses[:, i] = 0.2 * np.array(wrong)
        return [float(value) for value in losses.mean(axis=1)]

    return loss


def drive(
    sampler: Any,
    n: int,
    loss: Loss,
    order: Callable[[list[Candidate]], list[Candidate]] = list,
    at_most_pending: int = 10_000,
) -> list[Candidate]:
    """Ask n candidates, telling all that are pending whenever the sampler waits."""
    asked: list[Candidate] = []
    pending: list[Candidate] = []
    while len(asked) < n:
        candidate = sampler.ask() if len(pending) < at_most_pending else None
        if candidate is None:
            assert pending, "a sampler may only wait for something"
            for done in order(pending):
                sampler.tell(done, loss(done))
            pending = []
        else:
            asked.append(candidate)
            pending.append(candidate)
    return asked


AT_MOST = {"bayesian_map": 64, "gaussian_process": 18, "map": 64, "surrogate": 25, "tpe": 40}
"""Where a proposal takes long: few beyond the start (of 16 and 8), or beyond the first checks of
the models (at 24)."""


def n_of(name: str, n: int) -> int:
    """How many candidates a test drives."""
    return min(n, AT_MOST.get(name, n))


def workers_of(name: str) -> int:
    """How many may be pending: all of a generation, few where the next depends on them."""
    return 4 if name in HISTORY_BASED else 10_000


@pytest.fixture(params=sorted(SAMPLERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(PROBLEMS))
def problem(request: pytest.FixtureRequest, name: str) -> Problem:
    problem = PROBLEMS[request.param]
    if request.param not in PROBLEMS_OF.get(name, PROBLEMS):
        pytest.skip("slow")
    if not is_promised(name, problem):
        pytest.skip("it is refused")
    return problem


def is_promised(name: str, problem: Problem) -> bool:
    enough = len(problem.dimensions) >= MIN_DIMENSIONS.get(name, 1)
    return enough and problem.n_objectives >= MIN_OBJECTIVES.get(name, 1)


def skip_unless_promised(name: str, n_objectives: int) -> None:
    if n_objectives < MIN_OBJECTIVES.get(name, 1):
        pytest.skip("it is refused: see the test of too few objectives")


def test_points_lie_in_the_unit_cube_and_ids_count_from_zero(name: str, problem: Problem) -> None:
    n = n_of(name, 90)
    asked = drive(build(name, problem), n, spheres(problem), at_most_pending=workers_of(name))
    assert [candidate.id for candidate in asked] == list(range(n))
    generations = [candidate.generation for candidate in asked]
    assert generations[0] == 0
    assert all(later - earlier in (0, 1) for earlier, later in itertools.pairwise(generations))
    for candidate in asked:
        assert len(candidate.u) == len(problem.dimensions)
        for u, dimension in zip(candidate.u, problem.dimensions, strict=True):
            assert type(u) is float
            assert 0.0 <= u <= 1.0
            assert dimension.kind != "binary" or u in (0.0, 1.0)
            if dimension.kind == "categorical":
                assert u == dimension.position(dimension.choice(u))


def test_the_first_candidates_are_the_anchors(name: str, problem: Problem) -> None:
    asked = drive(build(name, problem), 3, spheres(problem))
    assert asked[0].u == problem.anchors[0]
    distinct = tuple(dict.fromkeys(problem.anchors))
    assert tuple(c.u for c in asked[: len(distinct)]) == distinct


def test_the_same_seed_and_calls_give_the_same_candidates(name: str, problem: Problem) -> None:
    n, loss, workers = n_of(name, 90), spheres(problem), workers_of(name)
    first, second = (
        drive(build(name, problem), n, loss, at_most_pending=workers) for _ in range(2)
    )
    assert first == second


def test_another_seed_gives_other_candidates(name: str) -> None:
    problem = PROBLEMS["24 real, 3 objectives"]
    loss = spheres(problem)
    first, second = (drive(build(name, problem, seed), 40, loss) for seed in (1, 2))
    assert [c.u for c in first[10:]] != [c.u for c in second[10:]]


def test_order_of_tells_does_not_matter(name: str, problem: Problem) -> None:
    n, loss, workers = n_of(name, 90), spheres(problem), workers_of(name)
    shuffled = random.Random(3)
    expected = drive(build(name, problem), n, loss, at_most_pending=workers)
    orders = [lambda p: shuffled.sample(p, len(p)), lambda p: p[::-1]]
    for order in orders[: 1 if name in AT_MOST else 2]:
        assert drive(build(name, problem), n, loss, order, workers) == expected


def test_number_of_workers_does_not_matter(name: str, problem: Problem) -> None:
    if name in HISTORY_BASED:
        pytest.skip("what is pending decides: see the tests of pending candidates")
    loss = spheres(problem)
    expected = drive(build(name, problem), 60, loss)
    for n_workers in (1, 3):
        assert drive(build(name, problem), 60, loss, at_most_pending=n_workers) == expected


def test_another_process_on_another_processor_asks_the_same(name: str) -> None:
    """The digest of a run, made here and in a fresh interpreter with another hash seed.

    A run may be resumed on another node of a cluster: linear algebra takes the code path of an old
    processor, and numpy (whose sorts break ties differently then) that of the oldest.
    """
    from numpy._core._multiarray_umath import __cpu_dispatch__

    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_sampler_contract as contract\n"
        "print(contract.digest_of_runs(sys.argv[2]))\n"
    )
    here = __file__.rpartition("/")[0]
    environment = {"PYTHONHASHSEED": "1", "PATH": ""}
    if name not in HISTORY_BASED:
        environment["OPENBLAS_CORETYPE"] = "Nehalem"
        environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(__cpu_dispatch__)
    elif "OMP_NUM_THREADS" in os.environ:
        environment["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    result = subprocess.run(
        [sys.executable, "-c", code, here, name],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert result.stdout.strip() == digest_of_runs(name)  # nothing else is printed either


def digest_of_runs(name: str) -> str:
    from evomerge.datatypes import digest_of

    problems = [p for p in PROBLEMS.values() if is_promised(name, p)]
    if name in PROBLEMS_OF:
        problems = [PROBLEMS[label] for label in PROBLEMS_OF_SEVERAL_KINDS]
    runs = [
        drive(build(name, p), n_of(name, 60), spheres(p), at_most_pending=workers_of(name))
        for p in problems
    ]
    return digest_of([[candidate.u for candidate in run] for run in runs])


@pytest.mark.parametrize("n_before", [1, 2, 13, 37, 50])
def test_a_replayed_prefix_continues_the_same(name: str, n_before: int) -> None:
    """As resume does: what is stateless readmits its candidates, the others are asked again."""
    if name in SLOW and n_before not in (2, 13):
        pytest.skip("slow")
    problem = PROBLEMS["6 real and 8 binary, 2 objectives"]
    n, loss = n_of(name, 80), spheres(problem)
    whole = drive(build(name, problem), n, loss, at_most_pending=1)
    resumed = build(name, problem)
    for candidate in whole[:n_before]:
        if name in HISTORY_BASED:
            resumed.readmit(candidate)
        else:
            assert resumed.ask() == candidate
        resumed.tell(candidate, loss(candidate))
    assert drive(resumed, n - n_before, loss, at_most_pending=1) == whole[n_before:]


@pytest.mark.parametrize("n_pending", [1, 5])
def test_a_readmitted_history_with_pending_candidates_continues_the_same(
    name: str, n_pending: int
) -> None:
    if name not in HISTORY_BASED:
        pytest.skip("it is replayed")
    problem = PROBLEMS["6 real and 8 binary, 2 objectives"]
    n, loss = n_of(name, 40), spheres(problem)
    sampler, resumed = build(name, problem), build(name, problem)
    pending: list[Candidate] = []
    for _ in range(n):
        candidate = sampler.ask()
        resumed.readmit(candidate)
        pending.append(candidate)
        if len(pending) > n_pending:
            done = pending.pop(0)
            sampler.tell(done, loss(done))
            resumed.tell(done, loss(done))
    assert [resumed.ask() for _ in range(2)] == [sampler.ask() for _ in range(2)]
    with pytest.raises(ValueError, match="is next"):
        resumed.readmit(candidate)


@pytest.mark.parametrize("best", range(6))
def test_every_choice_can_win_wherever_it_stands_in_the_list(name: str, best: int) -> None:
    """Choices have no order: the best one is found as well at an end as between bad ones."""
    skip_unless_promised(name, 1)
    if name in SLOW and best not in (0, 3):
        pytest.skip("slow")
    variant = Dimension("variant", "categorical", 6)
    choice_of = variant.choice
    problem = Problem(
        dimensions=(*(Dimension(f"x{i}") for i in range(4)), variant),
        n_objectives=1,
        anchors=tuple((0.4,) * 4 + (variant.position(i),) for i in range(6)),
        budget=200,
    )

    def loss(candidate: Candidate) -> list[float]:
        reals = sum((u - 0.6) ** 2 for u in candidate.u[:4])
        return [reals + (choice_of(candidate.u[4]) != best)]

    n = 40 if name in HISTORY_BASED and name not in SAMPLES_FIRST else 150
    asked = drive(build(name, problem), n, loss, at_most_pending=workers_of(name))
    assert {choice_of(candidate.u[4]) for candidate in asked[:60]} == set(range(6))
    assert choice_of(min(asked, key=loss).u[4]) == best
    if name not in MEMORYLESS:
        late = [choice_of(candidate.u[4]) == best for candidate in asked[-min(30, n // 2) :]]
        assert np.mean(late) >= 0.4  # chance is one in six


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_failed_candidates_are_survived(name: str, problem: Problem, share: float) -> None:
    loss, rng = spheres(problem), np.random.default_rng(1)
    fails = rng.random(200) < share

    def sometimes(candidate: Candidate) -> Sequence[float] | None:
        return None if fails[candidate.id] else loss(candidate)

    n = min(n_of(name, 120), 40) if name in HISTORY_BASED else 120
    asked = drive(build(name, problem), n, sometimes, at_most_pending=workers_of(name))
    assert np.isfinite([candidate.u for candidate in asked]).all()


@pytest.mark.parametrize("failed_generations", [{0}, {1}, {0, 1, 2, 3}, set(range(1000))])
def test_generations_without_any_success_are_survived(
    name: str, problem: Problem, failed_generations: set[int]
) -> None:
    loss = spheres(problem)

    def sometimes(candidate: Candidate) -> Sequence[float] | None:
        return None if candidate.generation in failed_generations else loss(candidate)

    n = min(n_of(name, 120), 40) if name in HISTORY_BASED else 120
    asked = drive(build(name, problem), n, sometimes, at_most_pending=workers_of(name))
    assert np.isfinite([candidate.u for candidate in asked]).all()


def test_losses_that_never_differ_are_survived(name: str, problem: Problem) -> None:
    n = min(n_of(name, 300), 40) if name in HISTORY_BASED else 300
    loss = [0.25] * problem.n_objectives
    asked = drive(build(name, problem), n, lambda _: loss, at_most_pending=workers_of(name))
    assert np.isfinite([candidate.u for candidate in asked]).all()


def test_losses_of_any_magnitude_are_survived(name: str, problem: Problem) -> None:
    loss = spheres(problem)
    for scale in (1e-300, 1e300):
        scaled = drive(
            build(name, problem),
            min(n_of(name, 60), 30) if name in HISTORY_BASED else 60,
            lambda c: [scale * v for v in loss(c) or ()],  # noqa: B023  # called in this turn only
            at_most_pending=workers_of(name),
        )
        assert np.isfinite([candidate.u for candidate in scaled]).all()


def test_a_generation_is_asked_once_and_awaited(name: str) -> None:
    problem = PROBLEMS["24 real, 3 objectives"]
    sampler, loss = build(name, problem), spheres(problem)
    if name not in GENERATIONAL:
        assert all(sampler.ask() is not None for _ in range(n_of(name, 60)))
        return
    for generation in range(3):
        asked = []
        while (candidate := sampler.ask()) is not None:
            asked.append(candidate)
        assert {candidate.generation for candidate in asked} == {generation}
        for candidate in asked[1:]:
            sampler.tell(candidate, loss(candidate))
            assert sampler.ask() is None
        sampler.tell(asked[0], loss(asked[0]))


def test_a_tell_without_an_ask_is_refused(name: str) -> None:
    problem = PROBLEMS["2 real, 2 objectives"]
    sampler = build(name, problem)
    candidate = sampler.ask()
    sampler.ask()
    with pytest.raises(ValueError, match="was not asked"):
        sampler.tell(Candidate(id=99, generation=0, u=candidate.u), [1.0, 1.0])
    with pytest.raises(ValueError, match="was not asked"):
        sampler.tell(Candidate(id=0, generation=0, u=(0.123, 0.5)), [1.0, 1.0])
    sampler.tell(candidate, [1.0, 1.0])
    with pytest.raises(ValueError, match="told before"):
        sampler.tell(candidate, [1.0, 1.0])


@pytest.mark.parametrize(
    "losses", [[1.0], [1.0, 2.0, 3.0], [float("nan"), 1.0], [1.0, float("inf")], []]
)
def test_losses_that_are_not_one_finite_number_per_objective_are_refused(
    name: str, losses: list[float]
) -> None:
    sampler = build(name, PROBLEMS["2 real, 2 objectives"])
    candidate = sampler.ask()
    with pytest.raises(ValueError, match="2 finite losses"):
        sampler.tell(candidate, losses)
    sampler.tell(candidate, [1.0, 2.0])  # a refused tell leaves the candidate pending


def test_global_random_states_and_output_are_not_touched(
    name: str, problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    np.random.seed(11)  # noqa: NPY002  # the global state is what is tested
    random.seed(11)
    before = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr, unused-ignore]  # noqa: NPY002
    n, workers = n_of(name, 30), workers_of(name)
    first = drive(build(name, problem), n, spheres(problem), at_most_pending=workers)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # type: ignore[index, union-attr, unused-ignore]  # noqa: NPY002
    np.random.seed(99)  # noqa: NPY002
    second = drive(build(name, problem), n, spheres(problem), at_most_pending=workers)
    assert second == first
    assert capsys.readouterr() == ("", "")


def test_no_operating_system_entropy_is_drawn(
    name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unseeded generator anywhere would make a run that cannot be replayed."""
    unseeded = []
    original = np.random.default_rng

    def watched(seed: Any = None) -> np.random.Generator:
        if seed is None:
            unseeded.append(sys._getframe(2).f_code.co_qualname)
        return original(seed)

    monkeypatch.setattr(np.random, "default_rng", watched)
    n, workers = n_of(name, 30), workers_of(name)
    drive(build(name, problem), n, spheres(problem), at_most_pending=workers)
    assert not unseeded


@pytest.mark.parametrize("n_objectives", [1, 2, 3])
@pytest.mark.parametrize(
    ("n_real", "n_binary", "n_choices"), [(6, 0, ()), (24, 0, ()), (6, 8, ()), (6, 0, (5, 3))]
)
def test_it_improves_on_its_own_start(
    name: str, n_real: int, n_binary: int, n_choices: tuple[int, ...], n_objectives: int
) -> None:
    skip_unless_promised(name, n_objectives)
    if name in SLOW and (n_real, n_binary, n_choices) != (6, 0, ()):
        pytest.skip("slow")
    n, n_start = (n_of(name, 60), 8) if name in HISTORY_BASED else (400, 20)
    if name == "tpe":  # cheap, but 24 dimensions take it longer
        n = 160
    if name in SAMPLES_FIRST and n_real == 24:
        n = 400
    problem = problem_of(n_real, n_binary, n_objectives, budget=n, n_choices=n_choices)
    loss = spheres(problem)
    asked = drive(build(name, problem), n, loss, at_most_pending=workers_of(name))
    losses = np.array([loss(c) for c in asked])
    if name in ONE_LOSS:  # what it promises is the weighted mean
        losses = losses.mean(axis=1, keepdims=True)
    reference = losses[:3].max(axis=0) * 1.1
    start, end = hypervolume(losses[:n_start], reference), hypervolume(losses, reference)
    assert end >= start
    if name not in MEMORYLESS and name not in SLOW:
        assert end > 1.1 * start


@pytest.mark.parametrize("name", sorted(MIN_OBJECTIVES))
def test_too_few_objectives_are_refused(name: str) -> None:
    problem = problem_of(3, 0, MIN_OBJECTIVES[name] - 1)
    with pytest.raises(ConfigError, match=r"needs two at least, but there is 1: use"):
        resolve(SAMPLERS[name])(problem, seed=1)


def test_several_objectives_are_refused_where_they_are_not_promised() -> None:
    with pytest.raises(ConfigError, match=r"2 objectives: give sampler\.weights.*nsga2"):
        resolve(SAMPLERS["cma_es"])(PROBLEMS["2 real, 2 objectives"], seed=1)


@pytest.mark.parametrize("budget", [60, 5000])
@pytest.mark.parametrize("n_objectives", [1, 2, 6])
def test_auto_chooses_a_sampler_that_takes_the_problem(n_objectives: int, budget: int) -> None:
    problem = problem_of(4, 2, n_objectives, budget=budget)
    name, reason = auto(problem)
    assert resolve(SAMPLERS[name])(problem, seed=1).ask() is not None
    assert (name == "surrogate") == (budget == 60)
    assert f"{budget} evaluations in 6 dimensions" in reason
