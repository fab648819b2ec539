"""Sums whose noise is in the ring: the scale, each site's share of the noise, what the sum costs.

It clips nothing and keeps no ledger; the samples come from privacy.ring_noise, the masks from
privacy.masking. For privacy mode distributed, section 7 of the protocol.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privacy.encoding import Integers, RingBits, from_ring, to_ring
from privacy.errors import StudyError
from privacy.ring_noise import SIGMA_MAX, SIGMA_MIN, TOTAL_VARIATION_MAX, ring_noise
from privacy.stream import Stream

GRID_BITS = 16  # a site's sum is exact in fixed point, this many bits below one step of the ring
WEIGHT_BITS = 16  # a site's public weight is a multiple of 2^-16
EXPONENT_MAX = 20  # scales are powers of two; beyond 2^20 steps a clipping norm nothing is gained
BETA = 1e-18  # chance that rounding moves one record further than the sensitivity allows
MARGIN = 1.001  # charged for gradients in float32, whose last bits may hang on their neighbours
WRAP_MAX = 1e-9  # chance that any coordinate of any sum of the study leaves the ring
_STRETCH_MAX = 1.05  # rounding may raise sensitivity, and so the noise, by no more than this

Words = npt.NDArray[np.int32]
Fixed = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shares:
    """Who adds noise: of ``sites`` at least ``answers`` are summed, ``colluders`` may add none."""

    sites: int
    answers: int
    colluders: int

    def __post_init__(self) -> None:
        if not 0 <= self.colluders < self.answers <= self.sites:
            raise ValueError(
                f"expected 0 <= colluders < answers <= sites, got {self.colluders}, "
                f"{self.answers} and {self.sites}"
            )

    @property
    def carriers(self) -> int:
        """Sites whose shares make up the noise that is promised: t_n - n_c."""
        return self.answers - self.colluders


@dataclass(frozen=True)
class Sums:
    """What all the sums of one study are made of; public.

    Attributes:
        values: d, coordinates of a sum.
        count: T, how many sums there may be, spare attempts included.
        clipping_norm: C, largest L2 norm of one unit's gradient, in model units.
        noise_multiplier: least sigma' to be reached, in units of the sensitivity.
        sampling_rate: q.
        records_max: most units a site draws from.
    """

    values: int
    count: int
    clipping_norm: float
    noise_multiplier: float
    sampling_rate: float
    records_max: int

    def records(self, sites: int) -> int:
        """Return N, more units than a sum of that many sites holds but with chance e^-40."""
        most = sites * self.records_max
        if self.sampling_rate == 1:
            return most
        expected = most * self.sampling_rate
        return min(most, math.ceil(expected + 9 * math.sqrt(expected) + 30))  # Bernstein


@dataclass(frozen=True)
class Ring:
    """How one study's sums travel: fixed point, rounded once, noised, modulo 2^ring_bits.

    Formal guarantee: with clipped units Poisson-sampled at rate q, the sum of ``answers`` sites'
    vectors of which ``colluders`` added no noise is the Poisson-sampled Gaussian mechanism with
    noise multiplier ``noise_multiplier``, up to a total variation of ``slack``, under adding or
    removing one unit of one site, against everybody who knows no other share of the noise.

    Why: one unit moves the rounded sum by a stochastic rounding of its own integers, so by an
    integer vector of norm at most ``sensitivity`` but with chance ``BETA``. Shares of discrete
    Gaussian noise add up to discrete Gaussian noise (Kairouz, Liu, Steinke 2021, arXiv:2102.06387)
    of variance mu = carriers x variance, which differs from round(N(0, mu - 1/12)) by
    1 / (345600 mu^4) in chi-square a coordinate; and the rounded Gaussian, shifted by an integer,
    is post-processing of the Gaussian mechanism.

    Attributes:
        ring_bits: 16 or 32.
        exponent: the scale is 2^exponent steps for one clipping norm.
        variance: of one site's share, in squared steps.
    """

    sums: Sums
    shares: Shares
    ring_bits: RingBits
    exponent: int
    variance: int

    @property
    def scale(self) -> float:
        """Steps of the ring per model unit."""
        return float(1 << self.exponent) / self.sums.clipping_norm

    @property
    def grid(self) -> float:
        """Units of the fixed point per model unit: what a site's exact sum is counted in."""
        return self.scale * float(1 << GRID_BITS)

    @property
    def sensitivity(self) -> float:
        """D2, in steps: how far one unit moves the rounded sum."""
        return sensitivity(float(1 << self.exponent), self.sums.values)

    @property
    def noise_multiplier(self) -> float:
        """The sigma' that the accountant is told: of the Gaussian that this noise is as good as."""
        return self.multiplier(self.shares.carriers)

    def multiplier(self, carriers: int) -> float:
        """Return sigma' for whoever knows the noise of all sites but ``carriers`` of them."""
        return math.sqrt(carriers * self.variance - 1 / 12) / self.sensitivity

    @property
    def slack(self) -> float:
        """Total variation between one sum and the Gaussian mechanism: its part of delta."""
        squared = 1 / (345_600 * float(self.shares.carriers * self.variance) ** 4)
        shape = math.sqrt(math.expm1(self.sums.values * squared)) / 2
        sampler = self.shares.sites * self.sums.values * TOTAL_VARIATION_MAX
        return self.sums.sampling_rate * BETA + shape + sampler

    def encode(
        self, total: Fixed, coins: Stream, noise: Stream, weight: int = 1 << WEIGHT_BITS
    ) -> Words:
        """Return a site's vector: its exact sum, weighted, rounded once, with its share of noise.

        Args:
            total: (d,) the sum of clipped gradients in units of the grid.
            coins: of the rounding; fresh for every attempt.
            noise: fresh for every attempt: two under one key share their noise.
            weight: of the site, in 2^-16; at most 1.

        Returns:
            (d,) signed integers of the ring.

        Raises:
            ValueError: the shape or the weight is wrong.

        Edge cases: a sum beyond what all sites' records could give is clamped, before the noise,
        which moves neighbouring sums no further apart; nothing is clamped afterwards.
        """
        if total.shape != (self.sums.values,) or total.dtype != np.int64:
            raise ValueError(f"expected ({self.sums.values},) int64, got {total.shape}")
        if not 0 <= weight <= 1 << WEIGHT_BITS:
            raise ValueError(f"expected a weight of 0 to 2^{WEIGHT_BITS}, got {weight}")
        limit = self.sums.records(self.shares.sites) << (self.exponent + GRID_BITS)
        fixed = np.clip(total, -limit, limit) * weight  # below 2^63: the room of 32 bits is checked
        fixed += coins.words32(len(fixed))  # (d,) floor(v + u), u uniform: stochastic rounding
        fixed >>= GRID_BITS + WEIGHT_BITS
        fixed += ring_noise(self.variance).sample(len(fixed), noise)
        return from_ring(to_ring(fixed, self.ring_bits)).astype(np.int32)

    def dequantise(self, total: Integers) -> npt.NDArray[np.float64]:
        """Return (d,) an opened sum in model units: of clipped gradients, with all noise."""
        return np.divide(total, self.scale, dtype=np.float64)


