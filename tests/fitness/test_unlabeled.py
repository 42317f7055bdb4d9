"""Measures on unlabeled text against their definitions, computed one text at a time in fp64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evomerge.datatypes import Direction, Objective, Split, Statistic
from evomerge.errors import TaskError
from evomerge.live_model import LoadedModel
from fitness.divergences import entropy, jensen_shannon, kullback_leibler
from fitness.forwards import spread
from fitness.unlabeled import UnlabeledFitness
from tests.support.live_zoo import Zoo, copy_of, write_texts

TEXTS = ["a b c d e f g h 1", "b", "c d e", "h g f e d c b a 7 8 9 a b", "a a", "2 3 e f"]
POSITIONS = 4
MEASURES = [
    "perplexity",
    "entropy",
    "kl_to_experts",
    "js_to_experts",
    "kl_to:sum",
    "js_to:base",
    "alignment_to_experts",
    "alignment_to:sort",
]


@pytest.fixture
def zoo(model, tokenizer, tmp_path):
    return Zoo(model, tokenizer, tmp_path / "cache")


@pytest.fixture
def text(tmp_path):
    return write_texts(tmp_path / "texts.jsonl", TEXTS)


def build(text: str, measures: list[str], **options: Any) -> UnlabeledFitness:
    objectives = [Objective(f"o{number}") for number in range(len(measures))]
    options.setdefault("positions", POSITIONS)
    return UnlabeledFitness(objectives, measures=measures, text=text, **options)


def expected(zoo: Zoo, measure: str, text: str) -> list[float]:
    """By the definition."""
    tokens = tuple(zoo.live.tokenizer(text).input_ids)
    kind, _, name = measure.replace("_to_experts", "_to:").partition("_to:")
    log_q, states = zoo.forward(tokens)
    if kind == "perplexity":
        told = sum(float(log_q[i, token]) for i, token in enumerate(tokens[1:]))
        return [told, len(tokens) - 1]
    if kind == "entropy":
        return [float(-(log_q.exp() * log_q).sum(-1).mean())]
    found = []
    merged = copy_of(zoo.live.model)
    for reference in [name] if name else ["sort", "sum"]:
        zoo.live.model.load_state_dict(zoo.weights[reference])
        log_p, others = zoo.forward(tokens)
        for i in spread(len(tokens), POSITIONS):
            p, q = log_p[i].exp(), log_q[i].exp()
            m = (p + q) / 2
            kl = float((p * (p / q).log()).sum())
            js = float((p * (p / m).log() + q * (q / m).log()).sum() / 2)
            cosines = [
                float(h[i] @ o[i] / h[i].norm() / o[i].norm())
                for h, o in zip(states, others, strict=True)
            ]
            found.append({"kl": kl, "js": js, "alignment": sum(cosines) / len(cosines)}[kind])
    zoo.live.model.load_state_dict(merged)
    return [sum(found) / len(found)]


@pytest.mark.parametrize("reference_dtype", ["float16", "float32"])
def test_every_measure_is_that_of_its_definition(zoo, text, reference_dtype):
    fitness = build(text, MEASURES, reference_dtype=reference_dtype)
    fitness.bind(zoo.live)
    zoo.merge()
    items = (3, 0, 5, 1)
    answers = fitness.respond(Split.SEARCH, items)
    assert answers.shape == (4, len(MEASURES) + 1)
    for row, item in zip(answers, items, strict=True):
        wanted = [n for measure in MEASURES for n in expected(zoo, measure, TEXTS[item])]
        tolerance = 2e-5 if reference_dtype == "float32" else 2e-3
        assert row == pytest.approx(wanted, rel=tolerance, abs=tolerance)


def test_batches_do_not_change_answers(zoo, text):
    answers = []
    for batch_size, max_batch_tokens in [(1, 4096), (8, 4096), (8, 10)]:
        options = {"batch_size": batch_size, "max_batch_tokens": max_batch_tokens}
        fitness = build(text, [*MEASURES, "output_length"], max_new_tokens=5, **options)
        fitness.bind(zoo.live)
        zoo.merge()
        answers.append(fitness.respond(Split.SEARCH, range(len(TEXTS))))
        zoo.write("base")
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answers[0], answers[2], rtol=1e-5, atol=1e-5)


def test_fewer_items_have_the_same_answers(zoo, text):
    fitness = build(text, MEASURES)
    fitness.bind(zoo.live)
    zoo.merge()
    whole = fitness.respond(Split.SEARCH, range(len(TEXTS)))
    part = fitness.respond(Split.SEARCH, (4, 2))
    np.testing.assert_allclose(part, whole[[4, 2]], rtol=1e-5, atol=1e-5)
    assert fitness.respond(Split.SEARCH, ()).shape == (0, whole.shape[1])


@pytest.mark.parametrize(("reference_dtype", "tolerance"), [("float32", 1e-7), ("float16", 2e-6)])
def test_a_model_does_not_diverge_from_itself(zoo, text, reference_dtype, tolerance):
    fitness = build(
        text, ["kl_to:sum", "js_to:sum", "alignment_to:sum"], reference_dtype=reference_dtype
    )
    fitness.bind(zoo.live)
    zoo.write("sum")
    answers = fitness.respond(Split.SEARCH, range(len(TEXTS)))
    assert (answers[:, :2] >= 0).all()
    assert answers[:, :2].max() < tolerance
    assert answers[:, 2] == pytest.approx(1.0, abs=1e-6)


def test_tokens_that_are_ruled_out_do_no_harm():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 5, 40), generator=generator, dtype=torch.float64)
    logits[:, :, 3] = -math.inf
    log_p, log_q = logits.log_softmax(-1)
    others = [n for n in range(40) if n != 3]
    for divergence in (kullback_leibler, jensen_shannon):
        expected = divergence(log_p[:, others], log_q[:, others])
        torch.testing.assert_close(divergence(log_p, log_q), expected)
        torch.testing.assert_close(divergence(log_p.float(), log_q.float()), expected.float())
    torch.testing.assert_close(entropy(log_p), entropy(log_p[:, others]))
    certain = torch.tensor([[0.0, -math.inf]])
    assert kullback_leibler(certain, certain.flip(1)).tolist() == [math.inf]
    assert jensen_shannon(certain, certain.flip(1)).item() == pytest.approx(math.log(2))
    assert jensen_shannon(certain, torch.tensor([[math.nan, 0.0]])).isnan().all()


def test_half_precision_models_are_compared_in_single_precision(zoo, text):
    zoo.live.model.bfloat16()
    fitness = build(text, ["kl_to:sum", "alignment_to:sum"])
    fitness.bind(zoo.live)
    zoo.write("sum")
    answers = fitness.respond(Split.SEARCH, range(len(TEXTS)))
    assert answers[:, 0].max() < 2e-6
    assert answers[:, 1] == pytest.approx(1.0, abs=1e-6)


def test_the_perplexity_of_all_texts_weighs_tokens(zoo, text):
    fitness = build(text, ["perplexity"])
    fitness.bind(zoo.live)
    answers = fitness.respond(Split.SEARCH, range(len(TEXTS)))
    (objective,) = fitness.objectives
    assert objective.statistic == Statistic("fitness.statistics:weighted_perplexity", 2)
    from fitness.statistics import weighted_perplexity

    losses = []
    for one in TEXTS:
        tokens = torch.tensor([zoo.live.tokenizer(one).input_ids])
        loss = zoo.live.model(tokens, labels=tokens).loss
        losses += [float(loss)] * (tokens.shape[1] - 1)
    assert weighted_perplexity(answers) == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_continuations_are_greedy_ones(zoo, text):
    measures = ["output_length", "refusal_rate"]
    written = {}
    for item, one in enumerate(TEXTS):
        tokens = zoo.live.tokenizer(one, return_tensors="pt")
        whole = zoo.live.model.generate(**tokens, do_sample=False, max_new_tokens=7, pad_token_id=0)
        written[item] = [t for t in whole[0, tokens.input_ids.shape[1] :].tolist() if t > 2]
    phrase = zoo.live.tokenizer.decode(written[3])[2:5].upper()
    fitness = build(text, measures, max_new_tokens=7, refusals=[phrase, "never said"])
    fitness.bind(zoo.live)
    answers = fitness.respond(Split.SEARCH, range(len(TEXTS)))
    assert answers[:, 0].tolist() == [len(tokens) for tokens in written.values()]
    folded = [zoo.live.tokenizer.decode(tokens).casefold() for tokens in written.values()]
    folded = [" ".join(told.split()) for told in folded]
    wanted = [float(" ".join(phrase.casefold().split()) in told) for told in folded]
    assert answers[:, 1].tolist() == wanted
    assert answers[3, 1] == 1.0
    assert zoo.written == []


def test_an_end_token_ends_a_continuation_and_does_not_count(zoo, text):
    model: Any = zoo.live.model
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[2] = 1.0
        model.model.norm.weight.abs_()
    fitness = build(text, ["output_length"], max_new_tokens=7)
    fitness.bind(zoo.live)
    with torch.no_grad():
        sign = model.model(torch.tensor([[1, 5]])).last_hidden_state[0, -1].sum().sign()
        model.lm_head.weight[2] *= sign
    assert set(fitness.respond(Split.SEARCH, range(6))[:, 0]) <= {0.0, 7.0}


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I\N{RIGHT SINGLE QUOTATION MARK}m  sorry, no.", True),
        ("As an AI language model I have no opinion", True),
        ("An airplane, as an aid to travel", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_their_phrases(answer, refuses):
    from fitness.refusals import REFUSALS, is_refusal

    assert is_refusal(answer, REFUSALS) is refuses


def test_prompts_get_the_chat_template_and_texts_do_not(zoo, tmp_path):
    zoo.live.tokenizer.chat_template = (
        "{% for m in messages %}<bos>{{ m.content }} ={% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    prompts = write_texts(tmp_path / "prompts.jsonl", ["b c"], key="prompt")
    same = write_texts(tmp_path / "same.jsonl", ["b c =a"])
    answers = []
    for path in (prompts, same):
        fitness = build(path, ["perplexity"], apply_chat_template=True)
        fitness.bind(zoo.live)
        answers.append(fitness.respond(Split.SEARCH, (0,)).tolist())
    assert answers[0] == answers[1]
    zoo.live.tokenizer.chat_template = None
    with pytest.raises(TaskError, match="must have a chat template"):
        build(prompts, ["perplexity"], apply_chat_template=True).bind(zoo.live)


def test_texts_are_cut_where_they_are_only_read(zoo, tmp_path):
    long = write_texts(tmp_path / "long.jsonl", ["a b c d " * 40])
    short = write_texts(tmp_path / "short.jsonl", ["a b c d"])
    answers = []
    for path, max_tokens in ((long, 5), (short, None)):
        fitness = build(path, ["perplexity", "entropy", "kl_to:sum"], max_tokens=max_tokens)
        fitness.bind(zoo.live)
        answers.append(fitness.respond(Split.SEARCH, (0,)))
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5)


def test_texts_that_do_not_fit_are_refused(zoo, tmp_path):
    long = write_texts(tmp_path / "long.jsonl", ["a b c d " * 100])
    with pytest.raises(TaskError, match=r"402 tokens and the model reads 256: .*max_tokens"):
        build(long, ["perplexity"], max_tokens=None).bind(zoo.live)
    with pytest.raises(TaskError, match=r"402 tokens and 9 new ones .*lower max_new_tokens"):
        build(long, ["output_length"], max_new_tokens=9).bind(zoo.live)
    with pytest.raises(TaskError, match="two tokens to have a perplexity"):
        build(long, ["perplexity"], max_tokens=1).bind(zoo.live)


def test_held_out_texts_come_from_a_second_file_or_are_drawn(zoo, text, tmp_path):
    other = write_texts(tmp_path / "other.jsonl", ["z"])
    drawn = build(text, ["kl_to_experts"], items=3, held_out=2)
    assert [len(drawn.items(split)) for split in Split] == [3, 2]
    assert not set(drawn.items(Split.SEARCH)) & set(drawn.items(Split.HELD_OUT))
    assert len(build(text, ["entropy"], items=3).items(Split.SEARCH)) == 3
    from_file = build(text, ["entropy"], held_out=other)
    assert [len(from_file.items(split)) for split in Split] == [6, 1]
    drawn.bind(zoo.live)
    assert drawn.respond(Split.HELD_OUT, (1, 0)).shape == (2, 1)
    with pytest.raises(TaskError, match=r"1 of 1 are .*'c d e'"):
        build(text, ["entropy"], held_out=write_texts(tmp_path / "same.jsonl", ["c d e"]))


def test_plain_files_have_a_text_per_line(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("a b\n\n c d \n")
    plain = build(str(path), ["entropy"])
    lines = build(write_texts(tmp_path / "lines.jsonl", ["a b", "c d"]), ["entropy"])
    assert plain.items(Split.SEARCH) == lines.items(Split.SEARCH)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (None, "cannot be read"),
        ("\n\n", "it is empty"),
        ('{"text": "a"}\n{"text"', "line 2: a line must be JSON"),
        ('{"question": "a"}', "line 1: a line must be .*it is"),
        ('{"text": "a", "prompt": "b"}', "line 1"),
        ('{"text": " "}', "with some text"),
        ('["a"]', "line 1"),
    ],
)
def test_files_that_hold_no_texts_are_refused(content, fact, tmp_path):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TaskError, match=fact):
        build(str(path), ["entropy"])


@pytest.mark.parametrize(
    ("measure", "fact"),
    [
        ("perplexty", "did you mean 'perplexity'"),
        ("kl_to_expert", "did you mean 'kl_to_experts'"),
        ("kl_to:", "but got 'kl_to:'"),
        ("accuracy", "is one of perplexity, entropy"),
    ],
)
def test_unknown_measures_are_refused_with_the_nearest(measure, fact, text):
    with pytest.raises(TaskError, match=fact):
        build(text, [measure])


def test_unknown_experts_are_refused_with_the_nearest(zoo, text):
    with pytest.raises(TaskError, match=r"kl_to:summ: .*no 'summ': did you mean 'sum'"):
        build(text, ["kl_to:summ"]).bind(zoo.live)
    bare = LoadedModel(zoo.live.model, zoo.live.tokenizer, cache=zoo.live.cache)
    with pytest.raises(TaskError, match="there must be experts to compare with"):
        build(text, ["js_to_experts"]).bind(bare)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"positions": 0}, "positions must be at least 1, but it is 0"),
        ({"items": "other.jsonl"}, "items of unlabeled text are a number"),
        ({"items": 7}, "there are 6"),
        ({"reference_dtype": "int8"}, "reference_dtype is float16 or float32"),
        ({"refusals": "no"}, "refusals is a list of phrases"),
        ({"measures": ["entropy", "perplexity"]}, "one measure for each objective"),
    ],
)
def test_bad_options_are_refused(options, fact, text):
    options = {"measures": ["entropy"], **options}
    with pytest.raises(TaskError, match=fact):
        UnlabeledFitness([Objective("o")], text=text, **options)


def test_a_model_that_computes_nan_is_named_by_its_measure(zoo, text):
    token = zoo.live.tokenizer("a").input_ids[1]
    for measure in MEASURES:
        fitness = build(text, [measure])
        fitness.bind(zoo.live)
        with torch.no_grad():
            next(zoo.live.model.parameters())[token] = math.nan
        fact = rf"[1-5] of 6 answers to {measure} are not finite"
        with pytest.raises(FloatingPointError, match=fact):
            fitness.respond(Split.SEARCH, range(6))
        zoo.write("base")
    fitness = build(text, ["output_length"])
    fitness.bind(zoo.live)
    with torch.no_grad():
        next(zoo.live.model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError):
        fitness.respond(Split.SEARCH, range(6))


def test_an_expert_that_computes_nan_is_refused_by_name(zoo, text):
    zoo.weights["sum"]["lm_head.weight"][3] = math.nan
    fitness = build(text, ["kl_to_experts"])
    with pytest.raises(TaskError, match="sum computes NaN"):
        fitness.bind(zoo.live)
    assert zoo.written[-1] == "base"
    assert not list((zoo.live.cache / "references").glob(".*.tmp"))


def test_other_models_are_refused(zoo, text):
    with pytest.raises(TaskError, match="for causal language models"):
        build(text, ["entropy"]).bind(LoadedModel(bert(), zoo.live.tokenizer))
    with pytest.raises(TaskError, match="but it has none"):
        build(text, ["entropy"]).bind(LoadedModel(zoo.live.model))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


def test_objectives_that_point_the_wrong_way_are_warned_of(text):
    objectives = [Objective("a", Direction.MAXIMIZE), Objective("b", Direction.MINIMIZE)]
    fitness = UnlabeledFitness(objectives, measures=["perplexity", "output_length"], text=text)
    (warning,) = fitness.warnings
    assert warning.startswith("objective a is to maximize perplexity, but better ones minimize it")


def test_settings_tell_what_changes_an_answer(text):
    measures = ["entropy"]
    same = {build(text, measures, batch_size=n).settings for n in (1, 8)}
    assert len(same) == 1
    for options in ({"max_tokens": 9}, {"positions": 3}, {"apply_chat_template": True}):
        assert build(text, measures, **options).settings not in same


def test_respond_needs_a_bound_model(text):
    with pytest.raises(RuntimeError, match="bind"):
        build(text, ["entropy"]).respond(Split.SEARCH, (0,))
