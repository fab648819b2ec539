"""The integer noise of the ring: exact tables, the discrete Gaussian's shape, the same bits."""

import hashlib
import math
from collections.abc import Iterator
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy import stats

from privacy.errors import PrivacyError
from privacy.ring_noise import SIGMA_MAX, TOTAL_BITS, RingNoise, Table, rebuilt, ring_noise
from privacy.stream import Stream

COUNT = 2_000_000
SIGMAS = pytest.mark.parametrize("sigma", [100, 1_000, 300_000, SIGMA_MAX])

Integers = np.ndarray[tuple[int], np.dtype[np.int64]]


@pytest.fixture(scope="module")
def draws() -> dict[int, Integers]:
    return {
        sigma: ring_noise(sigma**2).sample(COUNT, Stream(b"r" * 32)) for sigma in (100, 300_000)
    }


def probabilities(table: Table) -> list[int]:
    """Twice the weights of x = -(N-1) .. N-1, as whole numbers of 2^-128."""
    half = rebuilt(table)
    return [*half[:0:-1], 2 * half[0], *half[1:]]


@SIGMAS
def test_a_table_adds_up_to_its_weights_exactly(sigma: int) -> None:
    table = ring_noise(sigma**2).table
    height = 1 << (TOTAL_BITS - table.index_bits)
    assert len(table.keep) == 1 << table.index_bits
    assert all(0 <= keep < height for keep in table.keep)
    assert sum(rebuilt(table)) == 1 << TOTAL_BITS


@pytest.mark.parametrize("sigma", [100, 1_000])
def test_weights_are_those_of_the_discrete_gaussian(sigma: int) -> None:
    noise = ring_noise(sigma**2)
    with localcontext() as context:
        context.prec = 60
        rate = Decimal(1 + noise.multiple**2) / (2 * sigma**2)
        density = [(2 if x else 1) * (-rate * x * x).exp() for x in range(len(noise.table.keep))]
        whole = sum(density)
        for x, weight in enumerate(rebuilt(noise.table)):
            exact = density[x] / whole * 2**TOTAL_BITS
            # rounded down; what that leaves, less than one a value, is given to 0
            assert -1 <= weight - exact <= (len(density) if x == 0 else 0)


def test_the_sum_of_both_parts_is_the_discrete_gaussian_to_its_stated_bound() -> None:
    noise = ring_noise(100**2)
    part = probabilities(noise.table)
    reach = len(part) // 2
    whole: dict[int, int] = {}
    for place, weight in enumerate(part):
        for other, second in enumerate(part):
            value = place - reach + noise.multiple * (other - reach)
            whole[value] = whole.get(value, 0) + weight * second
    with localcontext() as context:
        context.prec = 80
        density = {v: (Decimal(-v * v) / (2 * 100**2)).exp() for v in whole}
        total = sum(density.values())
        unit = Decimal(2) ** (2 * TOTAL_BITS + 2)
        distance = sum(abs(whole[v] / unit - density[v] / total) for v in whole) / 2
    assert 0 < distance < noise.total_variation < 2.0**-112


@SIGMAS
def test_moments_to_the_fourth_are_the_discrete_gaussians(sigma: int) -> None:
    scaled = ring_noise(sigma**2).sample(COUNT, Stream(b"m" * 32)) / sigma
    # at these sigmas the moments are a normal's to 1e-80; m_k has variance (m_2k - m_k^2) / n
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(scaled**power) - moment) < 5 * math.sqrt(variance / COUNT), power


def test_every_integer_comes_as_often_as_it_should(draws: dict[int, Integers]) -> None:
    reach = 450  # beyond it fewer than five are expected of an integer
    found = np.clip(draws[100], -reach - 1, reach + 1)
    values = np.arange(-5_000, 5_001)
    density = np.exp(-(values**2) / (2 * 100**2))
    expected = COUNT * density / density.sum()
    tail = expected[values > reach].sum()
    inside = expected[np.abs(values) <= reach]
    counts = np.bincount(found + reach + 1, minlength=2 * reach + 3)
    assert stats.chisquare(counts, [tail, *inside, tail]).pvalue > 1e-6


def test_wide_noise_has_the_shape_of_a_normal(draws: dict[int, Integers]) -> None:
    assert stats.kstest(draws[300_000] / 300_000, "norm").pvalue > 1e-6
    # a lattice left in the values (m of every m would do) shows in their remainders
    multiple = ring_noise(300_000**2).multiple
    counts = np.bincount(draws[300_000] % multiple, minlength=multiple)
    assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("sigma", [100, 300_000])
