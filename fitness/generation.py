"""What a live model writes after given prompts: prompts are prepared once."""

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from evomerge.errors import TaskError
from fitness.key_value_cache import ReusableCache, is_understood
from fitness.stop_strings import StopStrings
from fitness.token_choice import Chooser, is_simple, warpers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Candidates often write the same short answers; decoding one costs a hundred times a look-up.
_N_TEXTS = 1 << 13
_SHORT = 64
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
             "eta_cutoff")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to continue, for at most `max_new_tokens`, up to the first of `stops`.

    `options` are further arguments of transformers' `generate` (`do_sample`, `temperature`,
    `top_p`, `top_k`, `num_beams`, `repetition_penalty`, ...) as pairs of name and value; `seed`
    (0 or more) decides what is drawn for this prompt where they ask for sampling.
    """

    tokens: tuple[int, ...]
    stops: tuple[str, ...]
    max_new_tokens: int
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """Prompts with the same stops, limit and options, padded on the left.

    `inputs` is `(n_rows, length)`. `mask` (1 for tokens, 0 for padding) and `positions` cover what
    will be written too, `(n_rows, length + max_new_tokens)`; without padding there is no mask and
    positions have one row. `seeds` has one entry for each row.
    """

    inputs: Tensor
    mask: Tensor | None
    positions: Tensor
    stops: StopStrings
    seeds: tuple[int, ...]
    config: Any
    is_simple: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The batches for some prompts; row `i` of them all belongs to prompt `order[i]`."""

    batches: tuple[_Batch, ...]
    order: tuple[int, ...]


