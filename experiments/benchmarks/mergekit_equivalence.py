"""Whether our operators make the models that mergekit's methods make, element by element.

    pip install mergekit==0.1.5        # here, or in another environment:
    python experiments/benchmarks/mergekit_equivalence.py [--mergekit-python PYTHON] [--zoo FOLDER]

Makes a Llama base of random weights and three experts beside it (with `--zoo` takes those of a
trained zoo), writes recipes as mergekit files as `evomerge export --mergekit` does, lets mergekit
merge them with `dtype: float32`, `out_dtype: bfloat16`, and compares with the weights that this
engine makes of the same models in fp32, rounded to bf16. Masks that mergekit draws at random are
drawn again from the same seed. Exits with 1 if a method differs in more elements than it may.

The column "bf16 deltas" is the share that differs from what a run on the bf16 models writes: deltas
are then rounded to bf16 before they are merged, which mergekit does not do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import Expert, open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Knob, Recipe
from evomerge.demo.tokenizer import zoo_tokenizer
from evomerge.mergekit.writing import Names, merge_file
from evomerge.merging.materialize import merged_tensors

SEED = 7
SMALL = 2e-7
"""Differences below this share of the base's weight are fp32's own: seen where a sum cancels."""
Weights = dict[str, Tensor]
Mask = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        title: What is compared.
        recipe: Ours; mergekit merges its own mergekit file, or what `config` makes of that.
        allowed: The largest share of differing elements.
        reason: Why that many may differ.
        config: From our mergekit file to the one that is merged.
        words: The recipe whose file that is, where its own cannot be said.
        mask: What mergekit makes of a delta by chance: our experts are masked by it beforehand.
        cut: Which elements of a weight are left out: where several have the magnitude at which is
            cut, it is undefined which of them mergekit keeps, and here all stay.
    """

    title: str
    recipe: Recipe
    allowed: float = 1e-4
    reason: str = "one rounding on both sides"
    config: Callable[[str], str] | None = None
    words: Recipe | None = None
    mask: Mask | None = None
    cut: "Cut | None" = None


class Models:
    """A base and its experts, opened."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.base = Checkpoint.open(folders["base"])
        self.names = tuple(name for name in folders if name != "base")
        self.experts: tuple[Expert, ...] = tuple(
            open_expert(name, folders[name], self.base) for name in self.names
        )
        self.anatomy = Anatomy.of(self.base)
        self.folders = dict(folders)

    def recipe(
        self, operator: str, spread: tuple[float, float], n_experts: int = 3, **knobs: Knob
    ) -> Recipe:
        """Irregular coefficients, another for each expert and layer; equal ends give equal ones."""
        rng = np.random.default_rng(SEED)
        labels = self.anatomy.group_labels
        places = [
            group.layer if group.layer is not None else group.kind for group in self.anatomy.groups
        ]
        drawn = {place: rng.uniform(*spread, size=n_experts) for place in dict.fromkeys(places)}
        C = np.round(np.array([drawn[place] for place in places]).T, 6)
        return Recipe(
            operator, self.names[:n_experts], labels, tuple(map(tuple, C.tolist())), knobs
        )

    def config(self, recipe: Recipe) -> str:
        """The recipe as a mergekit file."""
        tensors = {
            self.base.file_name(name): self.anatomy.groups[role.group].label
            for name, role in self.anatomy.roles.items()
        }
        return merge_file(
            recipe,
            Names(
                str(self.folders["base"]),
                tuple(str(self.folders[name]) for name in recipe.experts),
                tensors,
                self.base.dtype,
            ),
        )

    def merged(self, recipe: Recipe) -> Weights:
        """Our weights."""
        experts = [expert for expert in self.experts if expert.name in recipe.experts]
        return dict(merged_tensors(self.base, experts, self.anatomy, recipe))


Cut = Callable[[Models, str], Tensor]


def random_models(folder: Path) -> dict[str, Path]:
    """A small Llama base and three experts with related changes; a tenth of weights stays."""
    generator = torch.Generator().manual_seed(SEED)
    tokenizer = zoo_tokenizer()
    config = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    names = ["base", "math", "code", "chat"]
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    common = {key: noise(weight, generator) for key, weight in start.items()}
    for name in names:
        for key, weight in model.state_dict().items():
            change = noise(weight, generator) + 0.5 * common[key]
            change[torch.rand(weight.shape, generator=generator) < 0.1] = 0.0
            weight.copy_(start[key] if name == "base" else start[key] + change)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in names}


def noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A random change of a weight, of the size of a fine-tuning."""
    return torch.empty(weight.shape).normal_(0, 0.002, generator=generator)


