"""Which token comes next: the largest logit, or a draw that depends on the prompt's seed alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from evomerge.errors import TaskError

# What transformers' generate does when a checkpoint and the caller leave it open.
_DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
# Settings that are followed here or in the decoding loop, or say nothing about decoding.
_FOLLOWED = frozenset(_DEFAULTS) | {
    "do_sample", "max_new_tokens", "max_length", "eos_token_id", "pad_token_id", "bos_token_id",
    "transformers_version", "length_penalty", "early_stopping", "decoder_start_token_id",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size", "disable_compile",
}  # fmt: skip
# Values of other settings that change nothing.
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1, "num_beam_groups": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0, "min_length": 0,
    "eta_cutoff": 0.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "guidance_scale": 1, "diversity_penalty": 0.0,
    "num_return_sequences": 1, "use_cache": True, "min_new_tokens": 0,
    "cache_implementation": "dynamic",
}  # fmt: skip

Warper = Callable[[Tensor | None, Tensor], Tensor]


class Chooser:
    """Chooses tokens for the rows of one batch as a generation config says.

    The same numbers as transformers' `generate` for greedy decoding. Draws are the race of
    exponential variables (the Gumbel trick): the token with the largest
    `log p_i - log E_i`, E_i standard exponential, is distributed as p. Each row has a generator
    of its own, so that the other rows of a batch do not matter.

    Args:
        config: A generation config for which `is_simple` holds.
        seeds: One for each row.
        inputs: Token ids of the prompts, `(n_rows, length)`.
        mask: 0 where `inputs` are padding, `(n_rows, length)`; None if there is none.
    """

    def __init__(
        self, config: Any, seeds: Sequence[int], inputs: Tensor, mask: Tensor | None
    ) -> None:
        self._penalty = _value(config, "repetition_penalty")
        self._warpers = warpers(config)
        drawn = () if self._warpers is None else seeds  # a generator costs 10 microseconds
        self._generators = [np.random.default_rng(seed) for seed in drawn]
        self._prompts = (inputs, mask)
        self._seen: Tensor | None = None

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row and its largest logit (NaN if any is NaN), both `(n_rows,)`.

        Args:
            logits: fp32, `(n_rows, n_tokens)`.
        """
        if self._penalty == 1.0 and self._warpers is None:
            largest, tokens = logits.max(dim=-1)
            return tokens, largest
        largest, scores = logits.amax(dim=-1), logits
        if self._penalty != 1.0:
            if self._seen is None:
                self._seen = _read(*self._prompts, logits.shape[-1])
            penalized = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
            scores = torch.where(self._seen, penalized, scores)
        if self._warpers is not None:
            for warp in self._warpers:
                scores = warp(None, scores)
            scores = scores - self._noise(scores)
        tokens = scores.argmax(dim=-1)
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        return tokens, largest

    def keep(self, rows: Sequence[int]) -> None:
        """Leave out all but some rows."""
        if self._warpers is not None:
            self._generators = [self._generators[row] for row in rows]
        if self._seen is not None:
            self._seen = self._seen[torch.tensor(rows, device=self._seen.device)]

    def _noise(self, scores: Tensor) -> Tensor:
        draws = np.stack(
            [g.standard_exponential(scores.shape[-1], np.float32) for g in self._generators]
        )
        # A draw of 0 would win against any probability.
        draws = np.maximum(draws, np.finfo(np.float32).tiny)
        return torch.from_numpy(np.log(draws)).to(scores.device)


def _read(inputs: Tensor, mask: Tensor | None, n_tokens: int) -> Tensor:
    """Which tokens each prompt has, `(n_rows, n_tokens)`."""
    seen = torch.zeros((len(inputs), n_tokens + 1), dtype=torch.bool, device=inputs.device)
    padded = inputs if mask is None else inputs.masked_fill(mask == 0, n_tokens)
    return seen.scatter_(1, padded, True)[:, :n_tokens]


def is_simple(config: Any) -> bool:
    """Whether a generation config asks for nothing but what `Chooser` and the loop do."""
    return all(
        name in _FOLLOWED
        or name.startswith(("output_", "_"))
        or value is None
        or (value is False and name != "use_cache")
        or (name in _NEUTRAL and value == _NEUTRAL[name])
        for name, value in config.to_dict().items()
    )


def warpers(config: Any) -> list[Warper] | None:
    """What changes the distribution before a draw, in the order of transformers; None if greedy.

    Raises:
        TaskError: a value that transformers refuses.
    """
    if not config.do_sample:
        return None
    temperature, top_k, top_p = (_value(config, n) for n in ("temperature", "top_k", "top_p"))
    chosen: list[Warper] = []
    try:
        if temperature != 1.0:
            chosen.append(TemperatureLogitsWarper(temperature))
        if top_k != 0:
            chosen.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            chosen.append(TopPLogitsWarper(top_p))
    except ValueError as error:
        raise TaskError(
            "sampling needs a temperature above 0, top_k of 0 or more and top_p in (0, 1], but "
            f"{temperature=}, {top_k=} and {top_p=}: mend the generation options"
        ) from error
    return chosen


def _value(config: Any, name: str) -> Any:
    value = getattr(config, name)
    return _DEFAULTS[name] if value is None else value
