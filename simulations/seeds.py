"""Keys from a seed, so that a simulation can be repeated; nothing else may use them."""

import hashlib
import hmac


def seeded_key(seed: int, *labels: str | int) -> bytes:
    """Return the 32 bytes that ``seed`` gives for ``labels``; other labels, independent bytes.

    Source: HMAC-SHA256 as a pseudorandom function, RFC 2104.
    """
    text = "\0".join(str(label) for label in labels)
    return hmac.digest(seed.to_bytes(8, "little"), text.encode(), hashlib.sha256)


def seeded_integer(seed: int, *labels: str | int) -> int:
    """Return the 63-bit integer that ``seed`` gives for ``labels``."""
    return int.from_bytes(seeded_key(seed, *labels)[:8], "little") >> 1
