"""A stream of random bytes from one 256-bit key: AES-256-CTR, for masks, noise and sampling.

It does not choose keys: a key comes from the operating system, from HKDF, or (in a simulation) from
a seed, and is used for one stream only.
"""

import os
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
_BLOCK_BYTES = 16
_ZEROS = memoryview(bytes(1 << 17))

W = TypeVar("W", np.uint8, np.uint16, np.uint32, np.uint64)


class Stream:
    """The keystream of AES-256-CTR under ``key``, read in order.

    The same key always gives the same bytes, however they are cut into reads.
    Source: NIST SP 800-38A, section 6.5 (counter mode), counter block starting at zero.
    """

    def __init__(self, key: bytes, start: int = 0) -> None:
        """Start at byte ``start`` of the stream of ``key`` (32 bytes; for this stream only)."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
        blocks, skipped = divmod(start, _BLOCK_BYTES)
        # A counter that starts at zero is safe because no key is ever used for a second stream.
        counter = modes.CTR(blocks.to_bytes(_BLOCK_BYTES, "big"))
        self._cipher = Cipher(algorithms.AES256(key), counter).encryptor()
        if skipped:
            self._cipher.update(_ZEROS[:skipped])

    def fill(self, words: npt.NDArray[W]) -> npt.NDArray[W]:
        """Overwrite ``words`` (contiguous) with the next bytes of the stream and return it.

        Words are little-endian. The lock of the interpreter is released meanwhile.
        """
        out = words.view(np.uint8).data
        while len(out) > len(_ZEROS):
            self._cipher.update_into(_ZEROS, out[: len(_ZEROS)])
            out = out[len(_ZEROS) :]
        self._cipher.update_into(_ZEROS[: len(out)], out)
        return words

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        return self.fill(np.empty(count, dtype=np.uint8)).tobytes()

    def words16(self, count: int) -> npt.NDArray[np.uint16]:
        """Return (count,) little-endian 16-bit words."""
        return self.fill(np.empty(count, dtype="<u2"))

    def words32(self, count: int) -> npt.NDArray[np.uint32]:
        """Return (count,) little-endian 32-bit words."""
        return self.fill(np.empty(count, dtype="<u4"))

    def words64(self, count: int) -> npt.NDArray[np.uint64]:
        """Return (count,) little-endian 64-bit words."""
        return self.fill(np.empty(count, dtype="<u8"))

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return (count,) multiples of 2^-53 in [0, 1), each from 53 bits of the stream."""
        return (self.words64(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def fresh_key() -> bytes:
    """Return 32 bytes from the operating system's generator."""
    return os.urandom(KEY_BYTES)