def test_tails_hold_as_many_values_as_they_should(draws: dict[int, Integers], sigma: int) -> None:
    for limit in (2.0, 3.0, 4.0, 4.5):
        least = round(limit * sigma) + 1  # P(X > limit sigma), by the midpoint of integers
        expected = COUNT * stats.norm.sf((least - 0.5) / sigma)
        for side in (draws[sigma], -draws[sigma]):
            assert abs(np.sum(side >= least) - expected) < 5 * math.sqrt(expected)


def test_neighbouring_values_are_independent(draws: dict[int, Integers]) -> None:
    for values in (draws[300_000], np.abs(draws[300_000])):
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / math.sqrt(COUNT)


@pytest.mark.parametrize(
    ("sigma", "first", "digest"),
    [
        (
            100,
            [-30, 34, 75, 25, -13, 120],
            "1b77f159df9f80019b42aed9010fd98bd9af9adcbf87b56c499979a71ad18db8",
        ),
        (
            300_000,
            [-152967, 42812, 202236, 81972, -68942, 404920],
            "641acbb48b790e303e6f2eecf08545476b51cf4de693561e9f48a54d8619d492",
        ),
        (
            SIGMA_MAX,
            [-2186641, 627964, 2856719, 1187033, -1005681, 5717788],
            "db945060700aab9bd7e60fb6f4b840c2e3221c9d2f47e5896045e98234828558",
        ),
    ],
)
def test_one_key_gives_the_known_noise(sigma: int, first: list[int], digest: str) -> None:
    noise = ring_noise(sigma**2).sample(20_000, Stream(bytes(range(32))))
    assert noise[:6].tolist() == first
    assert hashlib.sha256(noise.astype("<i8").tobytes()).hexdigest() == digest


class Words(Stream):
    """A stream of given words."""

    def __init__(self, *words: int) -> None:
        super().__init__(bytes(32))
        self.given = iter(words)

    def words64(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.array([next(self.given) for _ in range(count)], dtype=np.uint64)


def naive(noise: RingNoise, words: Iterator[int]) -> int:
    """One sample, drawn as the alias method is told in books: on the whole 127-bit comparison."""
    bits = noise.table.index_bits
    parts = []
    for word in [next(words), next(words)]:
        column, sign = word >> (64 - bits), word & 1
        first = (word & (2 ** (64 - bits) - 1)) >> 1
        keep = noise.table.keep[column]
        low = next(words) if first == keep >> 64 else 0
        value = column if (first << 64 | low) < keep else noise.table.alias[column]
        parts.append(-value if sign else value)
    return parts[0] + noise.multiple * parts[1]


@SIGMAS
def test_samples_are_those_of_the_naive_alias_method(sigma: int) -> None:
    noise = ring_noise(sigma**2)
    words = Stream(b"w" * 32).words64(2_000).tolist()
    own = noise.sample(1_000, Words(*words))
    given = iter(words)
    assert own.tolist() == [naive(noise, given) for _ in range(1_000)]


def test_a_tie_is_decided_by_another_word() -> None:
    noise = ring_noise(100**2)
    bits = noise.table.index_bits
    column = next(c for c, keep in enumerate(noise.table.keep) if keep >> 64 and c > 100)
    keep, alias = noise.table.keep[column], noise.table.alias[column]
    assert alias != column
    assert noise.table.alias[0] == 0
    for sign in (0, 1):
        tie = column << (64 - bits) | keep >> 64 << 1 | sign
        for rest, value in ((keep % 2**64 - 1, column), (keep % 2**64, alias)):
            (got,) = noise.sample(1, Words(tie, 1 << 20, rest))  # column 0 is 0 alone
            assert got == (-value if sign else value)


def test_a_share_below_a_hundred_steps_or_above_the_tables_is_refused() -> None:
    for variance in (0, 100**2 - 1, SIGMA_MAX**2 + 1, -1):
        with pytest.raises(PrivacyError, match="expected a share of the noise of 100 to"):
            ring_noise(variance)
    assert ring_noise(100**2).sample(0, Stream(bytes(32))).shape == (0,)
    with pytest.raises(ValueError, match="count"):
        ring_noise(100**2).sample(-1, Stream(bytes(32)))
