"""RegMean against the paper's formula on whole weights, and where its inverse has no meaning."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.merging.operators import Statistics
from tests.support.least_squares import Array, array, bases_of, normal

OUT, IN = 7, 5


def gram_of(X: Tensor) -> Tensor:
    return X.T @ X / len(X)


def aids_of(*grams: Tensor, axis: int = 1) -> tuple[Statistics, ...]:
    return tuple({"gram": gram, "input_axis": torch.tensor(axis)} for gram in grams)


def inputs(k: int, n: int = 40) -> Tensor:
    """What the layer reads in expert k: correlated, some features larger than others."""
    return normal((n, IN), 50 + k) @ normal((IN, IN), 70) + 0.3 * k


def paper(
    W0: Array, deltas: Sequence[Tensor], grams: Sequence[Tensor], c: Sequence[float], alpha: float
) -> Array:
    """Jin et al. 2023, eq. 2 with weights: `(sum_i c_i W_i A_i) (sum_i c_i A_i)^-1`, dense."""
    shrunk = [alpha * array(g) + (1 - alpha) * np.diag(np.diag(array(g))) for g in grams]
    numerator = sum(w * (W0 + array(t)) @ A for w, t, A in zip(c, deltas, shrunk, strict=True))
    return numerator @ np.linalg.inv(sum(w * A for w, A in zip(c, shrunk, strict=True)))


@pytest.fixture
def deltas() -> list[Tensor]:
    return [normal((OUT, IN), k, 0.01) for k in range(3)]


@pytest.fixture
def grams() -> list[Tensor]:
    return [gram_of(inputs(k)) for k in range(3)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_at_ones_it_is_the_papers_merge_of_whole_weights(deltas, grams, alpha):
    W0 = array(normal((OUT, IN), 9))
    merged = W0 + sum(array(D) for D in bases_of("regmean", deltas, aids_of(*grams), alpha=alpha))
    expected = paper(W0, deltas, grams, [1.0, 1.0, 1.0], alpha)
    np.testing.assert_allclose(merged - W0, expected - W0, rtol=0, atol=1e-4 * 0.01)


@pytest.mark.parametrize("c", [(1.0, 1.0, 1.0), (0.2, 0.5, 1.3), (2.0, 0.0, 0.1)])
def test_the_exact_one_is_the_papers_merge_with_weights(deltas, grams, c):
    W0 = array(normal((OUT, IN), 9))
    bases = bases_of("regmean_exact", deltas, aids_of(*grams), weights=c)
    merged = W0 + sum(w * array(D) for w, D in zip(c, bases, strict=True))
    expected = paper(W0, deltas, grams, c, 0.9)
    np.testing.assert_allclose(merged - W0, expected - W0, rtol=0, atol=1e-4 * 0.01)


def test_it_minimises_the_distance_between_outputs(deltas):
    X = [inputs(k).double() for k in range(3)]
    bases = bases_of("regmean", deltas, aids_of(*(gram_of(x) for x in X)), alpha=1.0)
    merged = sum(bases).double()

    def loss(change: Tensor) -> float:
        return sum(
            float((x @ (change - t.double()).T).square().mean(0).sum())
            for x, t in zip(X, deltas, strict=True)
        )

    least = loss(merged)
    assert least < loss(sum(deltas).double() / 3)
    for seed in range(20):
        assert least < loss(merged + normal((OUT, IN), 100 + seed, 1e-4))


def test_two_inputs_that_one_expert_each_reads_keep_that_experts_columns():
    # Expert 0 only ever sees feature 0, expert 1 only feature 1: nothing to compromise about.
    deltas = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])]
    grams = [torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 4.0]))]
    merged = sum(bases_of("regmean", deltas, aids_of(*grams)))
    torch.testing.assert_close(
        merged, torch.tensor([[1.0, 20.0], [3.0, 40.0]]), rtol=1e-4, atol=1e-4
    )


def test_inputs_that_nobody_reads_get_the_mean():
    deltas = [normal((OUT, IN), k) for k in range(2)]
    grams = [gram_of(inputs(k)) for k in range(2)]
    for gram in grams:
        gram[2] = gram[:, 2] = 0.0
    merged = sum(bases_of("regmean", deltas, aids_of(*grams)))
    torch.testing.assert_close(merged[:, 2], (deltas[0] + deltas[1])[:, 2] / 2)


def test_weights_that_are_stored_with_their_inputs_first_are_merged_transposed(deltas, grams):
    straight = bases_of("regmean", deltas, aids_of(*grams))
    turned = bases_of("regmean", [t.T.contiguous() for t in deltas], aids_of(*grams, axis=0))
    for D, E in zip(straight, turned, strict=True):
        assert torch.equal(D, E.T)


@pytest.mark.parametrize("alpha", [0.9, 1.0])
@pytest.mark.parametrize("rank", [1, 3])
def test_grams_of_few_samples_do_not_raise_and_bring_no_noise(alpha, rank):
    deltas = [normal((OUT, IN), k, 0.01) for k in range(3)]
    grams = [gram_of(100.0 * normal((rank, IN), 5)) for _ in range(3)]  # the same few directions
    bases = bases_of("regmean", deltas, aids_of(*grams), alpha=alpha)
    # Equal Grams cancel, whatever their rank.
    for D, t in zip(bases, deltas, strict=True):
        torch.testing.assert_close(D, t / 3, rtol=0, atol=1e-7)


def test_a_rounded_gram_that_is_not_quite_positive_is_still_inverted():
    gram = gram_of(torch.ones(3, 600) * torch.linspace(1.0, 3000.0, 600))
    gram[0, 1:] *= 1.001
    gram[1:, 0] *= 1.001
    ridged = gram.double() + 1e-6 * gram.double().diagonal().diag()
    assert torch.linalg.cholesky_ex(ridged).info
    deltas = [normal((3, 600), k, 0.01) for k in range(2)]
    for D, t in zip(
        bases_of("regmean", deltas, aids_of(gram, gram), alpha=1.0), deltas, strict=True
    ):
        torch.testing.assert_close(D, t / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["regmean", "regmean_exact"])
def test_an_expert_that_changes_nothing_still_pulls_towards_the_base(name, deltas, grams):
    deltas[1] = torch.zeros(OUT, IN)
    bases = bases_of(name, deltas, aids_of(*grams), weights=(1.0, 1.0, 1.0))
    assert not bases[1].any()
    alone = bases_of(name, [deltas[0], deltas[2]], aids_of(grams[0], grams[2]), weights=(1.0, 1.0))
    assert float((bases[0] - alone[0]).norm()) > 0.01 * float(alone[0].norm())


@pytest.mark.parametrize("shape", [(), (6,), (OUT, IN), (2, 3, 4)])
def test_tensors_without_grams_are_averaged(shape):
    deltas = [normal(shape, k) for k in range(4)]
    for aids in ((), ({}, {}, {}, {})):
        for D, t in zip(bases_of("regmean", deltas, aids), deltas, strict=True):
            assert torch.equal(D, t / 4)


def test_layers_that_no_text_reached_are_averaged(deltas):
    nothing = torch.zeros(IN, IN)
    for D, t in zip(
        bases_of("regmean", deltas, aids_of(nothing, nothing, nothing)), deltas, strict=True
    ):
        assert torch.equal(D, t / 3)


def test_only_the_ratios_of_exact_coefficients_count(deltas, grams):
    def merge(c: Sequence[float]) -> Tensor:
        bases = bases_of("regmean_exact", deltas, aids_of(*grams), weights=c)
        return sum(w * D for w, D in zip(c, bases, strict=True))

    torch.testing.assert_close(merge((0.2, 0.4, 0.6)), merge((2.0, 4.0, 6.0)))
    torch.testing.assert_close(merge((0.7, 0.0, 0.0)), deltas[0], rtol=1e-5, atol=1e-8)


def test_a_negative_exact_coefficient_merges_the_opposite_of_an_expert(deltas, grams):
    bases = bases_of("regmean_exact", deltas, aids_of(*grams), weights=(1.0, -0.5, 0.3))
    opposite = [deltas[0], -deltas[1], deltas[2]]
    expected = bases_of("regmean_exact", opposite, aids_of(*grams), weights=(1.0, 0.5, 0.3))
    assert torch.equal(1.0 * bases[0], expected[0])
    assert torch.equal(-bases[1], expected[1])


def test_coefficients_of_zero_leave_finite_bases(deltas, grams):
    for D in bases_of("regmean_exact", deltas, aids_of(*grams), weights=(0.0, 0.0, 0.0)):
        assert torch.isfinite(D).all()


@pytest.mark.parametrize("n_experts", [1, 40])
def test_equal_experts_come_back_whatever_they_read(n_experts):
    t = normal((OUT, IN), 1, 0.01)
    grams = [gram_of(normal((12, IN), 10 + k)) for k in range(n_experts)]
    torch.testing.assert_close(
        sum(bases_of("regmean", [t] * n_experts, aids_of(*grams))), t, rtol=1e-5, atol=1e-8
    )
