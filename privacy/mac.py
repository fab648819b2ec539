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
_BLOCK = 1 << 14  # values at once: the limbs of a block stay in a 2 MiB cache
_LIMB = 16  # bits; a sum of 2^14 products of two limbs is below 2^46, exact in float64
_LOW_61 = np.uint64(PRIME)

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
    limbs = numbers.dtype.itemsize // 2  # of 16 bits; the highest one is signed
    numbers = numbers if numbers.flags.c_contiguous else numbers.copy()
    block = min(_BLOCK, numbers.size)
    left = np.empty((limbs, block))
    right = np.empty((block, 4))
    rho = np.empty(block, dtype="<u8")
    table = np.zeros((limbs, 4), dtype=np.int64)
    for start in range(0, numbers.size, _BLOCK):
        part = numbers[start : start + block]
        size = part.size
        for limb in range(limbs):
            left[limb, :size] = part.view("<u2" if limb < limbs - 1 else "<i2")[limb::limbs]
        np.bitwise_and(stream.words64(size), _LOW_61, out=rho[:size])
        right[:size] = rho[:size].view("<u2").reshape(size, 4)
        # every entry is a sum of <= 2^14 products below 2^32: exact in float64
        table += (left[:, :size] @ right[:size]).astype(np.int64)  # (limbs, s) x (s, 4)
    return sum(
        int(table[row, column]) << (_LIMB * (row + column))
        for row in range(limbs)
        for column in range(4)
    )
