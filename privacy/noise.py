"""Standard normal noise in float64 from a keyed stream, for the local private mode.

It is not the integer noise of the ring, and it does not scale anything: the private step does.
"""

import numpy as np
import numpy.typing as npt
import torch

from privacy.stream import Stream

FloatArray = npt.NDArray[np.float64]

CHUNK = 1 << 14  # most values at once, so that every pass but the first stays in cache
_HALF = np.uint64(1 << 63)
_BULK = 1.0 - 2.0**-16  # beyond it, float64 tells probabilities near 1 too badly


def gaussian(count: int, stream: Stream) -> FloatArray:
    """Return ``count`` independent standard normals, each from 64 bits of ``stream``.

    A word is a signed odd integer w (its lowest bit is set), and the value is the inverse normal of
    1/2 + w 2^-64. The largest magnitude is 9.08 (a tail of 2^-64), which a true normal passes with
    probability 1e-19; the distribution is symmetric bit for bit.

    Args:
        count: how many values; >= 0.
        stream: read 8 bytes a value; fresh for every release.

    Returns:
        (count,) values of mean 0 and standard deviation 1.

    Raises:
        ValueError: ``count`` is negative.

    Limit: these are floating-point numbers. Their lowest bits depend on the value they are added
    to, and an adversary who sees the exact float64 sum of value and noise may learn more than
    (epsilon, delta) allows. What leaves a site is rounded afterwards, which narrows the channel and
    does not close it; integer noise in the ring does.
    Source: inverse transform; the limit: Mironov 2012, doi:10.1145/2382196.2382264.
    """
    if count < 0:
        raise ValueError(f"expected count >= 0, got {count}")
    values, noise = np.empty(count), Gaussian(stream, min(count, CHUNK))
    for start in range(0, count, CHUNK):
        part = values[start : start + CHUNK]
        part[:] = noise.draw(part.size)
    return values


class Gaussian:
    """The normals of ``gaussian``, drawn in pieces into memory that is used again."""

    def __init__(self, stream: Stream, largest: int = CHUNK) -> None:
        """Draw up to ``largest`` values at once from ``stream``, fresh for every release."""
        self._stream = stream
        self._words: npt.NDArray[np.uint64] = np.empty(largest, dtype=np.uint64)
        self._values: FloatArray = np.empty(largest)

    def draw(self, count: int, deviation: float = 1.0) -> FloatArray:
        """Return the next ``count`` values, as many as fit, times ``deviation``.

        The array is a view that holds until the next call.
        """
        words, values = self._words[:count], self._values[:count]
        if count == 0:
            return values
        self._stream.fill(words)
        words |= np.uint64(1)
        odd = words.view(np.int64)
        np.multiply(odd, 2.0**-63, out=values)  # to 2^-53
        signed = torch.from_numpy(values)
        far = values.max() > _BULK or values.min() < -_BULK
        tail = np.flatnonzero(np.abs(values) > _BULK) if far else None
        torch.erfinv(signed, out=signed).mul_(deviation * 2.0**0.5)  # a sixth of ndtri's time
        if tail is not None:  # one value in 65,536: from the probability beyond it, in full
            beyond = (_HALF - np.abs(odd[tail]).astype(np.uint64)).astype(np.float64) * 2.0**-64
            magnitudes = torch.special.ndtri(torch.from_numpy(beyond)).numpy() * -deviation
            values[tail] = np.copysign(magnitudes, odd[tail])
        return values
