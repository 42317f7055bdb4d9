from typing import Any

import pytest
import torch
from torch import nn

from fitness.likelihood import Likelihood, Pair

PAIRS = [
    Pair((1, 5, 6), (7,)),
    Pair((1, 5, 6), (8,)),
    Pair((1, 5), (6, 9)),  # reads the same tokens as the two above
    Pair((1,), (4, 4, 4, 4)),
    Pair((1, 2, 3, 4, 5, 6, 7, 8, 9), (3, 2)),
    Pair((1, 5, 6), (7,)),
]


class WithoutKeeping(nn.Module):
    """A model whose forward cannot leave logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, use_cache: bool = True) -> Any:
        return self.model(input_ids, use_cache=use_cache)


def naive(model: nn.Module, pair: Pair) -> tuple[float, bool]:
    """One pair at a time, from its definition."""
    with torch.no_grad():
        logits = model(torch.tensor([[*pair.context, *pair.continuation]])).logits[0].double()
    logits = logits[len(pair.context) - 1 : -1]
    target = torch.tensor(pair.continuation)
    picked = logits.log_softmax(-1).gather(1, target[:, None])
    return float(picked.sum()), bool((logits.argmax(-1) == target).all())


@pytest.mark.parametrize("wrap", [lambda model: model, WithoutKeeping])
@pytest.mark.parametrize(("batch_size", "max_batch_tokens"), [(64, 1000), (2, 1000), (64, 5)])
def test_answers_are_the_log_probabilities_of_the_definition(
    wrap, batch_size, max_batch_tokens, model
):
    likelihood = Likelihood(wrap(model), batch_size, max_batch_tokens)
    answers = likelihood.answer(likelihood.plan(PAIRS))
    for answer, pair in zip(answers, PAIRS, strict=True):
        expected = naive(model, pair)
        assert answer[0] == pytest.approx(expected[0], rel=1e-5)
        assert answer[1] == expected[1]


def test_pairs_that_read_the_same_tokens_share_a_row(model):
    plan = Likelihood(model, 64, 1000).plan(PAIRS)
    assert [tuple(batch.inputs.shape) for batch in plan.batches] == [(3, 10)]
    assert len(plan.batches[0].kept) < 10


def test_batches_hold_no_more_than_they_may(model):
    plan = Likelihood(model, 2, 20).plan([Pair(tuple(range(n)), (1,)) for n in range(1, 15)])
    shapes = [batch.inputs.shape for batch in plan.batches]
    assert all(n_rows <= 2 and (n_rows == 1 or n_rows * length <= 20) for n_rows, length in shapes)
    assert sum(n_rows for n_rows, _ in shapes) == 14


def test_half_precision_sums_in_single_precision(model):
    model.to(torch.bfloat16)
    likelihood = Likelihood(model, 1, 1000)
    for answer, pair in zip(likelihood.answer(likelihood.plan(PAIRS)), PAIRS, strict=True):
        assert answer[0] == pytest.approx(naive(model, pair)[0], rel=1e-5)