def zoo_models(folder: Path, target: Path) -> dict[str, Path]:
    """Base and full experts of a zoo, rounded to bf16."""
    sources = {"base": folder / "base"}
    sources |= {path.name: path for path in sorted((folder / "experts").iterdir())[:3]}
    for name, path in sources.items():
        model = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        model.save_pretrained(target / name)
        transformers.AutoTokenizer.from_pretrained(path).save_pretrained(target / name)
    return {name: target / name for name in sources}


def cases(models: Models) -> list[Case]:
    """All comparisons."""
    ones = (1.0, 1.0)
    weights = (0.3137, 0.9271)
    shares = "elements at the cut, left out here, count in the experts' weights"
    at_cut = "elements at a cut left out"
    in_fp64 = "norms and cosines fp32 there, fp64 here"
    half_way = "means of 2, 3 deltas: half-way between bf16"
    again = "masks drawn again from the seed"
    ties = models.recipe("ties_exact", weights, density=0.45)
    late_ties = models.recipe("ties", (0.6, 0.9), density=0.3)
    late_ties = replace(late_ties, coefficients=late_ties.coefficients[:1] * 3)
    crumbs = models.recipe("breadcrumbs", weights, density=0.6, gamma=0.03)
    elected = models.recipe("breadcrumbs_ties_exact", weights, density=0.6, gamma=0.03)
    return [
        Case("task_arithmetic", models.recipe("task_arithmetic", (-0.2, 0.9271))),
        Case("linear", models.recipe("task_arithmetic", (0.1, 0.35)), config=as_linear),
        Case("slerp, 2 models", models.recipe("slerp", (0.1, 0.9), 1), 5e-4, in_fp64),
        Case("nuslerp, 2 of 3", models.recipe("nuslerp", weights, 2), 5e-4, in_fp64),
        Case("multislerp", models.recipe("multislerp", weights), 5e-4, in_fp64),
        Case("karcher", models.recipe("karcher", ones), 5e-4, in_fp64),
        Case("model_stock", models.recipe("model_stock", ones), 5e-4, in_fp64),
        Case("ram", models.recipe("ram", ones), 5e-3, half_way),
        Case("ramplus_tl", models.recipe("ram_plus", ones), 5e-3, half_way),
        Case("nearswap", models.recipe("nearswap", ones, 1, strength=0.0017)),
        Case("sce", models.recipe("sce", ones, density=0.45), 5e-3, shares, cut=cut_variance),
        Case("ties", ties, 1e-4, at_cut, cut=cut_magnitude(0.45)),
        Case("ties, late, lambda", late_ties, 1e-4, at_cut, cut=cut_magnitude(0.3)),
        Case("breadcrumbs", crumbs, 1e-4, at_cut, cut=cut_magnitude(0.63, 0.03)),
        Case("breadcrumbs_ties", elected, 1e-4, at_cut, cut=cut_magnitude(0.63, 0.03)),
        Case(
            "dare_linear",
            models.recipe("dare", weights, drop_rate=0.0),
            reason=again,
            config=sparse("dare_linear", density=0.5),
            words=models.recipe("task_arithmetic", weights),
            mask=dropped(0.5),
        ),
        Case(
            "dare_ties",
            models.recipe("dare_ties_exact", weights, drop_rate=0.0),
            reason=again,
            config=sparse("dare_ties", density=0.5),
            words=models.recipe("task_arithmetic", weights),
            mask=dropped(0.5),
        ),
        Case(
            "della_linear",
            models.recipe("della_linear", weights, density=1.0),
            reason=again,
            config=sparse("della_linear", density=0.5, epsilon=0.15),
            words=models.recipe("task_arithmetic", weights),
            mask=pruned(0.5, 0.15),
        ),
        Case(
            "della",
            models.recipe("della_exact", weights, density=1.0),
            reason=again,
            config=sparse("della", normalize=True, density=0.5, epsilon=0.15),
            words=models.recipe("task_arithmetic", weights),
            mask=pruned(0.5, 0.15),
        ),
    ]


