import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from evomerge.baselines import baselines
from evomerge.config import StartConfig, read_config
from evomerge.datatypes import Group, Recipe
from evomerge.errors import ConfigError, RunError
from evomerge.history import read_history
from evomerge.journal import read_events
from evomerge.search import resume, start
from evomerge.session import Session, bind_space
from evomerge.warm_starts import warm_starts
from search_spaces.merge_space import merge_space

GROUPS = (
    Group(None, "embed", 0.0, 500),
    *(Group(layer, kind, layer / 3, 100) for layer in range(4) for kind in ("attn.q", "mlp.up")),
    Group(None, "head", 1.0, 500),
)
LABELS = tuple(group.label for group in GROUPS)
EXPERTS = ("math", "code", "chat")
BASELINES = baselines(EXPERTS, LABELS)


def starts(space, **options):
    return warm_starts(StartConfig(**options), space, EXPERTS, GROUPS, BASELINES, bind_space)


def recipe_of(rows, experts=EXPERTS, operator="task_arithmetic", groups=LABELS):
    C = np.broadcast_to(np.array(rows, dtype=float)[:, None], (len(rows), len(groups)))
    return Recipe(operator, experts, groups, tuple(tuple(row) for row in C.tolist()))


@pytest.fixture
def space():
    return merge_space(EXPERTS, GROUPS, coefficients={"map": "depth_spline", "knots": 2})


def matrices(space, points):
    return [space.decode(point).matrix() for point in points]


def test_recipes_come_first_by_the_names_of_experts_and_groups(space):
    turned = recipe_of([0.7, 0.1], experts=("chat", "math"), groups=LABELS[::-1])
    points = starts(space, recipes=[turned.to_json(), recipe_of([0.2, 0.3, 0.4]).to_json()])
    first, second = matrices(space, points[:2])
    np.testing.assert_allclose(first, np.outer([0.1, 0.0, 0.7], np.ones(len(LABELS))), atol=1e-5)
    np.testing.assert_allclose(second[:, 0], [0.2, 0.3, 0.4], atol=1e-5)
    assert points[2:] == space.anchors


def test_merges_that_are_the_same_here_are_one_start(space):
    twice = [recipe_of([0.2, 0.3, 0.4]).to_json()] * 2
    assert len(starts(space, recipes=twice)) == 1 + len(space.anchors)
    known = space.decode(space.anchors[1]).to_json()
    assert len(starts(space, recipes=[known])) == len(space.anchors)


def test_baselines_are_projected_but_for_base_and_control(space):
    points = starts(space, baselines=True)
    found = [matrix[:, 0].round(4).tolist() for matrix in matrices(space, points)]
    assert found[:3] == np.eye(3).tolist()
    assert found[3:6] == [[0.3333] * 3, [0.3] * 3, [0.4] * 3]
    assert len(found) == 6


def test_layer_priors_rise_with_depth_for_all_alike_and_for_each_expert_leading(space):
    matrices_ = matrices(space, starts(space, layer_priors=True))
    assert len(matrices_) == 6 + len(space.anchors)
    for C in matrices_[:6]:
        assert (np.diff(C[:, 1:-1:2], axis=1) > 0).all()
        np.testing.assert_allclose(C[:, -1], 3 * C[:, 0], atol=1e-4)
    assert [C.mean(axis=1).argmax() for C in matrices_[3:6]] == [0, 1, 2]
    own = matrices(space, starts(space, layer_priors=[0.1]))
    np.testing.assert_allclose(own[0].mean(axis=1), 0.1, atol=1e-4)


def test_a_recipe_keeps_its_operator_where_the_space_has_it():
    variants = [{"operator": "task_arithmetic"}, {"operator": "ties", "prepare": {"density": 0.3}}]
    space = merge_space(EXPERTS, GROUPS, coefficients={"map": "global"}, variants=variants)
    points = starts(space, recipes=[recipe_of([0.5, 0.6, 0.7], operator="ties").to_json()])
    recipe = space.decode(points[0])
    assert recipe.operator == "ties"
    np.testing.assert_allclose(recipe.matrix()[:, 0], [0.5, 0.6, 0.7], atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (
            recipe_of([0.1, 0.2], experts=("math", "law")),
            r"own experts \(math, code.*one is of law",
        ),
        (recipe_of([0.1, 0.2, 0.3], groups=("embed", "head")), "2 groups where this base has 10"),
    ],
)
def test_recipes_of_other_models_are_refused(space, recipe, sentence):
    with pytest.raises(ConfigError, match=sentence):
        starts(space, recipes=[recipe.to_json()])


