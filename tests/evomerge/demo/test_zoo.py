import json
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from evomerge.demo import zoo as zoo_module
from evomerge.demo.skills import SKILLS, items, split_of
from evomerge.demo.tokenizer import zoo_tokenizer
from evomerge.demo.zoo import DEFAULT_RECIPE, TINY_RECIPE, Zoo, build_zoo
from evomerge.errors import ConfigError

LENGTHS = {plan.skill: plan.lengths for plan in DEFAULT_RECIPE.plans}
BRIEF_RECIPE = replace(
    TINY_RECIPE,
    base_steps=3,
    plans=tuple(replace(plan, n_steps=2) for plan in TINY_RECIPE.plans),
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return build_zoo(tmp_path_factory.mktemp("zoo") / "tiny", TINY_RECIPE, progress=False)


def weights(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in {".safetensors", ".jsonl"} or path.name.startswith("tokenizer")
    }


@pytest.mark.parametrize("skill", LENGTHS)
def test_splits_share_no_prompt_whatever_the_seed(skill: str) -> None:
    def prompts(split: str, seed: int) -> set[str]:
        return {item.prompt for item in islice(items(skill, LENGTHS[skill], split, seed), 500)}

    search, held_out = prompts("search", 0), prompts("held_out", 0)
    training = prompts("training", 0) | prompts("training", 1)
    assert len(search) == len(held_out) == 500
    assert not search & held_out
    assert not (search | held_out) & training
    assert {split_of(prompt) for prompt in training} == {"training"}


def test_steering_brings_up_what_lags_and_ends_when_all_is_learned() -> None:
    from evomerge.demo.training import Mixture, Source

    sources = [Source("sort", (3, 5), 1.0, 0.3), Source("reverse", (3, 5), 1.0, 0.3)]
    mixture = Mixture(sources, batch_size=100, seed=0)
    for _ in range(40):  # sorting is always right, reversing never
        mixture.tell([item.prompt.startswith("sort") for item in mixture.draw()])
    assert not mixture.is_learned
    assert sum(item.prompt.startswith("reverse") for item in mixture.draw()) > 90
    for _ in range(40):
        mixture.tell([True] * len(mixture.draw()))
    assert mixture.is_learned
    assert not Mixture([Source("sort", (3, 5), 1.0)], 100, 0).is_learned


def test_items_are_the_same_for_the_same_seed() -> None:
    def draw(seed: int) -> list[object]:
        return list(islice(items("sort", (3, 6), "search", seed), 20))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_running_out_of_different_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="longer ones"):
        list(islice(items("last", (1, 1), "search", 0), 100))


def test_tokenizer_splits_a_text_between_prompt_and_answer_without_loss() -> None:
    tokenizer = zoo_tokenizer()
    for skill, lengths in LENGTHS.items():
        for item in islice(items(skill, lengths, "search", 0), 20):
            whole = tokenizer.encode(f"{item.prompt} {item.answer}\n")
            prompt = tokenizer.encode(item.prompt)
            assert whole[: len(prompt)] == prompt
            assert tokenizer.decode(whole[len(prompt) :]) == f" {item.answer}\n"


def test_tokenizer_is_lossless_on_any_text() -> None:
    tokenizer = zoo_tokenizer()
    text = "Grüße,\n\n  two  spaces, 漢字 and sorting: a1 b2\t!"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_a_second_build_trains_nothing(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_module, "_train_models", lambda *_: pytest.fail("trained again"))
    assert build_zoo(zoo.folder, TINY_RECIPE, progress=False) == zoo


def test_builds_are_equal_byte_for_byte_however_many_processes(tmp_path: Path) -> None:
    alone = build_zoo(tmp_path / "a", BRIEF_RECIPE, progress=False, n_processes=1)
    together = build_zoo(tmp_path / "b", BRIEF_RECIPE, progress=False, n_processes=2)
    assert len(weights(alone.folder)) > 10
    assert weights(alone.folder) == weights(together.folder)


def test_training_leaves_the_global_generator_and_threads_alone(tmp_path: Path) -> None:
    import torch

    state, n_threads = torch.random.get_rng_state(), torch.get_num_threads()
    build_zoo(tmp_path / "zoo", BRIEF_RECIPE, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == n_threads


def test_an_incomplete_zoo_is_built_again(tmp_path: Path) -> None:
    zoo = build_zoo(tmp_path / "zoo", BRIEF_RECIPE, progress=False)
    before = weights(zoo.folder)
    (zoo.base / "model.safetensors").write_bytes(b"torn")
    build_zoo(tmp_path / "zoo", BRIEF_RECIPE, progress=False)
    assert weights(zoo.folder) == before


def test_a_moved_zoo_points_to_its_new_place(tmp_path: Path) -> None:
    build_zoo(tmp_path / "old", BRIEF_RECIPE, progress=False)
    (tmp_path / "old").rename(tmp_path / "new")
    zoo = build_zoo(tmp_path / "new", BRIEF_RECIPE, progress=False)
    config = json.loads((zoo.adapters["last"] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(zoo.base)
    assert str(tmp_path / "old") not in zoo.tasks["sort"].read_text()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="other files"):
        build_zoo(tmp_path, BRIEF_RECIPE, progress=False)


def test_importing_the_zoo_loads_no_torch() -> None:
    code = "import sys, evomerge.demo.zoo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_experts_load_and_have_the_shapes_of_the_base(zoo: Zoo) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(zoo.base)
    shapes = {name: tensor.shape for name, tensor in base.state_dict().items()}
    for folder in zoo.experts.values():
        expert = AutoModelForCausalLM.from_pretrained(folder)
        assert {name: tensor.shape for name, tensor in expert.state_dict().items()} == shapes
        assert AutoTokenizer.from_pretrained(folder).is_fast


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own use
def test_adapters_load_with_peft(zoo: Zoo) -> None:
    import peft
    import torch

    for folder in zoo.adapters.values():
        config = peft.PeftConfig.from_pretrained(folder)
        model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
        assert config.base_model_name_or_path == str(zoo.base)
        learned = [tensor for name, tensor in model.named_parameters() if "lora_B" in name]
        assert learned
        assert all(torch.count_nonzero(tensor) for tensor in learned)


# multiprocess and datasets warn about forks and files of their own
@pytest.mark.filterwarnings("default:::(datasets|dill|multiprocess|lm_eval|evaluate|transformers)")
@pytest.mark.slow
def test_lm_eval_scores_the_tasks_as_training_does(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from evomerge.demo.training import exact_match, load_model

    model = load_model(zoo.base, zoo.adapters["last"])
    tokenizer = zoo_tokenizer()
    manager = TaskManager(include_path=str(zoo.folder / "tasks"), include_defaults=False)
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=32),
        tasks=[f"zoo_{name}" for name in sorted(zoo.tasks)],
        task_manager=manager,
        bootstrap_iters=0,
    )
    for plan in TINY_RECIPE.plans:
        asked = list(islice(items(plan.skill, plan.lengths, "held_out", 1), TINY_RECIPE.n_held_out))
        exact = exact_match(model, tokenizer, asked)
        result = found["results"][f"zoo_{plan.skill}"]
        if SKILLS[plan.skill].output_type == "multiple_choice":
            assert result["acc,none"] >= exact  # four choices instead of all letters
        elif SKILLS[plan.skill].output_type == "generate_until":
            assert result["exact_match,none"] == pytest.approx(exact)
        else:
            assert result["acc,none"] == pytest.approx(exact)