def as_linear(config: str) -> str:
    """The same weighted average with the base as one of the models."""
    plain = yaml.safe_load(config)
    each = [model["parameters"]["weight"] for model in plain["models"]]
    of_base = [
        {**entries[0], "value": 1.0 - sum(entry["value"] for entry in entries)}
        for entries in zip(*each, strict=True)
    ]
    plain["models"].append({"model": plain["base_model"], "parameters": {"weight": of_base}})
    return yaml.safe_dump({**plain, "merge_method": "linear", "parameters": {"normalize": False}})


def sparse(method: str, *, normalize: bool = False, **knobs: float) -> Callable[[str], str]:
    """The same weights with a method that draws masks."""

    def changed(config: str) -> str:
        plain = yaml.safe_load(config)
        for model in plain["models"]:
            model["parameters"] |= knobs
        return yaml.safe_dump(
            {**plain, "merge_method": method, "parameters": {"normalize": normalize}}
        )

    return changed


def dropped(density: float) -> Mask:
    """DARE's mask: every element stays with the same probability."""
    return lambda delta: rescaled(delta, torch.bernoulli(torch.full_like(delta, density)))


def pruned(density: float, epsilon: float) -> Mask:
    """DELLA's: `density - epsilon` for the smallest of a row to `density + epsilon`."""

    def mask(delta: Tensor) -> Tensor:
        rows = delta.abs().reshape(-1, delta.shape[-1])
        ranks = rows.argsort(dim=1).argsort(dim=1) / (rows.shape[1] - 1)
        p = (density - epsilon) + ranks * 2 * epsilon
        return rescaled(delta, torch.bernoulli(p).reshape(delta.shape))

    return mask


def rescaled(delta: Tensor, mask: Tensor) -> Tensor:
    """What a mask leaves, with the l1 norm of all."""
    left = delta * mask
    return left * (delta.abs().sum() / left.abs().sum()) if bool(left.any()) else left


def in_fp32(models: Models, mask: Mask | None, folder: Path) -> Models:
    """The models in fp32, deltas masked in the order in which mergekit draws."""
    torch.manual_seed(SEED)  # mergekit draws from the global generator
    files = {name: load_file(path / "model.safetensors") for name, path in models.folders.items()}
    changed: dict[str, Weights] = {name: {} for name in files}
    for key in sorted(files["base"]):
        W0 = changed["base"][key] = files["base"][key].float()
        for name in models.names:
            delta = files[name][key].float() - W0
            changed[name][key] = W0 + (delta if mask is None else mask(delta))
    for name, weights in changed.items():
        (folder / name).mkdir(parents=True)
        for file in models.folders[name].glob("*.json"):
            text = file.read_text().replace("bfloat16", "float32")
            (folder / name / file.name).write_text(text)
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
    return Models({name: folder / name for name in files})


def cut_magnitude(*kept: float) -> Cut:
    """The elements at the border when these shares of largest magnitude are kept or dropped."""

    def cut(models: Models, key: str) -> Tensor:
        found = torch.zeros(models.base.read(key).shape, dtype=torch.bool)
        for expert in models.experts:
            delta = expert.delta(key)
            if delta is not None:
                for share in kept:
                    at = delta.numel() - int(share * delta.numel())
                    found |= beside(delta.abs(), at).reshape(found.shape)
        return found

    return cut


