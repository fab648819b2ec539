"""Noise under the sum of an evaluation's cells: integers of known sensitivity, noised once.

It counts nothing and reads nothing back (shared_models.noised_cells does), and it keeps no ledger.
Section 7 of the protocol.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.ring_noise import TOTAL_VARIATION_MAX, ring_noise
from privacy.stream import Stream

SHARE_MIN = 1 << 12  # steps, of a share's deviation: 100 would do for the sum, this for its slack
EXPONENT_MAX = 20

Lanes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CellNoise:
    """How the cells of one study's evaluations are noised; public.

    Formal guarantee: the sum of sites' cells, of which ``carriers`` added their share of the noise,
    is the Gaussian mechanism with noise multiplier ``noise_multiplier``, up to a total variation of
    ``slack``, under adding or removing one held-out unit of one site, against everybody who knows
    no other share. In mode local ``carriers`` is 1: each site's own cells are as private.

    Why: one unit moves the cells by an integer vector of norm at most ``sensitivity`` x
    2^``exponent``; the rest is as in privacy.ring, without sampling and without rounding.

    Attributes:
        cells: L, lanes of one evaluation.
        sites: n, of which so many shares are in a sum at most.
        carriers: sites whose shares make up the noise that is promised.
        sensitivity: D2, the largest L2 norm of one unit's cells, in counts.
        exponent: a count is 2^exponent steps, so that every share's deviation is SHARE_MIN or more.
        variance: of one site's share, in squared steps.
    """

    cells: int
    sites: int
    carriers: int
    sensitivity: float
    exponent: int
    variance: int

    @property
    def step(self) -> int:
        """Steps of one count."""
        return 1 << self.exponent

    @property
    def noise_multiplier(self) -> float:
        """The sigma' that the accountant is told, in units of the sensitivity."""
        return self.multiplier(self.carriers)

    def multiplier(self, carriers: int) -> float:
        """Return sigma' for whoever knows the noise of all sites but ``carriers`` of them."""
        return math.sqrt(carriers * self.variance - 1 / 12) / (self.sensitivity * self.step)

    @property
    def slack(self) -> float:
        """Total variation between one sum and the Gaussian mechanism: its part of delta."""
        squared = 1 / (345_600 * float(self.carriers * self.variance) ** 4)
        shape = math.sqrt(math.expm1(self.cells * squared)) / 2
        return shape + self.sites * self.cells * TOTAL_VARIATION_MAX

    def deviation(self, shares: int) -> float:
        """Return the standard deviation of the noise on one summed cell, in counts."""
        return math.sqrt(shares * self.variance) / self.step

    def encode(self, cells: Lanes, noise: Stream) -> Lanes:
        """Return one site's cells, in steps, with its share of the noise.

        Args:
            cells: (L,) in steps: each unit's have a norm of at most sensitivity x step.
            noise: fresh for every attempt: two under one key share their noise.

        Raises:
            ValueError: the shape is another.
        """
        if cells.shape != (self.cells,) or cells.dtype != np.int64:
            raise ValueError(f"expected ({self.cells},) int64 cells, got {cells.shape}")
        return cells + ring_noise(self.variance).sample(self.cells, noise)


def fit_cells(
    noise_multiplier: float, sensitivity: float, cells: int, sites: int, carriers: int
) -> CellNoise:
    """Return the noise that reaches ``noise_multiplier`` in a sum with ``carriers`` shares.

    Args:
        noise_multiplier: least sigma' wanted, in units of the sensitivity; > 0.
        sensitivity: D2 in counts; > 0.
        cells: L.
        sites: n.
        carriers: t_n - n_c in mode distributed, 1 in mode local.

    Raises:
        ValueError: an argument is out of range.
        PrivacyError: the noise is so large that there is no sampler for it.
    """
    if not (noise_multiplier > 0 and sensitivity > 0 and cells > 0 and 1 <= carriers <= sites):
        raise ValueError("expected noise, sensitivity and cells > 0 and 1 <= carriers <= sites")
    share = noise_multiplier * sensitivity / math.sqrt(carriers)  # in counts
    exponent = min(EXPONENT_MAX, max(0, math.ceil(math.log2(SHARE_MIN / share))))
    wanted = (noise_multiplier * sensitivity * (1 << exponent)) ** 2 + 1 / 12
    variance = math.ceil(wanted * (1 + 1e-12) / carriers)
    ring_noise(variance)  # refuses what it cannot sample
    return CellNoise(cells, sites, carriers, sensitivity, exponent, variance)
