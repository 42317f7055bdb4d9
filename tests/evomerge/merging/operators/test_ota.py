"""Averaging by Adam's second moments against its formula, and where no gradient came."""

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.merging.operators import Statistics
from tests.support.least_squares import array, bases_of, normal

SHAPE = (6, 5)


def aids_of(*moments: Tensor) -> tuple[Statistics, ...]:
    return tuple({"second_moment": v} for v in moments)


@pytest.fixture
def deltas() -> list[Tensor]:
    return [normal(SHAPE, k, 0.01) for k in range(3)]


@pytest.fixture
def moments() -> list[Tensor]:
    return [normal(SHAPE, 30 + k, 1e-4).square() for k in range(3)]


@pytest.mark.parametrize("p", [0.25, 0.5, 1.0, 2.0])
def test_weights_are_powers_of_the_second_moments(deltas, moments, p):
    merged = sum(array(D) for D in bases_of("ota", deltas, aids_of(*moments), p=p))
    f = [array(v) ** p for v in moments]
    least = 1e-6 * np.mean(f)
    f = [np.maximum(x, least) for x in f]
    expected = sum(x * array(t) for x, t in zip(f, deltas, strict=True)) / sum(f)
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-9)


def test_a_power_of_zero_is_the_mean(deltas, moments):
    for D, t in zip(bases_of("ota", deltas, aids_of(*moments), p=0.0), deltas, strict=True):
        torch.testing.assert_close(D, t / 3)


def test_one_and_four_times_the_root_mean_square_gradient_weigh_one_to_four():
    deltas = [torch.ones(3), torch.zeros(3)]
    aids = aids_of(torch.full((3,), 16e-8), torch.full((3,), 1e-8))
    torch.testing.assert_close(bases_of("ota", deltas, aids)[0], torch.full((3,), 0.8))


def test_parameters_that_no_gradient_reached_get_the_mean(deltas, moments):
    for v in moments:
        v[1] = 0.0
    torch.testing.assert_close(
        sum(bases_of("ota", deltas, aids_of(*moments)))[1], sum(deltas)[1] / 3
    )
    for D, t in zip(
        bases_of("ota", deltas, aids_of(*(torch.zeros(SHAPE) for _ in deltas))), deltas, strict=True
    ):
        torch.testing.assert_close(D, t / 3)


def test_tensors_without_moments_are_averaged(deltas):
    for aids in ((), ({}, {}, {}), ({"second_moment": torch.ones(SHAPE)}, {}, {})):
        for D, t in zip(bases_of("ota", deltas, aids), deltas, strict=True):
            assert torch.equal(D, t / 3)
