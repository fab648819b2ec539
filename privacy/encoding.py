"""Real vectors as integers of a ring of 16 or 32 bits and back, for modes none and local.

It adds no noise and no mask, and it clips nothing to a norm. Source: section 4 of the protocol.
"""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from privacy.errors import PrivacyError, StudyError
from privacy.stream import Stream

RingBits = Literal[16, 32]
BOUND_MIN = 2**7  # below it rounding noise would be felt: such a study is refused
_CHUNK = 1 << 14  # values at once, so that every pass stays in a 1 MiB cache
_ONE = float(2**32)  # fixed point: 32 bits below the unit

Reals = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Integers = npt.NDArray[np.int16] | npt.NDArray[np.int32] | npt.NDArray[np.int64]
Ring = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def ring_bound(ring_bits: RingBits, count_sites: int) -> int:
    """Return the largest integer a site may send so that ``count_sites`` of them never wrap.

    Raises:
        StudyError: it is below 2^7.
    """
    bound: int = (2 ** (ring_bits - 1) - 1) // count_sites
    if bound < BOUND_MIN:
        raise StudyError(
            f"expected a bound of at least {BOUND_MIN} steps a site, got {bound} from "
            f"{count_sites} sites in a ring of {ring_bits} bits; the study is refused",
            hint="use ring_bits = 32",
        )
    return bound


@dataclass(frozen=True)
class Encoding:
    """How coordinates become integers: clamp to +-value_bound, scale, round stochastically.

    Args:
        ring_bits: 16 or 32.
        count_sites: n of the plan; sums of that many vectors do not wrap.
        value_bound: largest coordinate kept, in model units; > 0.
    """

    ring_bits: RingBits
    count_sites: int
    value_bound: float

    def __post_init__(self) -> None:
        if self.ring_bits not in (16, 32):
            raise StudyError(f"expected ring_bits 16 or 32, got {self.ring_bits}; nothing was sent")
        if self.count_sites < 1:
            raise ValueError(f"expected at least one site, got {self.count_sites}")
        if not 0 < self.value_bound < float("inf"):
            raise StudyError(f"expected value_bound > 0, got {self.value_bound}; nothing was sent")
        ring_bound(self.ring_bits, self.count_sites)

    @property
    def bound(self) -> int:
        """Largest integer of one site's coordinate."""
        return ring_bound(self.ring_bits, self.count_sites)

    @property
    def scale(self) -> float:
        """Steps of the ring per model unit."""
        return self.bound / self.value_bound

    def quantise(self, vector: Reals, stream: Stream) -> tuple[npt.NDArray[np.int32], int]:
        """Return ``vector`` as integers of this encoding, and how many coordinates were clamped.

        Args:
            vector: (P,) in model units; float32 or float64.
            stream: 32 bits a coordinate are read from it, in order.

        Returns:
            (P,) integers in [-bound, bound], the expectation of each over the stream being
            clamp(vector) * scale (to 2^-32 of a step), and the number of clamped coordinates.

        Raises:
            PrivacyError: ``vector`` holds NaN or inf.
            ValueError: ``vector`` is not one-dimensional.

        Edge cases: an empty vector gives an empty one; a coordinate that is a whole number of
        steps is never moved.
        """
        if vector.ndim != 1:
            raise ValueError(f"expected a vector of shape (P,), got {vector.shape}")
        whole = np.empty(vector.size, dtype=np.int32)
        clamped = 0
        for start in range(0, vector.size, _CHUNK):
            part = vector[start : start + _CHUNK]
            rounded, outside = self._rounded(part, stream.words32(part.size))
            whole[start : start + part.size] = rounded
            clamped += outside
        return whole, clamped

    def _rounded(
        self, part: Reals, coins: npt.NDArray[np.uint32]
    ) -> tuple[npt.NDArray[np.int32], int]:
        """Return floor(clamp(v) * scale + u), u = coin / 2^32, in 64-bit fixed point; and clamped.

        Each pass over a part stays in the cache.
        """
        largest = max(float(part.max()), -float(part.min()))
        if not largest < float("inf"):  # NaN passes through max and fails every comparison
            raise PrivacyError(
                "expected finite coordinates, update holds NaN or inf; nothing was sent"
            )
        scale, bound = self.scale * _ONE, self.bound * _ONE
        steps = part.astype(np.float64)
        steps *= scale
        if not largest * scale <= bound:  # rounding is monotone: else no coordinate is above
            np.clip(steps, -bound, bound, out=steps)
        # below 2^62 in size; integers add exactly, where adding u in float64 would move a
        # coordinate that sits on the bound one step past it
        fixed = steps.astype("<i8")
        fixed += coins.astype("<i8")  # cast whole: faster than as it is added
        outside = 0
        if largest > self.value_bound:
            outside = int(np.count_nonzero(np.abs(part) > self.value_bound))
        high = fixed.view("<i4")[1::2]  # the upper halves: an arithmetic shift by 32
        return high, outside

    def dequantise(self, total: Integers) -> npt.NDArray[np.float64]:
        """Return the sum of the sites' vectors in model units.

        Args:
            total: (P,) sum of quantised vectors.

        Returns:
            (P,) float64; divide by the sum of the weights for a mean.
        """
        return np.divide(total, self.scale, dtype=np.float64)


def to_ring(values: Integers, ring_bits: RingBits) -> Ring:
    """Return (P,) ``values`` modulo 2^ring_bits; of the ring's own width, a view without a copy."""
    signed = f"<i{ring_bits // 8}"
    narrow = values.astype(signed, copy=False)  # integer casts keep the low bits: modulo 2^bits
    return cast(Ring, narrow.view(f"<u{ring_bits // 8}"))


def from_ring(words: Ring) -> npt.NDArray[np.int16] | npt.NDArray[np.int32]:
    """Return (P,) the signed integers of the ring's words, as a view."""
    return cast(
        "npt.NDArray[np.int16] | npt.NDArray[np.int32]", words.view(f"<i{words.dtype.itemsize}")
    )
