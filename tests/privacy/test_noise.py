"""The normal noise of the local mode: its moments, its shape and how far its tails reach."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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

    def fill(self, words: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
        words[:] = self.given[: words.size]


def test_the_extreme_words_reach_nine_deviations_on_either_side() -> None:
    # the largest and the smallest signed integer, then the two next to zero
    high, low, middle, other = gaussian(4, Words(2**63 - 1, 2**63, 0, 2**64 - 1))
    assert high == -low
    assert high == pytest.approx(stats.norm.isf(2.0**-64), rel=1e-12)
    assert high > 9.0
    assert middle == -other
    assert 0 < middle < 1e-18


def test_a_word_is_its_quantile() -> None:
    for exponent in (62, 55, 48, 47, 46, 40, 20, 1):  # on both sides of where the tails begin
        high, low = gaussian(2, Words(2**63 - 2**exponent, 2**63 + 2**exponent - 1))
        tail = (2.0**exponent - 1) * 2.0**-64
        assert high == -low == pytest.approx(stats.norm.isf(tail), rel=2e-12)


@settings(max_examples=200, deadline=None)
@given(word=st.integers(0, 2**64 - 1))
def test_a_word_and_its_complement_are_opposite(word: int) -> None:
    one, other = gaussian(2, Words(word, 2**64 - 1 - word))
    assert one == -other


def test_one_stream_gives_one_noise_however_it_is_read() -> None:
    whole = gaussian(10, Stream(b"k" * 32))
    stream = Stream(b"k" * 32)
    assert np.array_equal(whole, np.concatenate([gaussian(3, stream), gaussian(7, stream)]))


def test_a_negative_count_is_refused_and_none_is_none() -> None:
    assert gaussian(0, Stream(bytes(32))).shape == (0,)
    with pytest.raises(ValueError, match="count"):
        gaussian(-1, Stream(bytes(32)))
