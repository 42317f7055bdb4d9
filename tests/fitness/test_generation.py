import random
from typing import Any

import pytest
import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList

from evomerge.errors import TaskError
from fitness.generation import Generation, Prompt
from fitness.key_value_cache import ReusableCache, is_understood

CONFIGS: dict[str, Any] = {
    "llama": lambda **size: transformers.LlamaConfig(**size, num_key_value_heads=2),
    "gpt2": lambda vocab_size, hidden_size, num_hidden_layers, num_attention_heads, **rest: (
        transformers.GPT2Config(
            vocab_size=vocab_size,
            n_embd=hidden_size,
            n_layer=num_hidden_layers,
            n_head=num_attention_heads,
            n_positions=256,
            initializer_range=rest["initializer_range"],
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ),
    "qwen2": lambda **size: transformers.Qwen2Config(**size, num_key_value_heads=2),
    # Every other layer sees a window shorter than the prompts; tied, it would repeat one token.
    "gemma2": lambda **size: transformers.Gemma2Config(
        **size,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,
        query_pre_attn_scalar=8,
        tie_word_embeddings=False,
    ),
    # Leaves its inputs to a method of its own: not for our loop.
    "bloom": lambda vocab_size, hidden_size, num_hidden_layers, num_attention_heads, **rest: (
        transformers.BloomConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            n_layer=num_hidden_layers,
            n_head=num_attention_heads,
            initializer_range=rest["initializer_range"],
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ),
}
OWN_LOOP = ("llama", "gpt2", "qwen2", "gemma2")


@pytest.fixture
def make_model(tokenizer):
    """Tiny models whose random weights are large enough for varied answers."""

    def make(name: str, seed: int = 3) -> Any:
        config = CONFIGS[name](
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            initializer_range=0.5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return transformers.AutoModelForCausalLM.from_config(config).eval()

    return make


def some_prompts(n: int = 9, n_lengths: int = 12, **options: Any) -> list[Prompt]:
    rng = random.Random(5)
    settings = {"stops": (), "max_new_tokens": 8} | options
    return [
        Prompt(tuple(rng.randrange(3, 290) for _ in range(rng.randint(1, n_lengths))), **settings)
        for _ in range(n)
    ]


class _Stop(StoppingCriteria):
    """One row, decoded in full at every step."""

    def __init__(self, tokenizer, n_read, stops):
        self._tokenizer, self._n_read, self._stops = tokenizer, n_read, stops

    def __call__(self, input_ids, *_: Any, **__: Any):
        text = self._tokenizer.decode(input_ids[0, self._n_read :], skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in self._stops)])


def definition(model, tokenizer, prompt: Prompt) -> str:
    """One prompt alone, through transformers."""
    n_read = len(prompt.tokens)
    options = {"do_sample": False, "max_new_tokens": prompt.max_new_tokens} | dict(prompt.options)
    tokens = model.generate(
        torch.tensor([prompt.tokens]),
        attention_mask=torch.ones(1, n_read, dtype=torch.long),
        stopping_criteria=StoppingCriteriaList([_Stop(tokenizer, n_read, prompt.stops)]),
        pad_token_id=0,
        **options,
    )
    text = tokenizer.decode(tokens[0, n_read:], skip_special_tokens=True)
    for stop in prompt.stops:
        text = text.split(stop)[0]
    return text


def texts(model, tokenizer, prompts, batch_size=64, max_batch_tokens=4096):
    generation = Generation(model, tokenizer, batch_size, max_batch_tokens)
    return generation.answer(generation.plan(prompts))


@pytest.fixture
def no_generate(monkeypatch):
    """The model's own `generate` must not be needed."""

    def forbid(model):
        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("generate was called")

        monkeypatch.setattr(model, "generate", refuse)

    return forbid


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_texts_are_those_of_generate(name, batch_size, make_model, tokenizer, no_generate):
    model = make_model(name)
    prompts = some_prompts()
    expected = [definition(model, tokenizer, prompt) for prompt in prompts]
    assert len(set(expected)) > 5
    if name in OWN_LOOP:
        no_generate(model)
    assert texts(model, tokenizer, prompts, batch_size) == expected


