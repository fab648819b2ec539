"""Poisson sampling: independent fates at the study's rate, whatever the number of records."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.sampling import poisson_sample
from privacy.stream import Stream


def stream(number: int) -> Stream:
    return Stream(number.to_bytes(32, "big"))


@given(st.integers(0, 300), st.floats(1e-9, 1.0), st.integers(0, 1000))
def test_positions_are_ascending_distinct_and_in_range(units: int, rate: float, seed: int) -> None:
    chosen = poisson_sample(units, rate, stream(seed))
    assert chosen.dtype == np.int64
    assert np.all(np.diff(chosen) > 0)
    assert not chosen.size or (chosen[0] >= 0 and chosen[-1] < units)


def test_rate_one_takes_every_unit() -> None:
    assert np.array_equal(poisson_sample(5, 1.0, stream(0)), np.arange(5))


def test_batches_may_be_empty() -> None:
    sizes = [len(poisson_sample(20, 0.05, stream(i))) for i in range(200)]
    assert sizes.count(0) > 30  # .95^20 = 36 % of them
    assert len(poisson_sample(0, 0.5, stream(0))) == 0


def test_sizes_are_binomial() -> None:
    """A shuffled batch of fixed size, or batches from an epoch's permutation, would be too even."""
    sizes = np.array([len(poisson_sample(200, 0.1, stream(i))) for i in range(4000)])
    edges = [0, 12, 15, 18, 20, 22, 25, 28, 201]
    seen, _ = np.histogram(sizes, bins=edges)
    below = stats.binom.cdf(np.array(edges) - 1, 200, 0.1)
    assert stats.chisquare(seen, np.diff(below) * len(sizes)).pvalue > 1e-6


def test_fates_of_units_are_independent() -> None:
    """Without replacement within an epoch, or in blocks, pairs would be correlated."""
    steps = np.zeros((4000, 10))
    for i in range(len(steps)):
        steps[i, poisson_sample(10, 0.3, stream(i))] = 1
    assert np.all(np.abs(steps.mean(0) - 0.3) < 5 * math.sqrt(0.21 / 4000))
    correlations = np.corrcoef(steps.T)[np.triu_indices(10, 1)]
    assert np.all(np.abs(correlations) < 5 / math.sqrt(4000))  # each has deviation 1/sqrt(steps)
    after = np.corrcoef(steps[:-1].ravel(), steps[1:].ravel())[0, 1]
    assert abs(after) < 5 / math.sqrt(40_000)


@given(st.integers(1, 200), st.integers(0, 50), st.integers(0, 100))
def test_a_further_record_changes_nobody_elses_fate(units: int, more: int, seed: int) -> None:
    few = poisson_sample(units, 0.4, stream(seed))
    many = poisson_sample(units + more, 0.4, stream(seed))
    assert np.array_equal(few, many[many < units])


def test_the_stream_decides_and_nothing_else() -> None:
    one, again, other = (poisson_sample(99, 0.5, stream(number)) for number in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_chance_is_never_above_the_rate() -> None:
    """A word equal to the threshold stays out: words below it are floor(rate 2^64) of 2^64."""

    class Words(Stream):
        def words64(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
            return np.array([2**62 - 1, 2**62, 0, 2**64 - 1], dtype=np.uint64)

    assert poisson_sample(4, 0.25, Words(bytes(32))).tolist() == [0, 2]


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_outside_zero_to_one_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sampling rate"):
        poisson_sample(3, rate, stream(0))


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="units"):
        poisson_sample(-1, 0.5, stream(0))