def sensitivity(steps: float, values: int) -> float:
    """Return D2: how far stochastic rounding lets one unit move a sum, with chance 1 - beta.

    Args:
        steps: S, the clipping norm in steps of the ring; the margin is added here.
        values: d.

    Source: Hoeffding's inequality for the squares of rounded coordinates, each within a range of
    2 |x_i| + 1: D2^2 = S^2 + d/4 + sqrt(2 ln(1/beta)) (S + sqrt(d)/2); always S + sqrt(d) at most.
    """
    norm, root = MARGIN * steps, math.sqrt(values)
    likely = norm**2 + values / 4 + math.sqrt(-2 * math.log(BETA)) * (norm + root / 2)
    return min(math.sqrt(likely), norm + root)


@lru_cache(maxsize=64)
def fit_ring(sums: Sums, shares: Shares, ring_bits: RingBits) -> Ring:
    """Return the ring with the largest scale that has room for the values and the noise.

    Raises:
        StudyError: there is none, or a site's share of the noise would be too small to be
            accounted for.
    """
    for exponent in range(EXPONENT_MAX, 0, -1):
        steps = float(1 << exponent)
        reach = sensitivity(steps, sums.values)
        if reach > _STRETCH_MAX * steps:
            break
        variance = math.ceil(
            ((sums.noise_multiplier * reach) ** 2 + 1 / 12) * (1 + 1e-12) / shares.carriers
        )
        if variance > SIGMA_MAX**2 or not _has_room(sums, shares, ring_bits, exponent, variance):
            continue
        if variance < SIGMA_MIN**2:
            raise StudyError(
                f"expected a share of the noise of {SIGMA_MIN} ring steps or more at each site, "
                f"got {math.sqrt(variance):.3g}; the study is refused",
                hint="use ring_bits = 32, a smaller records_max or more noise",
            )
        return Ring(sums, shares, ring_bits, exponent, variance)
    raise StudyError(
        f"expected room for {sums.records(shares.sites)} records and the noise in a ring of "
        f"{ring_bits} bits, got too little; the study is refused",
        hint="lower privacy.records_max or sampling_rate, or use ring_bits = 32",
    )


def _has_room(
    sums: Sums, shares: Shares, ring_bits: RingBits, exponent: int, variance: int
) -> bool:
    """Say whether the sum of all sites stays in the ring but with chance ``WRAP_MAX``."""
    values = (sums.records(shares.sites) << exponent) + shares.sites  # each site rounds up by 1
    # A discrete Gaussian is sub-Gaussian with its own parameter: Canonne, Kamath, Steinke 2020,
    # arXiv:2004.00010; the union is over all coordinates of all sums, both signs.
    deviations = math.sqrt(2 * math.log(2 * sums.values * sums.count / WRAP_MAX))
    noise = deviations * math.sqrt(shares.sites * variance)
    return values + noise <= (1 << (ring_bits - 1)) - 1
