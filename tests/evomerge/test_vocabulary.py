"""Experts with tokens of their own: from the configuration to a model that is loaded back."""

import json
import shutil

import pytest
import torch
import transformers

from evomerge.config import read_config
from evomerge.datatypes import Job, Split
from evomerge.errors import EvomergeError, IncompatibleError
from evomerge.evaluation import open_models, worker_setup
from evomerge.export import export
from evomerge.history import read_history
from evomerge.search import start
from evomerge.session import Session

NEW = ["<first>", "<second>"]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def models(request, tiny_zoo, tmp_path):
    """A base, an expert with two more tokens, and one without."""
    folder = tmp_path / "models"
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_zoo.base, dtype="auto")
    if base.config.tie_word_embeddings != request.param:
        base.config.tie_word_embeddings = request.param
        head = torch.nn.Linear(base.config.hidden_size, base.config.vocab_size, bias=False)
        head.weight = torch.nn.Parameter(base.get_input_embeddings().weight.detach().clone())
        base.lm_head = head.to(base.dtype)
        if request.param:
            base.tie_weights()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_zoo.base)
    generator = torch.Generator().manual_seed(0)
    for name, new in (("base", []), ("plain", []), ("added", NEW)):
        model = base if name == "base" else type(base)(base.config).to(base.dtype)
        model.load_state_dict(base.state_dict())
        if new:
            tokenizer.add_tokens(new)
            model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
        if name != "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def configured(models, write_config):
    def write(**vocabulary):
        experts = {name: str(models / name) for name in ("plain", "added")}
        return read_config(
            write_config(
                base=str(models / "base"),
                experts=experts,
                vocabulary=vocabulary,
                budget={"evaluations": 4},
            )
        )

    return write


OWNER = {"extra_rows": "owner", "tokenizer": "added"}


def test_by_default_extra_rows_are_left_out_and_the_user_is_told(configured, models):
    opened = open_models(worker_setup(configured()).models)
    assert (
        opened.base.vocab_size
        == json.loads((models / "base/config.json").read_text())["vocab_size"]
    )
    assert any("vocabulary.tokenizer" in warning for warning in opened.warnings)


def test_rows_of_new_tokens_come_whole_from_their_owner(configured, models):
    opened = open_models(worker_setup(configured(**OWNER)).models)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(models / "added", dtype="auto")
    ids = transformers.AutoTokenizer.from_pretrained(models / "added").convert_tokens_to_ids(NEW)
    (name, *_) = opened.base.vocabulary_weights()
    assert len(opened.base.read(name)) == theirs.config.vocab_size
    assert torch.equal(opened.base.read(name)[ids], theirs.get_input_embeddings().weight[ids])
    for expert in opened.experts:
        change = expert.delta(name).view(opened.base.tensors[name].shape)
        assert not change[ids].any()
        assert change[: min(ids)].any()


def test_a_search_exports_a_model_with_all_tokens_that_scores_as_journaled(
    configured, models, tmp_path
):
    config = configured(**OWNER)
    start(config, tmp_path / "run")
    history = read_history(tmp_path / "run")
    done = export(tmp_path / "run", "uniform_average", tmp_path / "merged")
    assert done.rescored is not None
    assert history.trials["uniform_average"].name == done.trial.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    ids = tokenizer.convert_tokens_to_ids(NEW)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(models / "added", dtype="auto")
    assert torch.equal(
        model.get_input_embeddings().weight[ids], theirs.get_input_embeddings().weight[ids]
    )
    assert torch.equal(
        model.get_output_embeddings().weight[ids], theirs.get_output_embeddings().weight[ids]
    )


def test_one_id_for_two_tokens_is_refused(configured, models):
    shutil.rmtree(models / "plain")
    shutil.copytree(models / "added", models / "plain")
    file = models / "plain" / "tokenizer.json"
    file.write_text(file.read_text().replace("<second>", "<other>"))
    with pytest.raises(IncompatibleError, match=r"'<other>' in plain and '<second>' in added"):
        open_models(worker_setup(configured(**OWNER)).models)


def test_a_chat_template_is_chosen(configured, models):
    (models / "added" / "chat_template.jinja").write_text("{{ messages }}")
    undecided = open_models(worker_setup(configured()).models)
    assert any("vocabulary.chat_template" in warning for warning in undecided.warnings)
    chosen = open_models(worker_setup(configured(chat_template="added")).models)
    assert chosen.base.chat_template == "{{ messages }}"
    assert not any("chat template" in warning for warning in chosen.warnings)
    with Session(configured(chat_template="added")) as session:
        session.executor.submit(Job("j", session.baselines["base"], Split.SEARCH))
        assert session.executor.next_done().failure is None


def test_whose_it_is_must_be_known(configured):
    with pytest.raises(EvomergeError, match=r"vocabulary\.tokenizer is one of"):
        configured(tokenizer="nobody")


def test_a_tokenizer_with_tokens_beyond_the_rows_is_refused(configured):
    with pytest.raises(IncompatibleError, match="every token must have a row"):
        open_models(worker_setup(configured(tokenizer="added")).models)
