"""What `evomerge inspect` finds: every number against NumPy, every warning on a real checkpoint."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from typer.testing import CliRunner

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.cli import app
from evomerge.inspection import Inspection, Tally, inspect
from evomerge.reporting.inspection import inspection_png, inspection_rows

Weights = dict[str, Tensor]
# 4 heads of 8 in 2 groups; tensors of more than one piece would be slow here, see the 17 experts.
CONFIG = transformers.LlamaConfig(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    transformers.utils.logging.disable_progress_bar()


def initial(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    state = transformers.LlamaForCausalLM(CONFIG).state_dict()
    return {
        name: torch.randn(t.shape, generator=generator) * 0.1 + (t.dim() == 1)
        for name, t in sorted(state.items())
        if name != "lm_head.weight"
    }


def tuned(weights: Weights, seed: int, size: float = 0.005) -> Weights:
    """Every weight a little off, as after fine-tuning."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {n: t + size * torch.randn(t.shape, generator=generator) for n, t in weights.items()}


def model_of(weights: Weights, dtype: torch.dtype = torch.float32) -> transformers.LlamaForCausalLM:
    model = transformers.LlamaForCausalLM(CONFIG)
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    return model.to(dtype).eval()


class World:
    """Folders of models, and what inspecting them finds."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.dtype = folder, dtype

    def save(self, **models: Weights) -> None:
        for name, weights in models.items():
            model_of(weights, self.dtype).save_pretrained(self.folder / name)

    def inspect(self, *experts: str) -> Inspection:
        base = Checkpoint.open(self.folder / "base")
        opened = [open_expert(name, self.folder / name, base) for name in experts]
        return inspect(base, opened, Anatomy.of(base))

    def numerical_warnings(self, *experts: str) -> list[str]:
        found = self.inspect(*experts).warnings
        return [warning for warning in found if "tokenizer" not in warning]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.save(base=initial(0))
    return made


def reference(world: World, experts: tuple[str, ...], names: list[str]) -> dict[str, np.ndarray]:
    """The same figures, dense, from the formulas."""
    checkpoints = [Checkpoint.open(world.folder / name) for name in ("base", *experts)]

    def delta(k: int, name: str) -> Tensor:
        base = checkpoints[0].read(name)
        return (checkpoints[k].read(name).float() - base.float()).to(base.dtype).double().ravel()

    W0 = np.concatenate([checkpoints[0].read(n).double().ravel().numpy() for n in names])
    t = [np.concatenate([delta(k, n).numpy() for n in names]) for k in range(1, len(checkpoints))]
    kept = []
    for k in range(1, len(checkpoints)):
        parts = []
        for name in names:
            magnitudes = delta(k, name).abs().to(torch.bfloat16).double().numpy()
            n_kept = max(1, round(0.2 * len(magnitudes)))
            least = np.sort(magnitudes)[-n_kept]
            parts.append((magnitudes >= least) & (magnitudes > 0))
        kept.append(np.concatenate(parts))

    def conflicts(signs: np.ndarray) -> tuple[np.ndarray, float]:
        n = len(signs)
        pairs = np.full((n, n), np.nan)
        for i in range(n):
            for j in range(n):
                both = signs[i] * signs[j]
                if (both != 0).any():
                    pairs[i, j] = (both < 0).sum() / (both != 0).sum()
        shared = (signs != 0).sum(0) >= 2
        disputed = (signs > 0).any(0) & (signs < 0).any(0)
        return pairs, disputed.sum() / shared.sum() if shared.any() else np.nan

    signs = np.sign(t)
    norms = np.array([np.linalg.norm(x) for x in t])
    with np.errstate(invalid="ignore"):
        cosines = np.array([[x @ y for y in t] for x in t]) / np.outer(norms, norms)
    pairs, conflict = conflicts(signs)
    top_pairs, top_conflict = conflicts(signs * np.array(kept))
    W = [W0 + x for x in t]
    return {
        "base_norm": np.linalg.norm(W0),
        "norms": norms,
        "relative": norms / np.linalg.norm(W0),
        "zeros": np.array([(x == 0).mean() for x in t]),
        "cosines": cosines,
        "weight_cosines": np.array([w @ W0 / np.linalg.norm(w) / np.linalg.norm(W0) for w in W]),
        "distances": np.array([[np.linalg.norm(x - y) for y in t] for x in t]),
        "pairs": pairs,
        "conflict": conflict,
        "top_pairs": top_pairs,
        "top_conflict": top_conflict,
    }


def figures(tally: Tally) -> dict[str, object]:
    return {
        "base_norm": tally.base_norm,
        "norms": tally.norms,
        "relative": tally.relative,
        "zeros": tally.zeros,
        "cosines": tally.cosines,
        "weight_cosines": tally.weight_cosines,
        "distances": tally.distances,
        "pairs": tally.signs.conflicts,
        "conflict": tally.signs.conflict,
        "top_pairs": tally.top.conflicts,
        "top_conflict": tally.top.conflict,
    }


# Numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_figure_is_that_of_numpy(tmp_path: Path, dtype: torch.dtype) -> None:
    world, base = World(tmp_path, dtype), initial(0)
    math, code, law = tuned(base, 1), tuned(base, 2, 0.002), tuned(base, 3)
    for name in [n for n in base if "norm" in n or "layers.1.mlp" in n]:
        code[name] = base[name]
    law |= {n: (law[n] + math[n]) / 2 for n in base}
    world.save(base=base, math=math, code=code, law=law)
    found = world.inspect("math", "code", "law")
    roles = Anatomy.of(Checkpoint.open(tmp_path / "base")).roles
    parts = {"total": (found.total, list(roles))}
    for i, (group, tally) in enumerate(zip(found.groups, found.tallies, strict=True)):
        parts[group.label] = (tally, [n for n, role in roles.items() if role.group == i])
    parts["kind"] = (found.by_kind()["mlp.up"], [n for n, r in roles.items() if r.kind == "mlp.up"])
    parts["layer"] = (found.by_layer()[1], [n for n, role in roles.items() if role.layer == 1])
    for tally, names in parts.values():
        expected = reference(world, ("math", "code", "law"), names)
        for figure, value in figures(tally).items():
            # A distance is the root of a difference of squares.
            tolerance = 1e-6 if figure == "distances" else 1e-12
            np.testing.assert_allclose(value, expected[figure], rtol=1e-9, atol=tolerance)
    assert found.total.n_parameters == sum(t.numel() for t in base.values())


def test_figures_depend_neither_on_pieces_nor_on_threads(tmp_path: Path) -> None:
    """40 experts are cut into shorter pieces; the first two of them are as they are alone."""
    big = transformers.LlamaConfig(**CONFIG.to_dict() | {"vocab_size": 2500})
    generator = torch.Generator().manual_seed(0)
    model = transformers.LlamaForCausalLM(big)
    names = ["base", *(f"e{k}" for k in range(3))]
    for name in names:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(tmp_path / name)
    base = Checkpoint.open(tmp_path / "base")
    experts = [open_expert(name, tmp_path / name, base) for name in names[1:]]
    many = inspect(base, experts * 13, Anatomy.of(base)).total
    few = inspect(base, experts[:2], Anatomy.of(base)).total
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1 if n_threads > 1 else 2)
    alone = inspect(base, experts[:2], Anatomy.of(base)).total
    torch.set_num_threads(n_threads)
    np.testing.assert_array_equal(alone.products, few.products)
    np.testing.assert_allclose(many.products[:3, :3], few.products, rtol=1e-13)
    np.testing.assert_array_equal(many.signs.opposed[:2, :2], few.signs.opposed)
    np.testing.assert_array_equal(many.top.both[:2, :2], few.top.both)
    assert many.equal[0, 3]
    assert not many.equal[0, 1]


def test_a_model_without_changes_has_no_figures_and_no_nan_in_json(world: World) -> None:
    world.save(same=initial(0), tuned=tuned(initial(0), 1))
    found = world.inspect("same", "tuned")
    assert found.total.norms[0] == 0
    assert found.total.zeros.tolist() == [1.0, 0.0]
    assert np.isnan(found.total.cosines[0, 1])
    assert np.isnan(found.total.signs.conflict)
    rows = inspection_rows(found)
    json.dumps(rows, allow_nan=False)
    assert rows["total"]["cosines"][0] == [None, None]
    assert rows["total"]["sign_conflict"] is None


# Warnings


def test_healthy_experts_are_not_warned_of(world: World) -> None:
    base = initial(0)
    world.save(math=tuned(base, 1), code=tuned(base, 2), law=tuned(base, 3, 0.002))
    assert world.numerical_warnings("math", "code", "law") == []


@pytest.mark.slow
def test_a_trained_zoo_is_not_warned_of(tiny_zoo) -> None:
    base = Checkpoint.open(tiny_zoo.base)
    paths = {**tiny_zoo.experts, **tiny_zoo.adapters}
    experts = [open_expert(name, path, base) for name, path in paths.items()]
    assert inspect(base, experts, Anatomy.of(base)).warnings == tuple(
        warning for expert in experts for warning in expert.warnings
    )


def test_experts_of_another_base_are_warned_of_and_belong_together(world: World) -> None:
    other = initial(7)
    world.save(math=tuned(other, 1), code=tuned(other, 2), law=tuned(initial(0), 3))
    found = world.numerical_warnings("math", "code", "law")
    wrong = [w for w in found if "must be fine-tuned from the base" in w]
    assert len(wrong) == 2
    assert wrong[0].startswith(
        "an expert must be fine-tuned from the base, but math differs from it by 14"
    )
    assert wrong[0].endswith(": give the base that it was trained from")
    (common,) = [w for w in found if "most of the change is common" in w]
    assert "math and code (1.00)" in common
    assert "law" not in common
    (disparity,) = [w for w in found if "times as long" in w]
    assert "that of law" in disparity


def test_experts_that_share_a_closer_ancestor_are_warned_of(world: World) -> None:
    chat = tuned(initial(0), 5, 0.02)
    world.save(math=tuned(chat, 1), code=tuned(chat, 2), law=tuned(initial(0), 3, 0.02))
    (found,) = world.numerical_warnings("math", "code", "law")
    assert found.startswith("the base should be the nearest model that experts come from, but most")
    assert "math and code (0.94)" in found
    assert "law" not in found


def test_experts_nearer_to_each_other_than_to_the_base_are_warned_of(world: World) -> None:
    chat = tuned(initial(0), 5, 0.01)
    world.save(math=tuned(chat, 1, 0.006), code=tuned(chat, 2, 0.006))
    (found,) = world.numerical_warnings("math", "code")
    assert "but math and code are nearer to each other (" in found


def test_a_locked_expert_is_warned_of(world: World) -> None:
    """Random invertible transforms of queries and keys, and of values and outputs, per head."""
    healthy = tuned(initial(0), 1)
    locked, rng = dict(healthy), np.random.default_rng(0)
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn."
        q, k, v, o = (healthy[f"{prefix}{x}_proj.weight"].double().clone() for x in "qkvo")
        for group in range(2):
            kv = slice(8 * group, 8 * group + 8)
            A = torch.tensor(rng.normal(size=(8, 8)))
            # Rotary positions commute with a rotation and scaling of each pair (i, i + 4).
            angle, scale = (torch.tensor(rng.uniform(*x, size=4)) for x in ((0, 6.28), (0.5, 2.0)))
            c, s = torch.diag(angle.cos()), torch.diag(angle.sin())
            rotation = torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)])
            scale = scale.repeat(2)[:, None]
            k[kv] = rotation @ k[kv] / scale
            v[kv] = A @ v[kv]
            for head in (2 * group, 2 * group + 1):
                rows = slice(8 * head, 8 * head + 8)
                q[rows] = rotation @ q[rows] * scale
                o[:, rows] = o[:, rows] @ torch.linalg.inv(A)
        locked |= {f"{prefix}{x}_proj.weight": w.float() for x, w in zip("qkvo", (q, k, v, o))}  # noqa: B905 - four of each
    tokens = torch.tensor([[1, 5, 9, 40, 3, 7]])
    with torch.no_grad():
        before, after = (model_of(w)(tokens).logits for w in (healthy, locked))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-4)  # it works alone

    world.save(locked=locked, code=tuned(initial(0), 2))
    found = world.numerical_warnings("locked", "code")
    (warning,) = [w for w in found if "MergeLock" in w]
    assert warning.startswith(
        "an expert must lie near the base in every part, but the attention weights of locked"
    )
    assert "code" not in warning
    assert not [w for w in found if "must be fine-tuned from the base" in w]


def test_permuted_neurons_are_warned_of(world: World) -> None:
    healthy = tuned(initial(0), 1)
    permuted, order = dict(healthy), torch.arange(55, -1, -1)
    for layer in range(2):
        for part in ("gate", "up", "down"):
            name = f"model.layers.{layer}.mlp.{part}_proj.weight"
            weight = healthy[name]
            permuted[name] = weight[:, order] if part == "down" else weight[order]
    world.save(permuted=permuted)
    (found,) = world.numerical_warnings("permuted")
    assert "the MLP of permuted differs by" in found
    assert "as after a permutation of neurons" in found


def test_one_expert_under_two_names_is_warned_of(world: World) -> None:
    math = tuned(initial(0), 1)
    world.save(math=math, copy=math, code=tuned(initial(0), 2))
    assert world.numerical_warnings("math", "code", "copy") == [
        "experts must differ, but math and copy change every weight alike: drop one"
    ]


def test_a_multiple_of_an_expert_is_warned_of(world: World) -> None:
    base, math = initial(0), tuned(initial(0), 1)
    world.save(math=math, half=torch_lerp(base, math, 0.5))
    assert world.numerical_warnings("math", "half") == [
        "experts must differ in direction, but the change of half is 0.5 times that of math: "
        "drop one"
    ]


def torch_lerp(base: Weights, expert: Weights, share: float) -> Weights:
    return {name: torch.lerp(base[name], expert[name], share) for name in base}


def test_an_expert_that_changes_nothing_is_warned_of_once(world: World) -> None:
    world.save(same=initial(0), code=tuned(initial(0), 2))
    assert world.numerical_warnings("same", "code") == [
        "expert same is identical to the base: its coefficients have no effect"
    ]


def test_very_different_norms_are_warned_of(world: World) -> None:
    base = initial(0)
    world.save(math=tuned(base, 1, 0.0005), code=tuned(base, 2, 0.01))
    (found,) = world.numerical_warnings("math", "code")
    assert "the task vector of code is 20 times as long as that of math" in found


# The command


@pytest.fixture
def run(world: World) -> Callable[..., str]:
    base = initial(0)
    world.save(math=tuned(base, 1), code=tuned(base, 2))

    def command(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    return command


def test_models_or_a_configuration_give_the_same_figures(
    run: Callable[..., str], world: World, tmp_path: Path
) -> None:
    folders = [world.folder / name for name in ("base", "math", "code")]
    given = json.loads(run(*folders, "--json"))
    config = tmp_path / "config.yaml"
    config.write_text(
        "base: base\nexperts: {math: math, code: code}\n"
        "objectives: [{name: x, python: 'tests.support.sabotage:always'}]\n"
    )
    assert json.loads(run(config, "--json")) == given
    assert given["experts"] == ["math", "code"]
    assert set(given["groups"]["0.attn.q"]) > {"layer", "kind", "relative_norms", "cosines"}
    assert given["total"]["parameters"] == sum(g["parameters"] for g in given["groups"].values())


def test_tables_hold_summary_kinds_layers_and_on_demand_everything(
    run: Callable[..., str], world: World
) -> None:
    folders = [world.folder / name for name in ("base", "math", "code")]
    short = run(*folders)
    for part in ("Cosines of the changes", "Sign conflicts", "By kind", "By layer", "mlp.down"):
        assert part in short
    assert "warning: expert math" in short  # no tokenizer
    full = run(*folders, "--full")
    assert "Sign conflict, top 20 %" in full
    assert full.count("\n") > short.count("\n") + 20


def test_one_expert_is_enough(run: Callable[..., str], world: World) -> None:
    text = run(world.folder / "base", world.folder / "math", "--full")
    assert "By kind" in text
    assert "Cosines" not in text


def test_the_same_folder_name_twice_gives_two_names(run: Callable[..., str], world: World) -> None:
    math = world.folder / "math"
    found = json.loads(run(world.folder / "base", math, math, "--json"))
    assert found["experts"] == ["math", "math_1"]


@pytest.mark.parametrize("n_experts", [1, 2])
def test_the_picture_replaces_an_older_one(world: World, n_experts: int) -> None:
    base, names = initial(0), [f"e{k}" for k in range(n_experts)]
    world.save(**{name: tuned(base, k) for k, name in enumerate(names)})
    path = world.folder / "pictures" / "inspect.png"
    path.parent.mkdir()
    path.write_text("old")
    assert inspection_png(world.inspect(*names), path) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["inspect.png"]
    assert len(list(combinations(names, 2))) == n_experts - 1
