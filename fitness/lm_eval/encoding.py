"""Requests as token ids for one model, exactly as lm-eval's `HFLM` tokenizes them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.datatypes import digest_of
from evomerge.errors import TaskError
from fitness.generation import Prompt
from fitness.likelihood import Pair

TooLong = Literal["refuse", "truncate_left"]


@dataclass(frozen=True, slots=True)
class Request:
    """One of lm-eval's requests: `pairs` to score or `prompts` to continue.

    `read` makes its `n_responses` responses of their answers, which it takes from two iterators.
    """

    pairs: tuple[Pair, ...]
    prompts: tuple[Prompt, ...]
    n_responses: int
    is_sum: bool = False

    def read(self, scores: Iterator[tuple[float, bool]], texts: Iterator[str]) -> list[Any]:
        """What lm-eval's model would answer: the same again and again unless it samples."""
        if self.prompts:
            answers: list[Any] = [next(texts) for _ in self.prompts]
        elif self.is_sum:
            answers = [sum(next(scores)[0] for _ in self.pairs)]
        else:
            answers = [next(scores) for _ in self.pairs]
        return answers * (self.n_responses // len(answers))


def encoder_for(
    model: Any, tokenizer: Any, seed: int, too_long: TooLong, name: str
) -> Callable[[Any, str], Request]:
    """A function from lm-eval's request and a word for where it stands to a `Request`.

    `seed` decides, together with a request's content, what is drawn for it where it samples.

    Raises:
        TaskError: when the model is no causal one; the function: when a request does not fit it.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class Encoder(HFLM):  # type: ignore[misc]  # lm_eval ships no types
        """lm-eval's model, stopped before it scores: what it would have scored comes back."""

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[Any]:
            return requests

        def encode(self, instance: Any, where: str) -> Request:
            n_responses = instance.repeats or 1
            if instance.request_type == "loglikelihood":
                return Request((self.pair(instance, where),), (), n_responses)
            if instance.request_type == "loglikelihood_rolling":
                return Request(self.windows(instance), (), n_responses, is_sum=True)
            return Request((), self.prompts(instance, where, n_responses), n_responses)

        def pair(self, instance: Any, where: str) -> Pair:
            context: Sequence[int] = ()
            continuation: Sequence[int] = ()
            if any(instance.args):  # of nothing at all lm-eval would take the first token
                ((_, context, continuation),) = self.loglikelihood([instance], disable_tqdm=True)
            if not continuation:
                raise TaskError(
                    f"{name}: each answer must have a token, but {instance.args[1]!r} after "
                    f"{instance.args[0][-40:]!r} has none ({where}): mend the item"
                )
            tokens = (*context, *continuation)
            if len(tokens) - 1 > self.max_length:
                if too_long == "refuse" or len(continuation) > self.max_length:
                    raise self.too_long(len(tokens) - 1, instance, where)
                tokens = tokens[-(self.max_length + 1) :]
            return Pair(tokens[: -len(continuation)], tuple(continuation))

        def windows(self, instance: Any) -> tuple[Pair, ...]:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(instance.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            disjoint = (make_disjoint_window(window) for window in windows)
            return tuple(Pair(tuple(context), tuple(scored)) for context, scored in disjoint)

        def prompts(self, instance: Any, where: str, n_responses: int) -> tuple[Prompt, ...]:
            text, given = instance.args
            options = normalize_gen_kwargs(given, self.max_gen_toks)
            end = (
                None
                if self.eot_token_id is None
                else self.tok_decode(self.eot_token_id, skip_special_tokens=False)
            )
            stops = tuple(handle_stop_sequences(options.pop("until"), eos=end))
            n_new = options.pop("max_gen_toks")
            tokens = tuple(self.tok_batch_encode([text])[0][0].tolist())
            if len(tokens) + n_new > self.max_length:
                if too_long == "refuse" or n_new >= self.max_length:
                    raise self.too_long(len(tokens) + n_new, instance, where)
                tokens = tokens[-(self.max_length - n_new) :]
            if not options["do_sample"]:
                del options["do_sample"]
                options.pop("temperature", None)
            further = tuple(sorted(options.items()))
            return tuple(
                Prompt(tokens, stops, n_new, further, _seed(seed, text, instance.idx, repeat))
                for repeat in range(n_responses if "do_sample" in options else 1)
            )

        def too_long(self, n_tokens: int, instance: Any, where: str) -> TaskError:
            return TaskError(
                f"{name}: an item with its answer must fit into the model, but {where} takes "
                f"{n_tokens} tokens and the model reads {self.max_length} (it begins "
                f"{instance.args[0][:40]!r}): leave it out, lower num_fewshot or max_gen_toks, or "
                "let its beginning be cut off with too_long: truncate_left"
            )

    encoder = Encoder(pretrained=model, tokenizer=tokenizer)
    if encoder.backend != "causal":
        raise TaskError(
            f"{name}: the model must be a causal language model, but it has an encoder and a "
            "decoder: choose another base model"
        )
    return encoder.encode


def _seed(seed: int, text: str, number: int, repeat: int) -> int:
    """63 bits that depend on the content and not on where the item stands."""
    return int(digest_of([seed, text, number, repeat]), 16) >> 1