def test_a_start_that_names_nothing_is_refused(space):
    with pytest.raises(ConfigError, match="it has none of them"):
        starts(space)


TEXT = "abc bca\ncab abb\nbbc acc\naab cab\n"


@pytest.fixture
def cheap_run(write_config, tmp_path):
    """A run without labels: how near the merge stays to its experts, and how sure it is."""
    (tmp_path / "text.txt").write_text(TEXT)
    measures = {"near": "js_to_experts", "sure": "entropy"}
    objectives = [
        {"name": name, "unlabeled": measure, "text": "text.txt", "direction": "minimize"}
        for name, measure in measures.items()
    ]
    config = write_config("cheap.yaml", objectives=objectives, budget={"evaluations": 8})
    start(read_config(config), tmp_path / "cheap")
    return tmp_path / "cheap"


def test_a_labelled_run_starts_from_an_unlabeled_one_and_resumes_without_it(
    cheap_run, write_config, tmp_path
):
    cheap = read_history(cheap_run)
    config = write_config(
        start={"run": "cheap", "n": 3}, budget={"evaluations": 4}, final={"prefer": "sort>=0, last"}
    )
    history = start(read_config(config), tmp_path / "run")
    asked = [t.u for t in history.trials.values() if not t.is_baseline]
    assert history.started.anchors[: len(asked)] == tuple(asked)
    of_front = {cheap.trials[name].u for name in cheap.front.trials} - {None}
    assert set(asked[: min(3, len(of_front))]) <= of_front  # the same space: the very points

    shutil.rmtree(cheap_run)
    resumed = resume(tmp_path / "run", evaluations=6)
    assert len([t for t in resumed.trials.values() if not t.is_baseline]) == 6
    assert resumed.started.prefer == "sort>=0, last"


def test_a_run_starts_from_recipes_in_files_and_remembers_what_they_held(write_config, tmp_path):
    config = read_config(write_config(budget={"evaluations": 0}))
    history = start(config, tmp_path / "first")
    average = history.trials["uniform_average"].recipe
    file = tmp_path / "average.json"
    half = replace(average, coefficients=tuple((0.5,) * len(r) for r in average.coefficients))
    file.write_text(json.dumps(half.to_json()))
    path = write_config("b.yaml", start={"recipes": ["average.json"]}, budget={"evaluations": 2})
    config = read_config(path)
    file.unlink()
    start(config, tmp_path / "run")
    events, _ = read_events(tmp_path / "run" / "journal.jsonl")
    u = tuple(events[0]["anchors"][0])
    recipe = bind_space(config, history.started.groups).decode(u)
    np.testing.assert_allclose(recipe.matrix(), 0.5, atol=1e-4)
    assert resume(tmp_path / "run", evaluations=3).finished == "budget spent"


def test_unusable_starts_are_refused_before_any_work(write_config, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"nowhere is no run directory"):
        start(read_config(write_config(start={"run": "nowhere"})), run)
    with pytest.raises(ConfigError, match="none of them"):
        start(read_config(write_config(start={})), run)
    assert not run.exists()
    with pytest.raises(ConfigError, match=r"start\.recipes must be the file of a recipe"):
        read_config(write_config(start={"recipes": ["none.json"]}))
    with pytest.raises(ConfigError, match=r"unknown key `start\.runs`: did you mean `run`"):
        read_config(write_config(start={"runs": "a"}))
    with pytest.raises(ConfigError, match=r"final\.prefer: preferences name .* speed is none"):
        read_config(write_config(final={"prefer": "speed>=1"}))


def test_a_session_tells_its_sampler_where_base_and_experts_are(write_config):
    with Session(read_config(write_config())) as session:
        problem, space = session.problem, session.space
    assert problem.names == ("sort", "twice", "last")
    assert problem.anchors == space.anchors
    assert problem.origin is not None
    assert np.abs(space.decode(problem.origin).matrix()).max() < 0.05
    for k, point in enumerate(problem.experts):
        np.testing.assert_allclose(
            space.decode(point).matrix().mean(axis=1), np.eye(3)[k], atol=0.05
        )
    assert len(problem.experts) == 3
    for dimension, owner in zip(problem.dimensions, problem.owners, strict=True):
        assert dimension.label.startswith(problem.names[owner])
    assert all(0.0 <= depth <= 1.0 for depth in problem.depths)
