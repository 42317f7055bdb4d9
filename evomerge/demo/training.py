"""Trains the zoo's models: the base on a mixture of all skills, experts from it with replay.

As a program, `python -m evomerge.demo.training RECIPE FOLDER SKILL...` trains some experts and
prints a line for each step: the zoo runs one such process for each core.
"""

import math
import random
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from pydantic import TypeAdapter
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from evomerge.demo.recipe import Shape, SkillPlan, ZooRecipe
from evomerge.demo.skills import Item, items
from evomerge.demo.tokenizer import zoo_tokenizer
from evomerge.errors import MissingExtraError

OnStep: TypeAlias = Callable[[], None]

_N_THREADS = 1  # the bytes do not depend on the cores, and two threads hardly gain at this size
_IGNORED = -100
_WARM_UP_STEPS = 20
_WEIGHT_DECAY = 0.01
_EXPERT_EMBEDDING_SHARE = 0.1  # Adam moves rare rows far, and experts that do so merge badly
_STEERING = 3.0  # a source at its level is drawn exp(-3) = 5 % as often as an unlearned one
_LEAST_WEIGHT = 0.002
_MEMORY = 100  # items over which a mixture averages
_LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True)
class Source:
    """Items of one skill in a mixture, steered to `level` if there is one."""

    skill: str
    lengths: tuple[int, int]
    weight: float
    level: float | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """How long and how strongly a model is trained; its embedding by a share of the rate.

    The rate rises over the first steps and falls to zero over the last `n_decay_steps`, which
    begin early if the mixture is learned by then.
    """

    n_steps: int
    n_decay_steps: int
    learning_rate: float
    embedding_share: float


class Mixture:
    """Batches of training items; the source of each item is drawn by weight.

    A source with a level is steered: its weight falls exponentially with the share of right
    answers on its latest items, in units of the level. Skills are learned in jumps that come early
    or late by chance; steering makes them rise together, and `is_learned` says when to stop.
    """

    def __init__(self, sources: Sequence[Source], batch_size: int, seed: int) -> None:
        self._sources = sources
        self._streams = [
            items(source.skill, source.lengths, "training", seed) for source in sources
        ]
        self._batch_size = batch_size
        self._rng = random.Random(seed)
        self._shares = [0.0] * len(sources)
        self._drawn: list[int] = []

    @property
    def is_learned(self) -> bool:
        """Whether there are levels and all are reached."""
        return all(progress >= 1 for progress in self._progress())

    def draw(self) -> list[Item]:
        """The next batch."""
        weights = [
            source.weight * max(_LEAST_WEIGHT, math.exp(-_STEERING * progress))
            for source, progress in zip(self._sources, self._progress(), strict=True)
        ]
        places = range(len(self._sources))
        self._drawn = self._rng.choices(places, weights, k=self._batch_size)
        return [next(self._streams[place]) for place in self._drawn]

    def tell(self, right: Sequence[bool]) -> None:
        """Takes which items of the latest batch were answered right."""
        for place, is_right in zip(self._drawn, right, strict=True):
            self._shares[place] += (is_right - self._shares[place]) / _MEMORY

    def _progress(self) -> list[float]:
        return [
            share / source.level if source.level else 0.0
            for source, share in zip(self._sources, self._shares, strict=True)
        ]


@contextmanager
def local_torch_state(seed: int) -> Iterator[None]:
    """Seeds torch and sets its threads, and puts both back at the end."""
    threads_before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # inside the fork: nothing leaks
        torch.set_num_threads(_N_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps the bars and notes of transformers and peft off the zoo's own bar."""
    from transformers.utils import logging

    bars_before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5 for a property by its old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            yield
    finally:
        if bars_before:
            logging.enable_progress_bar()


def train_base(recipe: ZooRecipe, folder: Path, on_step: OnStep) -> None:
    """Trains the base from random weights on all skills, and saves it with its tokenizer."""
    tokenizer = zoo_tokenizer()
    sources = [Source(plan.skill, plan.lengths, 1.0, plan.base_level) for plan in recipe.plans]
    mixture = Mixture(sources, recipe.batch_size, recipe.seed)
    course = Course(recipe.base_steps, recipe.base_decay_steps, recipe.base_learning_rate, 1.0)
    with local_torch_state(recipe.seed):
        model = _new_base(recipe.shape, tokenizer)
        _train(model, tokenizer, mixture, course, on_step)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_expert(recipe: ZooRecipe, plan: SkillPlan, zoo: Path, on_step: OnStep) -> None:
    """Trains one expert from the base in the folder `zoo`; saves it as a model or an adapter."""
    base, folder = zoo / "base", zoo / plan.folder
    seed = zlib.crc32(f"{recipe.seed}/{plan.skill}".encode())
    replayed = [
        Source(other.skill, other.lengths, plan.replay / len(recipe.plans))
        for other in recipe.plans
    ]
    own = Source(plan.skill, plan.lengths, 1 - plan.replay)
    mixture = Mixture([own, *replayed], recipe.batch_size, seed)
    course = Course(plan.n_steps, plan.n_steps, plan.learning_rate, _EXPERT_EMBEDDING_SHARE)
    tokenizer = AutoTokenizer.from_pretrained(base)
    with local_torch_state(seed):
        model = load_model(base)
        if plan.kind == "full":
            _train(model, tokenizer, mixture, course, on_step)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            return
        try:
            import peft
        except ImportError as error:
            raise MissingExtraError(
                "training LoRA experts needs peft: pip install 'evomerge[demo]'"
            ) from error
        config = peft.LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=2 * recipe.lora_rank,
            target_modules=_LORA_TARGETS,
            task_type="CAUSAL_LM",
        )
        adapter = peft.get_peft_model(model, config)
        _train(model, tokenizer, mixture, course, on_step)  # peft put its layers into `model`
        adapter.save_pretrained(folder, save_embedding_layers=False)


