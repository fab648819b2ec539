"""The normal noise of the local mode: its moments, its shape and how far its tails reach."""

import math

import numpy as np
import pytest
from scipy import stats

from privacy.noise import gaussian
from privacy.stream import Stream

COUNT = 2_000_000


@pytest.fixture(scope="module")
def draws() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return gaussian(COUNT, Stream(b"n" * 32))


def test_moments_are_those_of_a_normal(draws: np.ndarray) -> None:
    # the k-th moment of n normals has variance (m_2k - m_k^2) / n; five deviations
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(np.mean(draws**power) - moment) < 5 * math.sqrt(variance / COUNT), power


def test_the_whole_shape_is_a_normals(draws: np.ndarray) -> None:
    assert stats.kstest(draws, "norm").pvalue > 1e-6


def test_tails_hold_as_many_values_as_a_normals(draws: np.ndarray) -> None:
    for limit in (2.0, 3.0, 4.0, 4.5):
        expected = COUNT * stats.norm.sf(limit)
        for side in (draws, -draws):
            assert abs(np.sum(side > limit) - expected) < 5 * math.sqrt(expected)


def test_neighbouring_values_are_independent(draws: np.ndarray) -> None:
    for values in (draws, np.abs(draws)):
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / math.sqrt(COUNT)


class Words(Stream):
    """A stream of given words."""

    def __init__(self, *words: int) -> None:
        super().__init__(bytes(32))
        self.given = np.array(words, dtype=np.uint64)

    def words64(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return self.given[:count]


def test_the_extreme_words_reach_nine_deviations_on_either_side() -> None:
    # words: the smallest tail with either sign, then the largest (u = 1/2) with either sign
    low, high, middle, other = gaussian(4, Words(0, 1, 2**64 - 2, 2**64 - 1))
    assert high == -low
    assert high == pytest.approx(stats.norm.isf(2.0**-65), rel=1e-12)
    assert high > 9.1
    assert middle == other == 0


def test_a_word_is_its_tail_probability() -> None:
    for exponent in (60, 40, 20, 1):
        (value,) = gaussian(1, Words(2 ** (64 - exponent) | 1))
        tail = 2.0 ** -(exponent + 1) + 2.0**-65
        assert value == pytest.approx(stats.norm.isf(tail), rel=1e-12)


def test_one_stream_gives_one_noise_however_it_is_read() -> None:
    whole = gaussian(10, Stream(b"k" * 32))
    stream = Stream(b"k" * 32)
    assert np.array_equal(whole, np.concatenate([gaussian(3, stream), gaussian(7, stream)]))


def test_a_negative_count_is_refused_and_none_is_none() -> None:
    assert gaussian(0, Stream(bytes(32))).shape == (0,)
    with pytest.raises(ValueError, match="count"):
        gaussian(-1, Stream(bytes(32)))
