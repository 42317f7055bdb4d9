import math

import numpy as np
import pytest
import torch
from torch import nn

from evomerge.datatypes import Direction, Group, Objective, Recipe, Split, Statistic
from evomerge.errors import TaskError
from evomerge.live_model import LoadedModel
from fitness.merge_facts import MergeFacts

GROUPS = (
    Group(None, "embed", 0.0, 1_000_000),
    Group(0, "attn.q", 0.0, 200_000),
    Group(0, "mlp.up", 0.0, 30_000),
    Group(1, "attn.q", 1.0, 4_000),
    Group(None, "norm", 1.0, 500),
)
FACTS = ["distance", "relative_distance", "active_pairs", "size"]


def recipe(*rows: tuple[float, ...]) -> Recipe:
    experts = tuple(f"e{number}" for number in range(len(rows)))
    return Recipe("task_arithmetic", experts, tuple(g.label for g in GROUPS), rows)


def build(measures: list[str]) -> MergeFacts:
    objectives = [Objective(name, Direction.MINIMIZE) for name in measures]
    return MergeFacts(objectives, measures=measures, seed=3)


def live(base: list[torch.Tensor], now: list[torch.Tensor], of: Recipe) -> LoadedModel:
    def compare():
        yield from ((n, b, m) for n, (b, m) in enumerate(zip(base, now, strict=True)))

    return LoadedModel(nn.Linear(1, 1), recipe=of, groups=GROUPS, compare=compare)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distances_are_frobenius_norms_of_all_tensors_together(dtype, monkeypatch):
    monkeypatch.setattr("fitness.merge_facts._CHUNK_CPU", 7)
    generator = torch.Generator().manual_seed(1)
    base = [torch.randn(shape, generator=generator).to(dtype) for shape in [(5, 4), (3,), ()]]
    now = [b + torch.randn(b.shape, generator=generator).to(dtype) for b in base]
    fitness = build(["distance", "relative_distance"])
    fitness.bind(live(base, now, recipe()))
    change = [(n.double() - b.double()).flatten().numpy() for n, b in zip(now, base, strict=True)]
    norm = np.linalg.norm(np.concatenate(change))
    relative = norm / np.linalg.norm(np.concatenate([b.double().flatten() for b in base]))
    found = fitness.respond(Split.SEARCH, (0,))
    assert found == pytest.approx(np.array([[norm, relative]]), rel=1e-12)


def test_the_base_is_at_distance_zero():
    base = [torch.zeros(3)]
    fitness = build(["distance", "relative_distance"])
    fitness.bind(live(base, base, recipe()))
    assert fitness.respond(Split.HELD_OUT, (0,)).tolist() == [[0.0, 0.0]]


def test_pairs_and_sizes_are_counted_from_the_recipe():
    fitness = build(["active_pairs", "size"])
    model = live([], [], recipe((0.3, 0.0, 0.1, 0.0, 0.0), (0.0, 1.0, -0.5, 0.0, 0.0)))
    fitness.bind(model)
    # e0 in embed and layer 0, e1 in layer 0; embed, 0.attn.q and 0.mlp.up change.
    assert fitness.respond(Split.SEARCH, (0,)).tolist() == [[3.0, 1.23]]
    model.recipe = recipe((0.0, 0.0, 0.0, 1e-9, 2.0), (0.0,) * 5)
    assert fitness.respond(Split.SEARCH, (0,)).tolist() == [[2.0, 0.0045]]
    model.recipe = recipe()
    assert fitness.respond(Split.SEARCH, (0,)).tolist() == [[0.0, 0.0]]


def test_nothing_is_compared_unless_asked():
    def compare():
        raise AssertionError
        yield

    fitness = build(["active_pairs", "size"])
    fitness.bind(LoadedModel(nn.Linear(1, 1), recipe=recipe(), groups=GROUPS, compare=compare))
    assert fitness.respond(Split.SEARCH, (0,)).tolist() == [[0.0, 0.0]]
    distances = build(["distance"])
    distances.bind(LoadedModel(nn.Linear(1, 1), compare=compare))
    assert distances.respond(Split.SEARCH, ()).shape == (0, 1)


def test_weights_are_read_once_for_all_facts():
    n_passes = 0

    def compare():
        nonlocal n_passes
        n_passes += 1
        yield 0, torch.zeros(3), torch.tensor([0.0, 3.0, 4.0])

    fitness = build(["distance", "relative_distance", "distance"])
    fitness.bind(LoadedModel(nn.Linear(1, 1), recipe=recipe(), groups=GROUPS, compare=compare))
    with pytest.raises(FloatingPointError, match="relative_distance is inf"):
        fitness.respond(Split.SEARCH, (0,))
    assert n_passes == 1


def test_facts_claim_no_standard_error_and_have_one_item_a_split():
    fitness = build(FACTS)
    assert [objective.statistic for objective in fitness.objectives] == [Statistic("exact")] * 4
    assert [objective.direction for objective in fitness.objectives] == [Direction.MINIMIZE] * 4
    search, held_out = (fitness.items(split) for split in Split)
    assert (len(search), len(held_out)) == (1, 1)
    assert search != held_out
    assert build(["size"]).settings != build(["distance"]).settings


def test_weights_that_are_not_finite_are_named_by_the_measure():
    fitness = build(["distance"])
    fitness.bind(live([torch.zeros(3)], [torch.tensor([0.0, math.nan, 1.0])], recipe()))
    with pytest.raises(FloatingPointError, match="distance is nan"):
        fitness.respond(Split.SEARCH, (0,))


@pytest.mark.parametrize(
    ("measures", "fact"),
    [
        (["distnace"], "did you mean 'distance'"),
        (["accuracy"], "is one of distance, relative_distance, active_pairs, size"),
        (["size", "distance"], "one measure for each objective"),
    ],
)
def test_bad_measures_are_refused(measures, fact):
    with pytest.raises(TaskError, match=fact):
        MergeFacts([Objective("o")], measures=measures)


def test_respond_needs_a_bound_model():
    with pytest.raises(RuntimeError, match="bind"):
        build(["size"]).respond(Split.SEARCH, (0,))
