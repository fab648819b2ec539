"""Noise under cells: how much there is, what it is called, and that it is drawn afresh."""

import math
import os

import numpy as np
import pytest

from privacy.cell_noise import SHARE_MIN, CellNoise, fit_cells
from privacy.errors import PrivacyError
from privacy.ring_noise import SIGMA_MIN
from privacy.stream import Stream


@pytest.mark.parametrize("multiplier", [0.01, 0.5, 1.0, 3.7, 40.0, 1e4])
@pytest.mark.parametrize("sensitivity", [1.0, math.sqrt(2), math.sqrt(3)])
@pytest.mark.parametrize("carriers", [1, 3, 40])
def test_the_promised_noise_is_reached_and_hardly_passed(
    multiplier: float, sensitivity: float, carriers: int
) -> None:
    noise = fit_cells(multiplier, sensitivity, 20, 60, carriers)
    assert multiplier <= noise.noise_multiplier <= multiplier * 1.0001


@pytest.mark.parametrize("multiplier", [0.05, 1.0, 700.0])
def test_a_share_is_wide_enough_for_shares_to_add_up(multiplier: float) -> None:
    noise = fit_cells(multiplier, 1.0, 20, 60, 20)
    assert math.sqrt(noise.variance) >= SHARE_MIN * (1 - 1e-9) > SIGMA_MIN


def test_the_scale_is_the_least_that_does() -> None:
    noise = fit_cells(3.0, 1.0, 20, 5, 1)
    assert noise.step * 3.0 / 2 < SHARE_MIN <= noise.step * 3.0


def test_noise_without_a_sampler_is_refused() -> None:
    with pytest.raises(PrivacyError, match="share of the noise"):
        fit_cells(1e8, 1.0, 20, 5, 1)


@pytest.mark.parametrize("wrong", [(0.0, 1.0, 1, 5, 1), (1.0, 1.0, 0, 5, 1), (1.0, 1.0, 1, 5, 6)])
def test_a_callers_mistake_is_a_value_error(wrong: tuple[float, float, int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        fit_cells(*wrong)


def test_the_noise_that_is_added_has_the_deviation_that_is_told() -> None:
    noise = fit_cells(2.5, 1.0, 20_000, 5, 2)
    zeros = np.zeros(noise.cells, dtype=np.int64)
    shares = [noise.encode(zeros, Stream(os.urandom(32))) for _ in range(2)]
    total = sum(shares) / noise.step
    # The deviation of 20,000 samples is within 2.5 % of its own with a chance of 1e-6.
    assert np.std(total) == pytest.approx(2.5, rel=0.025)
    assert noise.deviation(2) == pytest.approx(2.5, rel=1e-3)
    assert abs(np.mean(total)) < 0.1


def test_two_evaluations_share_no_noise() -> None:
    noise = fit_cells(1.0, 1.0, 64, 5, 1)
    zeros = np.zeros(64, dtype=np.int64)
    one, two = (noise.encode(zeros, Stream(os.urandom(32))) for _ in range(2))
    assert np.count_nonzero(one == two) <= 5


def test_cells_of_another_length_are_refused() -> None:
    noise = fit_cells(1.0, 1.0, 8, 5, 1)
    with pytest.raises(ValueError, match=r"expected \(8,\) int64 cells"):
        noise.encode(np.zeros(9, dtype=np.int64), Stream(bytes(32)))


def test_what_is_left_of_delta_is_told() -> None:
    noise: CellNoise = fit_cells(1.0, 1.0, 100, 100, 1)
    assert 0 < noise.slack < 1e-15