class Generation:
    """Continues prompts as transformers' `generate` does, greedily unless their options sample.

    Of the checkpoint's generation config all holds that greedy decoding uses (repetition penalty,
    end tokens); its sampling settings hold for prompts whose options set `do_sample`. Greedy and
    sampled decoding run in a loop of their own, which costs a few forwards' thousandths where
    `generate` costs tenths on small models; beams, other processors of logits and models that
    `is_understood` does not know are left to the model's `generate`. Texts are the same by test,
    draws are not: here they depend on a prompt's seed, and not on the other prompts of a batch.

    Args:
        model: A causal language model with `generate`; its weights may change between calls.
        tokenizer: Decodes what was generated.
        batch_size: Most rows of a forward.
        max_batch_tokens: Most tokens of a batch when it is full, padding included.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        max_batch_tokens: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._max_batch_tokens = max_batch_tokens
        self._remembered = lru_cache(_N_TEXTS)(self._decode)
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        self._cache = ReusableCache(model.config) if is_understood(model) else None
        accepted = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._config = copy.deepcopy(model.generation_config)
        self._config.do_sample = False
        self._config.num_beams = self._config.num_return_sequences = 1
        self._config.return_dict_in_generate = False
        self._config.max_length = None
        self._config.pad_token_id = tokenizer.pad_token_id
        ends = self._config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
            ends.append(tokenizer.eos_token_id)
        self._config.eos_token_id = ends or None
        self._ends = frozenset(ends)

    def plan(self, prompts: Sequence[Prompt]) -> Plan:
        """Sort, batch, pad and move to the device: what no later call repeats.

        Raises:
            TaskError: an option that `generate` does not know, or a value that it refuses.
        """
        order = sorted(range(len(prompts)), key=lambda number: _sort_key(prompts[number]))
        batches: list[_Batch] = []
        start = 0
        while start < len(order):
            first = prompts[order[start]]
            config = self._configured(first)
            simple = self._cache is not None and is_simple(config)
            full_length = len(first.tokens) + first.max_new_tokens
            n_rows = min(self._batch_size, max(1, self._max_batch_tokens // full_length))
            if config.do_sample and not simple:
                n_rows = 1  # transformers draws for all rows of a batch from one generator
            settings = _settings(first)
            chunk = [
                prompts[number]
                for number in order[start : start + n_rows]
                if _settings(prompts[number]) == settings
            ]
            batches.append(self._batch(chunk, config, simple))
            start += len(chunk)
        return Plan(tuple(batches), tuple(order))

    @torch.inference_mode()
    def answer(self, plan: Plan) -> list[str]:
        """For each prompt: the text before its first stop string, special tokens left out.

        Raises:
            FloatingPointError: a logit is NaN; the text after it would look like any other.
        """
        answers = [""] * len(plan.order)
        numbers = iter(plan.order)
        for batch in plan.batches:
            if self._cache is not None and batch.is_simple:
                rows = self._continue(batch, self._cache)
            else:
                rows = self._generate(batch)
            for tokens in rows:
                answers[next(numbers)] = batch.stops.cut(self._text(tuple(tokens)))
        return answers

    def _configured(self, prompt: Prompt) -> Any:
        config = copy.deepcopy(self._config)
        options = dict(prompt.options)
        if not options.get("do_sample"):
            # `generate` would warn of them.
            for name in _SAMPLING:
                setattr(config, name, None)
                options.pop(name, None)
        try:
            unknown = sorted(config.update(**options))
        except ValueError as error:
            raise TaskError(
                "generation options must be arguments of transformers' generate, but it says "
                f"{' '.join(str(error).split())}: mend them"
            ) from error
        if unknown or config.num_return_sequences != 1:
            raise TaskError(
                "generation options must be arguments of transformers' generate that leave one "
                f"text per prompt, but got {', '.join(unknown) or 'num_return_sequences'}: leave "
                "them out"
            )
        warpers(config)  # refuses values that cannot be followed
        config.max_new_tokens = prompt.max_new_tokens
        return config

    def _batch(self, chunk: Sequence[Prompt], config: Any, simple: bool) -> _Batch:
        device = next(self._model.parameters()).device
        first = chunk[0]
        length, n_rows = len(first.tokens), len(chunk)
        inputs = torch.full((n_rows, length), self._config.pad_token_id or 0)
        mask = torch.ones((n_rows, length + first.max_new_tokens), dtype=torch.long)
        for row, prompt in enumerate(chunk):
            n_padding = length - len(prompt.tokens)
            inputs[row, n_padding:] = torch.tensor(prompt.tokens)
            mask[row, :n_padding] = 0
        is_padded = bool((mask == 0).any())
        positions = (mask if is_padded else mask[:1]).cumsum(-1).sub(1).clamp(min=0)
        if first.stops not in self._stops:
            self._stops[first.stops] = StopStrings(self._tokenizer, self._text, first.stops)
        return _Batch(
            inputs.to(device),
            mask.to(device) if is_padded else None,
            positions.to(device),
            self._stops[first.stops],
            tuple(prompt.seed for prompt in chunk),
            config,
            simple,
        )

    def _continue(self, batch: _Batch, cache: ReusableCache) -> list[list[int]]:
        """The new tokens of each row, by our own loop."""
        tokens, mask, positions = batch.inputs, batch.mask, batch.positions
        n_rows, n_read = tokens.shape
        cache.empty(n_read + batch.config.max_new_tokens)
        chooser = Chooser(
            batch.config, batch.seeds, tokens, None if mask is None else mask[:, :n_read]
        )
        written: list[list[int]] = [[] for _ in range(n_rows)]
        rows = list(range(n_rows))  # of the batch that are still in the forward
        running = set(rows)
        largest: list[Tensor] = []
        start = 0
        for end in range(n_read, n_read + batch.config.max_new_tokens):
            logits = self._model(
                input_ids=tokens,
                attention_mask=_until(mask, end),
                position_ids=positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
                **self._last_only,
            ).logits[:, -1]
            chosen, peaks = chooser.choose(logits.float())
            largest.append(peaks)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if row in running:
                    written[row].append(token)
                    if token in self._ends or batch.stops.met(written[row]):
                        running.remove(row)
            if not running:
                break
            if 2 * len(running) <= len(rows):
                # Fewer rows make a forward cheaper; copying what is kept costs less than one.
                places = [place for place, row in enumerate(rows) if row in running]
                rows = [rows[place] for place in places]
                kept = torch.tensor(places, device=tokens.device)
                cache.keep(kept)
                chooser.keep(places)
                chosen = chosen[kept]
                if mask is not None:
                    mask, positions = mask[kept], positions[kept]
            tokens, start = chosen[:, None], end
        # Checked here, so that it takes no synchronization in every step.
        if largest and bool(torch.cat(largest).isnan().any()):
            raise FloatingPointError(_NAN)
        return written

    def _generate(self, batch: _Batch) -> list[list[int]]:
        """The new tokens of each row, by the model's own `generate`."""
        n_read = batch.inputs.shape[1]
        mask = _until(batch.mask, n_read)
        with _seeded(batch):
            tokens = self._model.generate(
                input_ids=batch.inputs,
                attention_mask=torch.ones_like(batch.inputs) if mask is None else mask,
                generation_config=batch.config,
                stopping_criteria=StoppingCriteriaList([_Stopping(batch.stops, n_read)]),
                logits_processor=LogitsProcessorList([_refuse_nan]),
            )
        new_tokens: list[list[int]] = tokens[:, n_read:].tolist()
        return [self._trimmed(row, batch.stops) for row in new_tokens]

    def _trimmed(self, tokens: list[int], stops: StopStrings) -> list[int]:
        """Without the padding that `generate` appends to rows that are done before others."""
        for n_tokens, token in enumerate(tokens, start=1):
            if token in self._ends or stops.met(tokens[:n_tokens]):
                return tokens[:n_tokens]
        return tokens

    def _text(self, tokens: tuple[int, ...]) -> str:
        return self._remembered(tokens) if len(tokens) <= _SHORT else self._decode(tokens)

    def _decode(self, tokens: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


class _Stopping(StoppingCriteria):  # type: ignore[misc]  # transformers ships no types
    """Ends rows that have just written a stop string; holds no state, because beams move."""

    def __init__(self, stops: StopStrings, n_prompt_tokens: int) -> None:
        self._stops = stops
        self._n_prompt_tokens = n_prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002  # the signature of transformers
        rows = input_ids[:, self._n_prompt_tokens :].tolist()
        return torch.tensor([self._stops.met(row) for row in rows], device=input_ids.device)


_NAN = "logits of the model are NaN"


def _refuse_nan(input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG001 - transformers' signature
    """A logits processor that changes nothing."""
    if torch.isnan(scores).any():
        raise FloatingPointError(_NAN)
    return scores


@contextlib.contextmanager
def _seeded(batch: _Batch) -> Iterator[None]:
    """Draws of `generate`, which knows the global generator only, follow the prompt's seed."""
    if not batch.config.do_sample:
        yield
        return
    device = batch.inputs.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(batch.seeds[0])
        yield


def _until(mask: Tensor | None, end: int) -> Tensor | None:
    return None if mask is None else mask[:, :end]


def _settings(prompt: Prompt) -> tuple[object, ...]:
    return prompt.stops, prompt.max_new_tokens, repr(prompt.options)


def _sort_key(prompt: Prompt) -> tuple[object, ...]:
    return (*_settings(prompt), -len(prompt.tokens), prompt.tokens)
