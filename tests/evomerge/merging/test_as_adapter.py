"""A merge of adapters written as one adapter is that merge."""

import pytest
import torch

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import open_expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Recipe
from evomerge.errors import CheckpointError, ConfigError, IncompatibleError
from evomerge.merging.low_rank.as_adapter import merged_factors, truncated, write_adapter
from evomerge.merging.materialize import merged_tensors
from tests.support.adapters import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
FIRST = {"r": 3, "target_modules": ["q_proj", "down_proj"], "lora_alpha": 5}
SECOND = {"r": 2, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}


@pytest.fixture
def make(tmp_path):
    import transformers

    def adapters(*settings, tied=False):
        config = transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
        base = Checkpoint.open(tmp_path / "base")
        for k, given in enumerate(settings):
            save_adapter(tmp_path / f"a{k}", tmp_path / "base", seed=k, **given)
        experts = [open_expert(f"a{k}", tmp_path / f"a{k}", base) for k in range(len(settings))]
        return base, experts, Anatomy.of(base)

    return adapters


def recipe_of(experts, anatomy, *c, operator="task_arithmetic"):
    labels = anatomy.group_labels
    rows = tuple((c_k,) * len(labels) for c_k in c)
    return Recipe(operator, tuple(e.name for e in experts), labels, rows)


@pytest.mark.parametrize("operator", ["task_arithmetic", "core_space(ties)", "lora_lego"])
def test_the_adapter_gives_the_logits_of_the_merged_model(make, tmp_path, operator):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base, experts, anatomy = make(FIRST, SECOND)
    recipe = recipe_of(experts, anatomy, 0.7, -0.4, operator=operator)
    write_adapter(
        tmp_path / "out", base, merged_factors(base, experts, anatomy, recipe), card="A merge.\n"
    )
    ids = torch.tensor([[1, 5, 9, 3]])
    adapted = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(base.path), tmp_path / "out"
    )
    merged = LlamaForCausalLM.from_pretrained(base.path)
    tensors = merged_tensors(base, experts, anatomy, recipe)
    merged.load_state_dict(dict(tensors), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-5)
    again = open_expert("again", tmp_path / "out", base)
    assert again.factors("model.layers.0.self_attn.q_proj.weight") is not None


def test_truncation_tells_its_error(make):
    base, experts, anatomy = make(FIRST, SECOND)
    factors = merged_factors(base, experts, anatomy, recipe_of(experts, anatomy, 1.0, 1.0))
    short, error = truncated(factors, 2)
    lost = total = 0.0
    for name, change in factors.items():
        exact = change.left.double().T @ change.right.double()
        found = short[name].left.double().T @ short[name].right.double()
        assert short[name].rank <= 2
        lost, total = lost + float((found - exact).norm()) ** 2, total + float(exact.norm()) ** 2
    assert error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert truncated(factors, 99)[1] == 0.0


def test_refusals(make, tmp_path):
    base, experts, anatomy = make(FIRST, FIRST | {"modules_to_save": ["lm_head"]})
    with pytest.raises(ConfigError, match="ties merges whole deltas"):
        merged_factors(base, experts, anatomy, recipe_of(experts, anatomy, 1, 1, operator="ties"))
    with pytest.raises(IncompatibleError, match=r"a1 changes lm_head\.weight as a whole"):
        merged_factors(base, experts, anatomy, recipe_of(experts, anatomy, 1.0, 1.0))
    assert merged_factors(base, experts, anatomy, recipe_of(experts, anatomy, 1.0, 0.0))
    with pytest.raises(CheckpointError, match="this merge is the base"):
        write_adapter(tmp_path / "out", base, {}, card="")


def test_one_end_of_a_tie_is_refused(make):
    base, experts, anatomy = make({"r": 2, "target_modules": ["embed_tokens"]}, tied=True)
    with pytest.raises(IncompatibleError, match="one end of a tie"):
        merged_factors(base, experts, anatomy, recipe_of(experts, anatomy, 1.0))
