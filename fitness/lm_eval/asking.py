"""Letting a model answer chosen items: their requests are tokenized, their batches kept."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from evomerge.datatypes import Split
from fitness.generation import Generation
from fitness.likelihood import Likelihood
from fitness.lm_eval.documents import Item
from fitness.lm_eval.encoding import Request

_N_PLANS = 8

Plan = tuple[Any, Any]
"""Of the likelihoods and of the texts; None for what is not asked for."""


class Asking:
    """A model with the requests of all items; the batches of the last few choices are kept.

    Args:
        model: A causal language model; its weights may change between calls.
        tokenizer: Its tokenizer.
        items: The items of each split, with instances.
        requests: For each item its instances as token ids.
        batch_size: Most rows of a forward.
        max_batch_tokens: Most tokens of a forward, padding included.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        items: Mapping[Split, Sequence[Item]],
        requests: Mapping[Split, Sequence[Sequence[Request]]],
        batch_size: int,
        max_batch_tokens: int,
    ) -> None:
        self._items = items
        self._requests = requests
        self.likelihood = Likelihood(model, batch_size, max_batch_tokens)
        self.generation: Generation | None = None
        if any(request.prompts for request in chain.from_iterable(chain(*requests.values()))):
            self.generation = Generation(model, tokenizer, batch_size, max_batch_tokens)
        self.plans: OrderedDict[tuple[Split, tuple[int, ...]], Plan] = OrderedDict()

    def ask(self, split: Split, items: tuple[int, ...]) -> None:
        """Let the model answer, and hand the answers to lm-eval's instances.

        Raises:
            FloatingPointError: the model computes NaN.
        """
        pairs, prompts = self.plan(split, items)
        scores = iter(() if pairs is None else self.likelihood.answer(pairs))
        texts: Iterator[str] = iter(())
        if self.generation is not None and prompts is not None:
            texts = iter(self.generation.answer(prompts))
        for item in items:
            instances, requests = self._items[split][item].instances, self._requests[split][item]
            for instance, request in zip(instances, requests, strict=True):
                instance.resps = request.read(scores, texts)

    def plan(self, split: Split, items: tuple[int, ...]) -> Plan:
        """The batches of these items: made from their tokens, or kept from a call before."""
        key = (split, items)
        if key not in self.plans:
            requests = [request for item in items for request in self._requests[split][item]]
            pairs = [pair for request in requests for pair in request.pairs]
            prompts = [prompt for request in requests for prompt in request.prompts]
            self.plans[key] = (
                self.likelihood.plan(pairs) if pairs else None,
                self.generation.plan(prompts) if self.generation and prompts else None,
            )
            if len(self.plans) > _N_PLANS:
                self.plans.popitem(last=False)
        self.plans.move_to_end(key)
        return self.plans[key]
