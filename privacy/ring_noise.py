"""Discrete Gaussian noise for the ring: exact integers from a keyed stream, without floats.

It does not decide how much noise there is (privacy.ring does) and it adds nothing to anything.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privacy.errors import PrivacyError
from privacy.stream import Stream

SIGMA_MIN = 100  # a share below it: the sum of shares would not be a discrete Gaussian any more
SIGMA_MAX = 1 << 22  # of one share: above it the tables leave the cache, and the scale goes down
TOTAL_VARIATION_MAX = 2.0**-109  # of one sample from the discrete Gaussian, at any sigma
TOTAL_BITS = 127  # weights are integers that add up to 2^127: index, comparison and one more word
_CUT = 13  # deviations that the table reaches: 2^-126 is left out on both sides
_FRACTION = 256  # bits of the fixed point in which the weights are computed
_DIGITS = 100  # of the one exponential: 2^-256 needs 78
_CHUNK = 1 << 13  # samples at once, so that every pass but the first stays in cache

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """An alias table over |x| of one discrete Gaussian: N = 2^index_bits columns of equal height.

    Column i keeps ``keep[i]`` of its 2^(127 - index_bits) units for |x| = i; the rest is
    ``alias[i]``'s. Source: Walker 1977, doi:10.1145/355744.355749; Vose 1991,
    doi:10.1109/32.92917.
    """

    index_bits: int
    keep: tuple[int, ...]
    alias: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RingNoise:
    """Sampler of the discrete Gaussian on the integers with a given variance parameter.

    X = x1 + m x2, where x1 and x2 are discrete Gaussians of sigma0^2 = sigma^2 / (1 + m^2), drawn
    from one table. The pairs (x1, x2) that give one X lie on a line of the plane lattice, in steps
    of sqrt(1 + m^2), and a Gaussian that is wide beside its steps adds up to the same on every
    line: each probability is a discrete Gaussian's within a factor of 1 +- 5 exp(-2 pi^2 sigma^2 /
    (1 + m^2)^2), 2^-135 since sigma >= 2.2 (1 + m^2). With the tail beyond 13 sigma0 and the
    rounded weights, the total variation of a sample is at most 2^(index_bits - 125).

    Source: convolution of discrete Gaussians, Peikert 2010, doi:10.1007/978-3-642-14623-7_5;
    Micciancio and Walter 2017, eprint 2017/259.

    Limit: table look-ups depend on what is drawn, so the time they take is not hidden from whoever
    shares the processor's cache.
    """

    variance: int
    multiple: int
    table: Table
    _edges: npt.NDArray[np.uint64]  # (N,) first word at which column i is the alias'
    _rest: npt.NDArray[np.uint64]  # (N,) the 64 bits of keep below the first word's
    _outcomes: npt.NDArray[np.int64]  # (2 N,) alias and own value of each column

    @property
    def total_variation(self) -> float:
        """At most how far one sample's distribution is from the discrete Gaussian's."""
        return 2.0 ** (self.table.index_bits - 125)

    def sample(self, count: int, stream: Stream) -> IntArray:
        """Return ``count`` independent samples.

        Args:
            count: how many; >= 0.
            stream: fresh for every release; 16 bytes a sample are read, on a tie (2^-46) 8 more.

        Returns:
            (count,) integers, the same for the same key on every machine.

        Raises:
            ValueError: ``count`` is negative.
        """
        if count < 0:
            raise ValueError(f"expected count >= 0, got {count}")
        samples = np.empty(count, dtype=np.int64)
        for start in range(0, count, _CHUNK):
            part = samples[start : start + _CHUNK]
            pairs = self._signed(stream.words64(2 * part.size), stream)
            np.multiply(pairs[1::2], self.multiple, out=part)
            part += pairs[0::2]
        return samples

    def _signed(self, words: npt.NDArray[np.uint64], stream: Stream) -> IntArray:
        """Return one value a word. A word is index, comparison, sign, from the highest bit on."""
        column = (words >> np.uint64(64 - self.table.index_bits)).view(np.int64)
        above = words - np.take(self._edges, column, mode="clip")  # modulo 2^64
        below = above >> np.uint64(63)  # 1 where the word is below its column's edge
        if above.min(initial=2) < 2:  # the comparison is equal, whatever the sign
            for place in np.flatnonzero(above < 2):
                below[place] = stream.words64(1)[0] < self._rest[column[place]]
        column <<= 1
        column += below.view(np.int64)
        value = np.take(self._outcomes, column, mode="clip")
        sign = (words & np.uint64(1)).view(np.int64)
        np.negative(sign, out=sign)
        value ^= sign  # -x is ~x + 1
        value -= sign
        return value


@lru_cache(maxsize=8)
def ring_noise(variance: int) -> RingNoise:
    """Return the sampler of integers x with probabilities proportional to exp(-x^2 / 2 variance).

    Args:
        variance: sigma^2, a whole number of squared ring steps.

    Raises:
        PrivacyError: sigma is below 100 or above 2^22; there is no such sampler.
    """
    if not SIGMA_MIN**2 <= variance <= SIGMA_MAX**2:
        raise PrivacyError(
            f"expected a share of the noise of {SIGMA_MIN} to {SIGMA_MAX} ring steps, got "
            f"{math.sqrt(max(variance, 0)):.4g}; nothing was sent",
            hint="privacy.noise_answers, privacy.colluders and records_max change the share",
        )
    # The largest m with sigma >= 2.2 (1 + m^2), in integers.
    multiple = math.isqrt(math.isqrt(25 * variance) // 11 - 1)
    weights = _weights(variance, 1 + multiple**2)
    table = _alias_table(weights)
    bits = table.index_bits
    edges, rest, outcomes = [], [], []
    for column, (keep, alias) in enumerate(zip(table.keep, table.alias, strict=True)):
        edges.append(column << (64 - bits) | keep >> 64 << 1)
        rest.append(keep & (2**64 - 1))
        outcomes += [alias, column]
    return RingNoise(
        variance,
        multiple,
        table,
        np.array(edges, dtype=np.uint64),
        np.array(rest, dtype=np.uint64),
        np.array(outcomes, dtype=np.int64),
    )


def _weights(numerator: int, denominator: int) -> list[int]:
    """Return the weights of |x| = 0, 1, ..., which add up to 2^127, for a rational variance.

    They are rounded down, and what is left goes to 0: less than one unit of 2^-127 a value.
    """
    size = 1 << (_CUT * math.isqrt(numerator // denominator) + _CUT).bit_length()
    one = 1 << _FRACTION
    with localcontext() as context:  # decimal's exp is correctly rounded: the same digits anywhere
        context.prec = _DIGITS
        factor = int((Decimal(-denominator) / Decimal(2 * numerator)).exp() * one)
    # exp(-c (x+1)^2) = exp(-c x^2) exp(-c (2x+1)), and the second factor falls by exp(-2c) a step
    density, ratio, square = one, factor, factor * factor >> _FRACTION
    densities = []
    for _ in range(size):
        densities.append(density)
        density = density * ratio >> _FRACTION
        ratio = ratio * square >> _FRACTION
    densities[1:] = [2 * value for value in densities[1:]]  # both signs
    whole = sum(densities)
    weights = [(value << TOTAL_BITS) // whole for value in densities]
    weights[0] += (1 << TOTAL_BITS) - sum(weights)
    return weights


def _alias_table(weights: list[int]) -> Table:
    """Return Vose's table of ``weights``, a power of two many; checked by adding it up again."""
    bits = len(weights).bit_length() - 1
    height = 1 << (TOTAL_BITS - bits)
    left = list(weights)
    keep, alias = [0] * len(left), list(range(len(left)))  # a full column is its own alias
    small = [place for place, weight in enumerate(left) if weight < height]
    large = [place for place, weight in enumerate(left) if weight > height]
    while small and large:
        place, giver = small.pop(), large.pop()
        keep[place], alias[place] = left[place], giver
        left[giver] -= height - left[place]
        if left[giver] < height:
            small.append(giver)
        elif left[giver] > height:
            large.append(giver)
    table = Table(bits, tuple(keep), tuple(alias))
    if rebuilt(table) != weights:
        raise RuntimeError("expected an alias table that adds up to its weights, got another")
    return table


def rebuilt(table: Table) -> list[int]:
    """Return the weight of each |x| that a table stands for, in units of 2^-127."""
    height = 1 << (TOTAL_BITS - table.index_bits)
    weights = [0] * len(table.keep)
    for column, (keep, alias) in enumerate(zip(table.keep, table.alias, strict=True)):
        weights[column] += keep
        weights[alias] += height - keep
    return weights
