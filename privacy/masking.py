"""Masks that cancel in the sum: keystreams added to a vector in a ring, and their removal.

It derives no keys and does not decide whose masks are removed. Source: section 3 of the protocol;
Bonawitz et al., CCS 2017, eprint 2017/281, section 4 (double masking).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from privacy.encoding import Integers, Ring, RingBits, to_ring
from privacy.mac import PRIME

MAC_BYTES = 8  # of tau on the wire
STREAM_MAC_BYTES = 16  # of a stream: 128 bits modulo 2^61 - 1 are uniform to 2^-67
LANE_BYTES = 8
CHUNK_BYTES = 1 << 17  # of values; with one stream's worth beside it, it stays in a 1 MiB cache
_ZEROS = bytes(CHUNK_BYTES)


@dataclass(frozen=True)
class Shape:
    """How much one vector of a round holds: ``values`` ring words and ``lanes`` 64-bit words."""

    values: int
    lanes: int
    ring_bits: RingBits

    @property
    def payload_bytes(self) -> int:
        """Length of one masked vector on the wire: tau, lanes, values."""
        return MAC_BYTES + LANE_BYTES * self.lanes + self.ring_bits // 8 * self.values


@dataclass
class Payload:
    """One vector, or the running sum of several, as it lies on the wire; masks change it in place.

    ``words`` is (payload_bytes,) bytes: tau u64, then lanes u64, then values u16 or u32. The
    properties are views of it.
    """

    shape: Shape
    words: npt.NDArray[np.uint8]

    @property
    def tau(self) -> int:
        """The MAC, modulo 2^61 - 1."""
        return int.from_bytes(self.words[:MAC_BYTES].tobytes(), "little")

    @tau.setter
    def tau(self, value: int) -> None:
        word = (value % PRIME).to_bytes(MAC_BYTES, "little")
        self.words[:MAC_BYTES] = np.frombuffer(word, dtype=np.uint8)

    @property
    def lanes(self) -> npt.NDArray[np.uint64]:
        """(L,) lanes modulo 2^64."""
        return self.words[MAC_BYTES : MAC_BYTES + LANE_BYTES * self.shape.lanes].view("<u8")

    @property
    def values(self) -> Ring:
        """(d,) values modulo 2^ring_bits."""
        tail = self.words[MAC_BYTES + LANE_BYTES * self.shape.lanes :]
        return tail.view("<u2") if self.shape.ring_bits == 16 else tail.view("<u4")

    def add(self, other: "Payload") -> None:
        """Add another vector of the same shape, in the ring and in the field of tau."""
        if other.shape != self.shape:
            raise ValueError(f"expected shape {self.shape}, got {other.shape}")
        self.tau = self.tau + other.tau
        np.add(self.lanes, other.lanes, out=self.lanes)
        np.add(self.values, other.values, out=self.values)


def zero_payload(shape: Shape) -> Payload:
    """Return the empty sum."""
    return Payload(shape, np.zeros(shape.payload_bytes, dtype=np.uint8))


def read_payload(shape: Shape, data: bytes | memoryview) -> Payload:
    """Return a view of the bytes of one vector; it cannot be changed in place.

    Raises:
        ValueError: the length is not that of ``shape``.
    """
    if len(data) != shape.payload_bytes:
        raise ValueError(f"expected {shape.payload_bytes} bytes, got {len(data)}")
    return Payload(shape, np.frombuffer(data, dtype=np.uint8))


def masked_payload(
    shape: Shape,
    values: Integers,
    lanes: npt.NDArray[np.int64],
    tau: int,
    plus: Sequence[bytes],
    minus: Sequence[bytes],
    chunk_bytes: int = CHUNK_BYTES,
) -> Payload:
    """Return one site's vector under its masks, ready for the wire.

    Args:
        shape: what the plan says of this kind of round.
        values: (d,) signed integers; reduced modulo 2^ring_bits.
        lanes: (L,) signed 64-bit integers.
        tau: MAC of values and lanes.
        plus: keys of the streams to add: the site's own, and of pairs whose lower index it is.
        minus: keys of the streams to subtract.
        chunk_bytes: bytes of values worked on at once; the result does not depend on it.

    Raises:
        ValueError: values or lanes have another shape.
    """
    if values.shape != (shape.values,) or lanes.shape != (shape.lanes,):
        raise ValueError(
            f"expected ({shape.values},) values and ({shape.lanes},) lanes, "
            f"got {values.shape} and {lanes.shape}"
        )
    payload = Payload(shape, np.empty(shape.payload_bytes, dtype=np.uint8))
    payload.tau = tau
    payload.lanes[:] = lanes.view("<u8")
    _add_streams(payload, plus, minus, chunk_bytes, values)
    return payload


def add_streams(
    payload: Payload,
    plus: Sequence[bytes],
    minus: Sequence[bytes],
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Add and subtract the streams of these keys, in place: how the server removes masks."""
    _add_streams(payload, plus, minus, chunk_bytes, None)


def _add_streams(
    payload: Payload,
    plus: Sequence[bytes],
    minus: Sequence[bytes],
    chunk_bytes: int,
    source: Integers | None,
) -> None:
    """Run all streams over one chunk before the next; ``source`` is copied in chunk by chunk."""
    shape, values, lanes = payload.shape, payload.values, payload.lanes
    width = shape.ring_bits // 8
    step = max(1, chunk_bytes // width)  # values at once
    head = STREAM_MAC_BYTES + LANE_BYTES * shape.lanes
    zeros = memoryview(_ZEROS if head + step * width <= len(_ZEROS) else bytes(head + step * width))
    stream = np.empty(head + min(step, shape.values) * width, dtype=np.uint8)
    streams = [(_keystream(key), 1) for key in plus] + [(_keystream(key), -1) for key in minus]
    field = payload.tau
    for start in range(0, shape.values or 1, step):
        target = values[start : start + step]
        if source is not None:
            target[:] = to_ring(source[start : start + step], shape.ring_bits)
        first = head if start == 0 else 0  # the MAC's and the lanes' words come before the values
        end = first + target.nbytes
        words = stream[first:end].view(values.dtype)
        for keystream, sign in streams:
            fold = np.add if sign > 0 else np.subtract
            keystream.update_into(zeros[:end], stream[:end].data)
            if start == 0:
                word = int.from_bytes(stream[:STREAM_MAC_BYTES].tobytes(), "little")
                field += sign * word
                fold(lanes, stream[STREAM_MAC_BYTES:head].view("<u8"), out=lanes)
            fold(target, words, out=target)
    payload.tau = field


def _keystream(key: bytes) -> CipherContext:
    """Return AES-256-CTR from counter 0 (section 3; the key is used for this stream only)."""
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