def load_model(folder: Path, adapter: Path | None = None) -> PreTrainedModel:
    """The fp32 model in `folder`, with `adapter` merged into its weights if one is given."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is None:
        return model
    import peft

    return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()


@torch.inference_mode()
def exact_match(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Item]
) -> float:
    """The share of `asked` whose greedy answer, newline included, is right to the token.

    By teacher forcing: a greedy decode equals the answer exactly if every token of the answer is
    the likeliest after the right ones before it.
    """
    n_right = 0
    for start in range(0, len(asked), 256):
        ids, labels = _encode(tokenizer, asked[start : start + 256])
        n_right += int(_is_right(_answer_logits(model, ids, labels), labels).sum())
    return n_right / len(asked)


def _new_base(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.max_tokens,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def _encode(
    tokenizer: PreTrainedTokenizerFast, batch: Sequence[Item]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both `(n_items, n_tokens)`; labels are set on answers only."""
    texts = [f"{item.prompt} {item.answer}\n" for item in batch]
    encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    ids: torch.Tensor = encoded["input_ids"]
    # every prompt ends with its only equals sign
    is_answer = (ids == tokenizer.convert_tokens_to_ids("Ġ=")).cumsum(1)[:, :-1] > 0
    is_answer &= ids[:, 1:] != tokenizer.pad_token_id
    return ids[:, :-1], torch.where(is_answer, ids[:, 1:], _IGNORED)


def _answer_logits(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits `(n_answer_tokens, vocabulary)` where `labels` are set, row by row."""
    # padding is on the right, so a causal model needs no mask for it
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden[labels != _IGNORED])
    return logits


def _is_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """For each of the `(n_items,)` rows of `labels`, whether each answer token is the likeliest."""
    is_answer = labels != _IGNORED
    right = torch.ones_like(is_answer)
    right[is_answer] = logits.argmax(-1) == labels[is_answer]
    return right.all(1)


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    mixture: Mixture,
    course: Course,
    on_step: OnStep,
) -> None:
    """Trains what requires a gradient, in place, with AdamW on the loss of the answers."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embedding = model.get_input_embeddings().weight  # tied: the output's too
    groups = [
        {"params": [p for p in parameters if p is not embedding], "share": 1.0},
        {"params": [p for p in parameters if p is embedding], "share": course.embedding_share},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY)
    warm_up = min(_WARM_UP_STEPS, max(1, course.n_steps // 5))
    last_step = course.n_steps
    model.train()
    for step in range(course.n_steps):
        if mixture.is_learned:
            last_step = min(last_step, step + course.n_decay_steps)
        if step >= last_step:
            on_step()
            continue
        rate = min(1.0, (step + 1) / warm_up, (last_step - step) / course.n_decay_steps)
        for group in optimizer.param_groups:
            group["lr"] = course.learning_rate * rate * group["share"]
        ids, labels = _encode(tokenizer, mixture.draw())
        logits = _answer_logits(model, ids, labels)
        loss = torch.nn.functional.cross_entropy(logits, labels[labels != _IGNORED])
        loss.backward()  # type: ignore[no-untyped-call]  # torch's, not ours
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mixture.tell(_is_right(logits, labels).tolist())
        on_step()
    model.eval()


def _main(arguments: Sequence[str]) -> None:
    recipe_file, folder, *skills = arguments
    recipe = TypeAdapter(ZooRecipe).validate_json(Path(recipe_file).read_text(encoding="utf-8"))
    plans = {plan.skill: plan for plan in recipe.plans}
    with quiet_transformers():
        for skill in skills:
            train_expert(recipe, plans[skill], Path(folder), lambda: print("step", flush=True))


if __name__ == "__main__":
    _main(sys.argv[1:])