@pytest.mark.parametrize("name", OWN_LOOP)
def test_rows_that_are_done_leave_and_the_others_do_not_notice(
    name, make_model, tokenizer, no_generate
):
    model = make_model(name)
    # Row i is done after about i characters, if it is not done before.
    prompts = some_prompts(16, max_new_tokens=16)
    free = [
        definition(model, tokenizer, prompt).replace("\N{REPLACEMENT CHARACTER}", "")
        for prompt in prompts
    ]
    stops = tuple({text[i] for i, text in enumerate(free[:8]) if i < len(text)})
    prompts = some_prompts(16, max_new_tokens=16, stops=stops)
    expected = [definition(model, tokenizer, prompt) for prompt in prompts]
    assert len({len(text) for text in expected}) > 2
    no_generate(model)
    rows = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert texts(model, tokenizer, prompts) == expected
    assert rows[0] == 16
    assert rows[-1] <= 8
    assert sum(rows) < 16 * len(rows)


def test_a_batch_ends_when_all_its_rows_are_done(make_model, tokenizer):
    model = make_model("llama")
    prompt = some_prompts(1)[0]
    first = definition(model, tokenizer, prompt)[0]
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    assert texts(model, tokenizer, [Prompt(prompt.tokens, (first,), 50)]) == [""]
    assert len(forwards) == 1


def test_a_second_call_answers_with_the_weights_of_now(make_model, tokenizer):
    model, other = make_model("llama"), make_model("llama", seed=4)
    prompts = some_prompts()
    generation = Generation(model, tokenizer, 4, 4096)
    plan = generation.plan(prompts)
    first = generation.answer(plan)
    model.load_state_dict(other.state_dict())
    assert generation.answer(plan) == texts(other, tokenizer, prompts) != first
    model.load_state_dict(make_model("llama").state_dict())
    assert generation.answer(plan) == first


def test_keys_and_values_stay_where_they_are_between_calls(make_model, tokenizer):
    model = make_model("llama")
    generation = Generation(model, tokenizer, 4, 4096)
    plan = generation.plan(some_prompts())
    addresses = []
    for _ in range(3):
        generation.answer(plan)
        addresses.append([layer.keys.data_ptr() for layer in generation._cache.layers])
    assert addresses[0] == addresses[1] == addresses[2]


def test_the_cache_holds_what_transformers_holds(make_model):
    model = make_model("llama")
    ours, theirs = ReusableCache(model.config), transformers.DynamicCache(config=model.config)
    tokens = torch.arange(3, 27).reshape(4, 6)
    ours.empty(9)
    with torch.inference_mode():
        for cache in (ours, theirs):
            model(tokens, past_key_values=cache)
            cache.batch_select_indices(torch.tensor([3, 1]))
            model(tokens[2:, :2], past_key_values=cache)
        ours.keep(torch.tensor([1]))
        theirs.batch_select_indices(torch.tensor([1]))
    for layer, their_layer in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(layer.keys, their_layer.keys)
        assert torch.equal(layer.values, their_layer.values)
    assert ours.get_seq_length() == theirs.get_seq_length() == 8


def test_prompts_of_different_settings_do_not_share_a_batch(make_model, tokenizer):
    model = make_model("llama")
    prompts = [
        Prompt((5, 6, 7), (), 3),
        Prompt((5, 6, 7), (), 6),
        Prompt((5, 6, 7), ("a",), 6),
        Prompt((5, 6, 7), (), 6, (("repetition_penalty", 1.3),)),
    ]
    plan = Generation(model, tokenizer, 64, 4096).plan(prompts)
    assert len(plan.batches) == 4
    assert texts(model, tokenizer, prompts) == [definition(model, tokenizer, p) for p in prompts]