def cut_variance(models: Models, key: str) -> Tensor:
    """The elements at the border of the 45 % of largest variance, of those that have one."""
    shape = models.base.read(key).shape
    zero = torch.zeros(shape.numel())
    deltas = [expert.delta(key) for expert in models.experts]
    variance = torch.stack([zero if d is None else d for d in deltas]).var(0, unbiased=False)
    at = variance.numel() - int(0.45 * int(variance.count_nonzero()))
    return beside(variance, at).reshape(shape)


def beside(sizes: Tensor, rank: int) -> Tensor:
    """Which are, as bf16, equal to that of this rank (counted from the smallest) or that below."""
    border = sizes.sort().values[max(rank - 1, 0) : rank + 1].bfloat16()
    return torch.isin(sizes.bfloat16().float(), border.float())


@dataclass
class Difference:
    """Elements of all weights that differ, as a share, those left out, and by how much at most."""

    share: float = 0.0
    left_out: float = 0.0
    ulp: float = 0.0


def difference(models: Models, ours: Weights, theirs: Weights, case: Case) -> Difference:
    """Compare bf16 weights; ours may be fp32, and are rounded here."""
    n_all = sum(weight.numel() for weight in ours.values())
    found = Difference()
    for name, weight in ours.items():
        mine, other = weight.bfloat16().float(), theirs[models.base.file_name(name)].float()
        size = models.base.read(name).float().abs()
        differ = (mine - other).abs() > SMALL * size
        if case.cut is not None:
            cut = case.cut(models, name)
            found.left_out += int(cut.sum()) / n_all
            differ &= ~cut
        found.share += int(differ.sum()) / n_all
        if bool(differ.any()):
            larger = torch.maximum(torch.maximum(mine.abs(), other.abs()), size).clamp(min=2**-126)
            ulp = torch.exp2(larger.log2().floor() - 7)
            found.ulp = max(found.ulp, float(((mine - other).abs() / ulp)[differ].max()))
    return found


def merge_there(python: str, configs: Sequence[str], folder: Path) -> list[Weights]:
    """Mergekit's weights."""
    jobs = [
        {"config": config, "out": str(folder / str(i)), "seed": SEED}
        for i, config in enumerate(configs)
    ]
    runner = Path(__file__).with_name("mergekit_runner.py")
    subprocess.run(
        [python, str(runner)], input=json.dumps(jobs), text=True, check=True, stdout=subprocess.PIPE
    )
    return [load_file(folder / str(i) / "model.safetensors") for i in range(len(configs))]


def main() -> int:
    """Merge on both sides, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--zoo", type=Path, help="a folder that `evomerge demo` trained a zoo in")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="evomerge-mergekit-") as temporary:
        folder = Path(temporary)
        os.environ["EVOMERGE_CACHE"] = str(folder / "cache")
        folders = random_models(folder) if options.zoo is None else zoo_models(options.zoo, folder)
        models = Models(folders)
        table = Table(title="mergekit 0.1.5 and evomerge, fp32 arithmetic, bf16 weights")
        for column in ("method", "differ", "allowed", "most ulp", "left out", "bf16 deltas", ""):
            table.add_column(column, justify="left" if column in ("method", "") else "right")
        plain = in_fp32(models, None, folder / "fp32")
        is_good = True
        todo = cases(models)
        configs = [(case.config or str)(models.config(case.words or case.recipe)) for case in todo]
        merged = merge_there(options.mergekit_python, configs, folder / "theirs")
        for i, (case, theirs) in enumerate(zip(todo, merged, strict=True)):
            of = plain if case.mask is None else in_fp32(models, case.mask, folder / f"masked-{i}")
            found = difference(models, of.merged(case.recipe), theirs, case)
            stored = ""
            if case.mask is None:
                theirs_too = difference(models, models.merged(case.recipe), theirs, case)
                stored = f"{theirs_too.share:.2%}"
            is_good &= found.share <= case.allowed
            table.add_row(
                case.title,
                f"{found.share:.4%}",
                f"{case.allowed:.2%}",
                f"{found.ulp:.3g}",
                f"{found.left_out:.2%}" if case.cut else "",
                stored,
                case.reason if found.share <= case.allowed else "DIFFERS",
            )
        Console(width=130).print(table)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
