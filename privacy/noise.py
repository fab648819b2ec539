"""Standard normal noise in float64 from a keyed stream, for the local private mode.

It is not the integer noise of the ring, and it does not scale anything: the private step does.
"""

import numpy as np
import numpy.typing as npt
import torch

from privacy.stream import Stream

FloatArray = npt.NDArray[np.float64]


def gaussian(count: int, stream: Stream) -> FloatArray:
    """Return ``count`` independent standard normals, each from 64 bits of ``stream``.

    One bit gives the sign, 63 bits the tail probability u = (k + 1/2) 2^-64 in (0, 1/2], whose
    inverse normal is the magnitude. The largest magnitude is 9.155 (u = 2^-65), which a true normal
    passes with probability 5e-20; the distribution is symmetric bit for bit.

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
    words = stream.words64(count)
    tail = ((words >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-64
    # torch's inverse normal is scipy's (Cephes) and half its time; it is <= 0 on (0, 1/2].
    magnitude: FloatArray = torch.special.ndtri(torch.from_numpy(tail)).numpy()
    return np.copysign(magnitude, (words & np.uint64(1)).astype(np.float64) - 0.5)
