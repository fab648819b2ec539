"""Draw the random subset of records or patients that one private step reads.

It does not choose the rate: the study fixes it in public, never from a count of records.
"""

import numpy as np
import numpy.typing as npt

from privacy.stream import Stream

IntArray = npt.NDArray[np.int64]


def poisson_sample(units: int, rate: float, stream: Stream) -> IntArray:
    """Keep each of ``units`` records or patients independently with probability ``rate``.

    Args:
        units: how many records (or patients) the site holds; >= 0.
        rate: sampling rate of the study, 0 < rate <= 1.
        stream: source of 8 bytes a unit; nothing is read when ``rate`` is 1.

    Returns:
        (k,) ascending positions in [0, units); k is random and may be 0 or ``units``. It is as
        secret as the records: never report it, pad to it or divide by it.

    Raises:
        ValueError: ``units`` is negative, or ``rate`` is not in (0, 1].

    Guarantee: the probability is rate rounded down to a multiple of 2^-64, so never above the rate
    that is accounted for, and a unit's fate does not depend on how many others there are before it.
    Source: Abadi et al. 2016, arXiv:1607.00133, section 3.1; Mironov et al. 2019, arXiv:1908.10530.
    """
    if units < 0:
        raise ValueError(f"expected units >= 0, got {units}")
    if not 0 < rate <= 1:
        raise ValueError(f"expected 0 < sampling rate <= 1, got {rate}")
    if rate == 1:
        return np.arange(units, dtype=np.int64)
    threshold = np.uint64(
        int(rate * 2.0**64)
    )  # a product with a power of two is exact; int() floors
    return np.flatnonzero(stream.words64(units) < threshold).astype(np.int64, copy=False)
