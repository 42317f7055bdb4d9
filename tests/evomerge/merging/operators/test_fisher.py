"""Fisher-weighted averaging against its formula, and where there is no information."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.merging.operators import OPERATORS, Statistics
from evomerge.merging.pieces import BLOCK
from tests.support.least_squares import Array, array, bases_of, normal

SHAPE = (6, 5)


def aids_of(*information: Tensor) -> tuple[Statistics, ...]:
    return tuple({"fisher": F} for F in information)


def paper(
    deltas: Sequence[Tensor], information: Sequence[Tensor], c: Sequence[float], floor: float
) -> Array:
    """Matena and Raffel 2022, eq. 4, with norms of this tensor alone."""
    F = [array(f) / np.linalg.norm(array(f)) for f in information]
    least = floor * np.mean(F)
    F = [np.maximum(f, least) for f in F]
    numerator = sum(w * f * array(t) for w, f, t in zip(c, F, deltas, strict=True))
    return numerator / sum(w * f for w, f in zip(c, F, strict=True))


@pytest.fixture
def deltas() -> list[Tensor]:
    return [normal(SHAPE, k, 0.01) for k in range(3)]


@pytest.fixture
def information() -> list[Tensor]:
    return [normal(SHAPE, 30 + k).square() * 10.0 ** -(3 * k + 3) for k in range(3)]


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("c", [(1.0, 1.0, 1.0), (0.3, 1.4, 0.0)])
def test_it_is_the_papers_weighted_mean(deltas, information, c, floor):
    exact = bases_of("fisher_exact", deltas, aids_of(*information), weights=c, floor=floor)
    merged = sum(w * array(D) for w, D in zip(c, exact, strict=True))
    np.testing.assert_allclose(merged, paper(deltas, information, c, floor), rtol=1e-5, atol=1e-9)
    if set(c) == {1.0}:
        frozen = bases_of("fisher", deltas, aids_of(*information), floor=floor)
        assert all(torch.equal(D, E) for D, E in zip(exact, frozen, strict=True))


def test_a_parameter_goes_to_the_expert_that_it_matters_to():
    deltas = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    aids = aids_of(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(
        sum(bases_of("fisher", deltas, aids)), torch.tensor([1.0, 20.0]), rtol=1e-5, atol=0
    )


def test_an_expert_with_larger_gradients_everywhere_does_not_outvote_the_others(
    deltas, information
):
    louder = [information[0] * 1e6, *information[1:]]
    for D, E in zip(
        bases_of("fisher", deltas, aids_of(*information)),
        bases_of("fisher", deltas, aids_of(*louder)),
        strict=True,
    ):
        torch.testing.assert_close(D, E, rtol=1e-5, atol=1e-10)
    merged = sum(bases_of("fisher", deltas, aids_of(*louder), scale="none"))
    assert float((merged - deltas[0]).norm()) < 0.01 * float(deltas[0].norm())


def test_norms_are_of_the_whole_model(deltas, information):
    elsewhere = {"sums": torch.zeros(3).double(), "squares": torch.tensor([1e6, 0.0, 0.0]).double()}
    bases = bases_of("fisher", deltas, aids_of(*information), others=[elsewhere])
    # Most of the first expert's information is in the other tensor: it says little here.
    assert float(bases[0].norm()) < 0.01 * float(deltas[0].norm())


def test_parameters_without_information_get_the_mean(deltas, information):
    for F in information:
        F[0] = 0.0
    merged = sum(bases_of("fisher", deltas, aids_of(*information)))
    torch.testing.assert_close(merged[0], sum(deltas)[0] / 3)
    for D, t in zip(
        bases_of("fisher", deltas, aids_of(*(torch.zeros(SHAPE) for _ in deltas))),
        deltas,
        strict=True,
    ):
        torch.testing.assert_close(D, t / 3)


def test_an_expert_without_any_information_has_no_say_where_others_have(deltas, information):
    information[2] = torch.zeros(SHAPE)
    bases = bases_of("fisher", deltas, aids_of(*information), floor=0.0)
    assert not bases[2].any()
    assert all(torch.isfinite(D).all() for D in bases)


@pytest.mark.parametrize("name", ["fisher", "fisher_exact"])
def test_tensors_without_information_are_averaged(name, deltas):
    for aids in ((), ({}, {}, {})):
        for D, t in zip(bases_of(name, deltas, aids), deltas, strict=True):
            assert torch.equal(D, t / 3)


def test_only_the_ratios_of_exact_coefficients_count_and_zeros_are_harmless(deltas, information):
    def merge(c: Sequence[float]) -> Tensor:
        bases = bases_of("fisher_exact", deltas, aids_of(*information), weights=c)
        assert all(torch.isfinite(D).all() for D in bases)
        return sum(w * D for w, D in zip(c, bases, strict=True))

    torch.testing.assert_close(merge((0.1, 0.2, 0.3)), merge((1.0, 2.0, 3.0)))
    torch.testing.assert_close(merge((0.4, 0.0, 0.0)), deltas[0])
    torch.testing.assert_close(merge((-0.4, 0.0, 0.0)), -deltas[0])
    assert not merge((0.0, 0.0, 0.0)).any()


@pytest.mark.parametrize("name", ["fisher", "fisher_exact", "ota"])
def test_pieces_of_any_length_give_the_same_bits(name):
    shape = (3, BLOCK)
    deltas = [normal(shape, k) for k in range(2)]
    aids = [
        {"fisher": values, "second_moment": values}
        for values in (normal(shape, 40 + k, 1e-3).square() for k in range(2))
    ]
    short, long = (bases_of(name, deltas, aids, length=n * BLOCK) for n in (1, 3))
    assert all(torch.equal(D, E) for D, E in zip(short, long, strict=True))


@pytest.mark.parametrize("n_experts", [1, 40])
def test_equal_experts_come_back_whatever_their_information(n_experts):
    t = normal(SHAPE, 1)
    information = [normal(SHAPE, 60 + k).square() for k in range(n_experts)]
    torch.testing.assert_close(sum(bases_of("fisher", [t] * n_experts, aids_of(*information))), t)


def test_the_family_says_what_it_needs():
    needs = {"regmean": "gram", "fisher": "fisher", "ota": "second_moment"}
    for name in (*needs, "regmean_exact", "fisher_exact"):
        assert OPERATORS[name].needs == (needs[name.removesuffix("_exact")],)