def test_batches_hold_no_more_than_they_may(make_model, tokenizer):
    plan = Generation(make_model("llama"), tokenizer, 3, 40).plan(some_prompts(20, 30))
    for batch in plan.batches:
        n_rows, length = batch.inputs.shape
        assert n_rows <= 3
        assert n_rows == 1 or n_rows * (length + 8) <= 40


@pytest.mark.parametrize("stops", [("a",), ("ab", "5 "), ("é",), ("", "b"), ("\n\n",)])
def test_text_ends_before_the_first_stop_string(stops, make_model, tokenizer):
    # Texts are forced: what is written next is looked up, not computed.
    wanted = tokenizer("xabé5 y\n\nz", add_special_tokens=False)["input_ids"]
    model = make_model("llama")
    prompt = (7,)

    def force(module, args, kwargs, output):
        position = int(kwargs["position_ids"][0, -1])
        output.logits[:, -1] = 0.0
        output.logits[:, -1, wanted[position % len(wanted)]] = 1.0
        return output

    model.register_forward_hook(force, with_kwargs=True)
    (text,) = texts(model, tokenizer, [Prompt(prompt, stops, len(wanted))])
    expected = "xabé5 y\n\nz"
    for stop in stops:
        if stop:
            expected = expected.split(stop)[0]
    assert text == expected


def test_a_stop_string_that_is_a_special_token_ends_the_text(make_model, tokenizer):
    model = make_model("llama")

    def force(module, args, kwargs, output):
        output.logits[:, -1] = 0.0
        token = 1 if int(kwargs["position_ids"][0, -1]) == 2 else 50
        output.logits[:, -1, token] = 1.0
        return output

    model.register_forward_hook(force, with_kwargs=True)
    letter = tokenizer.decode([50])
    assert texts(model, tokenizer, [Prompt((7,), ("<bos>",), 6)]) == [letter * 2]
    assert texts(model, tokenizer, [Prompt((7,), (), 6)]) == [letter * 5]


def test_every_end_token_of_the_checkpoint_and_the_tokenizer_ends_a_text(make_model, tokenizer):
    model = make_model("llama")
    free = texts(model, tokenizer, some_prompts())
    token = tokenizer(free[0][1:], add_special_tokens=False)["input_ids"][0]
    model.generation_config.eos_token_id = [2, token]
    prompts = some_prompts()
    ended = texts(model, tokenizer, prompts)
    assert ended == [definition(model, tokenizer, prompt) for prompt in prompts]
    assert ended != free
    assert Generation(model, tokenizer, 1, 10)._ends == {2, token}
    model.generation_config.eos_token_id = None
    assert Generation(model, tokenizer, 1, 10)._ends == {2}


@pytest.mark.parametrize("name", OWN_LOOP)
def test_the_repetition_penalty_is_that_of_generate(name, make_model, tokenizer, no_generate):
    model = make_model(name)
    prompts = some_prompts(options=(("repetition_penalty", 1.5),), max_new_tokens=14, stops=("b",))
    expected = [definition(model, tokenizer, prompt) for prompt in prompts]
    no_generate(model)
    assert texts(model, tokenizer, prompts, 5) == expected
    assert expected != texts(model, tokenizer, some_prompts(max_new_tokens=14, stops=("b",)))


@pytest.mark.parametrize(
    "options",
    [
        (("num_beams", 3),),
        (("no_repeat_ngram_size", 2),),
        (("min_new_tokens", 5),),
        (("suppress_tokens", [50, 51]),),
    ],
)
def test_what_the_loop_does_not_know_is_left_to_generate(options, make_model, tokenizer):
    model = make_model("llama")
    prompts = some_prompts(5, options=options, stops=("d",))
    assert texts(model, tokenizer, prompts, 1) == [
        definition(model, tokenizer, prompt) for prompt in prompts
    ]
    assert not Generation(model, tokenizer, 4, 4096).plan(prompts).batches[0].is_simple


