"""Shamir's secret sharing of 32-byte secrets over the prime field of p = 2^256 - 189.

It does not check shares: commitments do that, where the message is read.
Source: Shamir 1979, "How to share a secret"; section 3 of the protocol.
"""

from collections.abc import Mapping, Sequence

from privacy.keys import KEY_BYTES, Entropy

PRIME = 2**256 - 189


def draw(entropy: Entropy) -> bytes:
    """Return a uniform secret below p, 32 bytes little-endian (redrawn with chance 2^-248)."""
    while True:
        secret = entropy(KEY_BYTES)
        if int.from_bytes(secret, "little") < PRIME:
            return secret


def split(
    secret: bytes, threshold: int, indices: Sequence[int], entropy: Entropy
) -> dict[int, bytes]:
    """Share ``secret`` so that any ``threshold`` of the shares rebuild it and fewer say nothing.

    Args:
        secret: 32 bytes, below p.
        threshold: t, at least 1.
        indices: the sites; the share of site i is the polynomial at x = i + 1.
        entropy: source of the t - 1 coefficients, in order of rising power.

    Returns:
        Site index to share, 32 bytes each.

    Raises:
        ValueError: the threshold cannot be met, or the secret is not below p.
    """
    if not 1 <= threshold <= len(indices):
        raise ValueError(f"expected a threshold in 1..{len(indices)}, got {threshold}")
    constant = int.from_bytes(secret, "little")
    if len(secret) != KEY_BYTES or constant >= PRIME:
        raise ValueError("expected a secret of 32 bytes below p")
    rising = [int.from_bytes(draw(entropy), "little") for _ in range(threshold - 1)]
    falling = [*reversed(rising), constant]
    shares = {}
    for index in indices:
        x, y = index + 1, 0
        for coefficient in falling:
            y = (
                y * x + coefficient
            )  # x <= 100 adds 7 bits a step: one reduction at the end is cheaper
        shares[index] = (y % PRIME).to_bytes(KEY_BYTES, "little")
    return shares


def interpolation(indices: Sequence[int]) -> dict[int, int]:
    """Return the Lagrange coefficient at 0 of each site's share, for `combine`.

    Raises:
        ValueError: an index is repeated.
    """
    if len(set(indices)) != len(indices):
        raise ValueError("expected distinct indices")
    points = [index + 1 for index in indices]
    coefficients = {}
    for x in points:
        above = below = 1
        for other in points:
            if other != x:
                above = above * other
                below = below * (other - x)
        coefficients[x - 1] = above % PRIME * pow(below, -1, PRIME) % PRIME
    return coefficients


def combine(coefficients: Mapping[int, int], shares: Mapping[int, bytes]) -> bytes:
    """Rebuild the secret from the shares of exactly the sites of ``coefficients``.

    Wrong shares give a wrong secret, silently: the caller compares it with its commitment.
    """
    total = sum(
        coefficient * int.from_bytes(shares[index], "little")
        for index, coefficient in coefficients.items()
    )
    return (total % PRIME).to_bytes(KEY_BYTES, "little")
