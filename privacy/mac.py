"""The MAC of the sum: tau = sum of v_k rho_k modulo 2^61 - 1, under coefficients only sites know.

It masks nothing: tau is masked in its field with the values (masking). Source: section 5 of the
protocol; a universal hash of the Carter-Wegman kind, linear so that the sites' taus add up.

Guarantee: another vector has the same tau with a probability of at most 2^-60 over rho, provided
that some entry differs modulo p61 = 2^61 - 1. It is not 2^-61, because the 61 bits of p61 itself
count as 0 and 0 is drawn twice as often. The proviso holds by itself for values, which have at
most 32 bits; a lane has 64, and one that is moved by a multiple of p61 has the same tau. So lanes
of a sum lie within +-SUM_LANE_BOUND, where no two numbers differ by p61, and each site's within
the n-th part of it, so that honest sums always do.
"""

import numpy as np
import numpy.typing as npt

from privacy.stream import Stream

PRIME = 2**61 - 1
SUM_LANE_BOUND = PRIME // 2  # 2^60 - 1: +-2^60 would be too wide, as -2^60 + p61 = 2^60 - 1
_BLOCK = 1 << 11  # products whose sum float64 knows to within 2^63: see `_products`
_CHUNK = 8 * _BLOCK  # values at once: they stay in a 1 MiB cache
_LOW_61 = np.uint64(PRIME)
_LOW_32 = np.int64(2**32 - 1)

Integers = npt.NDArray[np.int16] | npt.NDArray[np.int32] | npt.NDArray[np.int64]


def tau(key: bytes, values: Integers, lanes: npt.NDArray[np.int64]) -> int:
    """Return the MAC of one vector, or of a sum of vectors.

    Args:
        key: mac key of this attempt (32 bytes): HKDF(kappa, ctx, "fsa1 mac").
        values: (d,) signed integers of 16 or 32 bits (64 bits are taken too).
        lanes: (L,) signed 64-bit integers; their coefficients follow those of the values.

    Returns:
        An integer in [0, 2^61 - 1).
    """
    stream = Stream(key)
    return (_weighted(stream, values) + _weighted(stream, lanes)) % PRIME


def lane_bound(count_sites: int) -> int:
    """Return the largest size of one site's lane: sums of ``count_sites`` then stay in range."""
    return SUM_LANE_BOUND // count_sites


def lanes_within(lanes: npt.NDArray[np.int64], bound: int) -> bool:
    """Say whether every lane is in [-bound, bound]; (L,) signed 64-bit integers, also none."""
    return not lanes.size or bool(-bound <= lanes.min() and lanes.max() <= bound)


def coefficients(key: bytes, count: int) -> list[int]:
    """Return rho_0 .. rho_(count-1), as `tau` uses them; p itself counts as 0."""
    words = Stream(key).words64(count) & _LOW_61
    return [word % PRIME for word in words.tolist()]


def _weighted(stream: Stream, numbers: Integers) -> int:
    """Return the sum of numbers_k rho_k as an exact Python integer, reading rho from the stream."""
    total = 0
    words = np.empty(min(_CHUNK, numbers.size), dtype="<u8")
    for start in range(0, numbers.size, _CHUNK):
        part = numbers[start : start + _CHUNK]
        drawn = stream.fill(words[: part.size])
        rho = np.bitwise_and(drawn, _LOW_61, out=drawn).view("<i8")
        if part.dtype.itemsize < 8:
            total += _products(part, rho)
        else:  # a signed upper half and an unsigned lower one
            total += _products(part & _LOW_32, rho) + (_products(part >> 32, rho) << 32)
    return total


def _products(numbers: Integers, rho: npt.NDArray[np.int64]) -> int:
    """Return the exact sum of numbers_k rho_k; |numbers| <= 2^32, rho < 2^61, as many as wanted.

    Wrapping integers give the sum of each block modulo 2^64, float64 gives it to within 2^63:
    together they say what it is. A block has 2^11 products of at most 2^93, each rounded twice and
    summed in any order: off by at most gamma_n 2^104 < 2^62.01 with n = 2^11 + 1 roundings (Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, section 3.1).
    """
    blocks = np.arange(0, numbers.size, _BLOCK)
    wrapped = np.add.reduceat(numbers * rho, blocks).tolist()
    floats = rho.astype(np.float64)
    floats *= numbers.astype(np.float64)  # cast whole: faster than as it is multiplied
    total = 0
    for low, near in zip(wrapped, np.add.reduceat(floats, blocks).tolist(), strict=True):
        total += (guess := int(near)) + _signed_64(low - guess)
    return total


def _signed_64(number: int) -> int:
    """Return what is congruent to ``number`` modulo 2^64 and in [-2^63, 2^63)."""
    return (number + 2**63) % 2**64 - 2**63