def test_greedy_decoding_ignores_how_the_checkpoint_samples(make_model, tokenizer, no_generate):
    model = make_model("llama")
    greedy = texts(model, tokenizer, some_prompts())
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    no_generate(model)
    assert texts(model, tokenizer, some_prompts()) == greedy


SAMPLING = (("do_sample", True), ("temperature", 0.9), ("top_k", 30), ("top_p", 0.95))
BEAM_SAMPLING = (*SAMPLING, ("num_beams", 2))


@pytest.mark.parametrize("options", [SAMPLING, BEAM_SAMPLING])
def test_draws_depend_on_the_seed_and_not_on_the_batch(options, make_model, tokenizer):
    model = make_model("llama")
    prompts = [
        Prompt(prompt.tokens, ("c",), 10, options, seed)
        for seed, prompt in enumerate(some_prompts(8))
    ]
    before = torch.random.get_rng_state()
    drawn = texts(model, tokenizer, prompts)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert texts(model, tokenizer, prompts) == drawn
    for batch_size in (1, 3):
        assert texts(model, tokenizer, prompts, batch_size) == drawn
    assert texts(model, tokenizer, prompts[::-1]) == drawn[::-1]
    assert drawn != texts(model, tokenizer, some_prompts(8, stops=("c",), max_new_tokens=10))
    others = [Prompt(p.tokens, p.stops, 10, options, p.seed + 100) for p in prompts]
    assert texts(model, tokenizer, others) != drawn


def test_draws_follow_the_distribution_of_generate(make_model, tokenizer, no_generate):
    model = make_model("llama")
    prompt, options = (9, 40, 77), (("do_sample", True), ("temperature", 2.0), ("top_k", 4))
    n = 4000
    prompts = [Prompt(prompt, (), 1, options, seed) for seed in range(n)]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1] / 2.0
    four = logits.topk(4)
    p = four.values.softmax(-1)
    no_generate(model)
    drawn = texts(model, tokenizer, prompts, 500, 10**6)
    for token, probability in zip(four.indices.tolist(), p.tolist(), strict=True):
        share = drawn.count(tokenizer.decode([token], skip_special_tokens=True)) / n
        assert share == pytest.approx(probability, abs=5 * (0.25 / n) ** 0.5)


def test_sampling_follows_the_checkpoint_where_options_leave_it_open(make_model, tokenizer):
    model = make_model("llama")
    sampled = [Prompt(prompt.tokens, (), 8, (("do_sample", True),), 1) for prompt in some_prompts()]
    model.generation_config.top_k = 1
    assert texts(model, tokenizer, sampled) == texts(model, tokenizer, some_prompts())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((("tempratur", 1.0),), "tempratur"),
        ((("num_return_sequences", 2),), "num_return_sequences"),
        ((("do_sample", True), ("temperature", 0.0)), "temperature above 0"),
        ((("do_sample", True), ("top_p", -1.0)), "top_p"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(options, words, make_model, tokenizer):
    generation = Generation(make_model("llama"), tokenizer, 4, 100)
    with pytest.raises(TaskError, match=words):
        generation.plan([Prompt((5,), (), 3, options)])


@pytest.mark.parametrize("options", [(), SAMPLING, (("num_beams", 2),)])
def test_a_model_that_computes_nan_gives_no_answer(options, make_model, tokenizer):
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[40] = float("nan")
    prompts = [Prompt((5, 6), (), 4, options), Prompt((5, 40), (), 4, options)]
    with pytest.raises(FloatingPointError, match="NaN"):
        texts(model, tokenizer, prompts)


def test_models_with_states_of_their_own_are_not_understood(make_model):
    assert all(is_understood(make_model(name)) for name in OWN_LOOP)
    assert not is_understood(make_model("bloom"))
    config = transformers.MambaConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, state_size=2
    )
    assert not is_understood(transformers.MambaForCausalLM(config))
    assert not is_understood(torch.nn.Linear(2, 2))
