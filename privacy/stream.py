"""A stream of random bytes from one 256-bit key: AES-256-CTR, for masks, noise and sampling.

It does not choose keys: a key comes from the operating system, from HKDF, or (in a simulation) from
a seed, and is used for one stream only.
"""

import os
import sys

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
_ZEROS = bytes(1 << 17)


class Stream:
    """The keystream of AES-256-CTR under ``key``, read in order.

    The same key always gives the same bytes, however they are cut into reads.
    Source: NIST SP 800-38A, section 6.5 (counter mode), counter block starting at zero.
    """

    def __init__(self, key: bytes) -> None:
        """Start at counter 0 of ``key`` (32 bytes; used for this stream only)."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
        # CTR with a zero counter is safe because no key is ever used for a second stream.
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        zeros = _ZEROS[:count] if count <= len(_ZEROS) else bytes(count)
        return self._cipher.update(zeros)

    def words16(self, count: int) -> npt.NDArray[np.uint16]:
        """Return (count,) little-endian 16-bit words."""
        return np.frombuffer(self.read(2 * count), dtype="<u2")

    def words32(self, count: int) -> npt.NDArray[np.uint32]:
        """Return (count,) little-endian 32-bit words."""
        return np.frombuffer(self.read(4 * count), dtype="<u4")

    def words64(self, count: int) -> npt.NDArray[np.uint64]:
        """Return (count,) little-endian 64-bit words."""
        return np.frombuffer(self.read(8 * count), dtype="<u8")

    def fill(self, words: npt.NDArray[np.uint64]) -> None:
        """Overwrite contiguous (n,) ``words`` by the next n little-endian 64-bit words."""
        zeros = memoryview(_ZEROS)[: words.nbytes]
        self._cipher.update_into(
            zeros if len(zeros) == words.nbytes else bytes(words.nbytes), words.view(np.uint8).data
        )
        if sys.byteorder == "big":
            words.byteswap(inplace=True)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return (count,) multiples of 2^-53 in [0, 1), each from 53 bits of the stream."""
        return (self.words64(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def fresh_key() -> bytes:
    """Return 32 bytes from the operating system's generator."""
    return os.urandom(KEY_BYTES)
