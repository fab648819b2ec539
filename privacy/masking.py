"""Masks that cancel in the sum: keystreams added to a vector in a ring, and their removal.

It derives no keys and does not decide whose masks are removed. Source: section 3 of the protocol;
Bonawitz et al., CCS 2017, eprint 2017/281, section 4 (double masking).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from privacy.encoding import Integers, Ring, RingBits, from_ring, to_ring
from privacy.mac import PRIME
from privacy.stream import Stream

MAC_BYTES = 8  # of tau on the wire
STREAM_MAC_BYTES = 16  # of a stream: 128 bits modulo 2^61 - 1 are uniform to 2^-67
LANE_BYTES = 8
CHUNK_BYTES = 1 << 17  # of values; with one stream's worth beside it, it stays in a 1 MiB cache

_Signed = tuple[bytes, np.ufunc]  # the key of a stream, and np.add or np.subtract


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: memoryview, /) -> None:
        """Take more bytes."""


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
    """Return a view of the bytes of one vector, which can be changed in place where they can.

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
    *,
    threads: int = 1,
    out: memoryview | None = None,
    digest: Digest | None = None,
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
        threads: how many share the values; the result does not depend on it.
        out: (payload_bytes,) writable bytes to use; None stands for new ones.
        digest: is updated with the payload; by one thread while it is still in the cache.

    Raises:
        ValueError: values, lanes or ``out`` have another shape.
    """
    if values.shape != (shape.values,) or lanes.shape != (shape.lanes,):
        raise ValueError(
            f"expected ({shape.values},) values and ({shape.lanes},) lanes, "
            f"got {values.shape} and {lanes.shape}"
        )
    if out is None:
        out = np.empty(shape.payload_bytes, dtype=np.uint8).data
    payload = read_payload(shape, out)
    payload.tau = tau
    payload.lanes[:] = lanes.view("<u8")
    _add_streams(payload, values, _signed(plus, minus), chunk_bytes, threads, digest)
    return payload


def add_streams(
    payload: Payload,
    plus: Sequence[bytes],
    minus: Sequence[bytes],
    chunk_bytes: int = CHUNK_BYTES,
    *,
    digest: Digest | None = None,
) -> None:
    """Add and subtract the streams of these keys, in place: how the server removes masks.

    ``digest`` is updated with the payload that comes of it.
    """
    _add_streams(payload, from_ring(payload.values), _signed(plus, minus), chunk_bytes, 1, digest)


def _signed(plus: Sequence[bytes], minus: Sequence[bytes]) -> list[_Signed]:
    return [*((key, np.add) for key in plus), *((key, np.subtract) for key in minus)]


def _add_streams(
    payload: Payload,
    source: Integers,
    keys: Sequence[_Signed],
    chunk_bytes: int,
    threads: int,
    digest: Digest | None,
) -> None:
    """Set the payload's values to ``source`` and run all streams over MAC, lanes and values."""
    step = max(1, chunk_bytes // payload.values.itemsize)  # values at once
    # Each thread takes a run of whole chunks and enters the streams where it begins: numpy and the
    # cipher let go of the interpreter's lock, and the bytes do not depend on the number of threads.
    run = step * max(1, -(-source.size // (step * threads)))
    if source.size <= run:
        _mask_run(payload, source, range(source.size), keys, step, digest)
        return
    with ThreadPoolExecutor(threads) as pool:
        runs = [
            pool.submit(_mask_run, payload, source, part, keys, step, None)
            for part in (range(source.size)[at : at + run] for at in range(0, source.size, run))
        ]
    for done in runs:
        done.result()
    if digest is not None:
        digest.update(payload.words.data)


def _mask_run(
    payload: Payload,
    source: Integers,
    run: range,
    keys: Sequence[_Signed],
    step: int,
    digest: Digest | None,
) -> None:
    """Mask the values of ``run``, whole chunks; MAC and lanes too when it begins at the first.

    All streams run over one chunk before the next, so that only source and sum leave the cache.
    """
    shape, values = payload.shape, payload.values
    head = STREAM_MAC_BYTES + LANE_BYTES * shape.lanes
    place = head + values.itemsize * run.start if run.start else 0
    streams = [(Stream(key, place), fold) for key, fold in keys]
    if run.start == 0:
        _mask_head(payload, streams)
        if digest is not None:
            digest.update(payload.words[: MAC_BYTES + LANE_BYTES * shape.lanes].data)
    total = np.empty(min(step, len(run)), dtype=values.dtype)
    words = np.empty_like(total)
    for start in range(run.start, run.stop, step):
        target = values[start : start + step]
        mask, chunk = words[: target.size], total[: target.size]
        part = to_ring(source[start : start + step], shape.ring_bits)
        for stream, fold in streams:
            part = fold(part, stream.fill(mask), chunk)
        if digest is not None:
            digest.update(part.data)
        target[:] = part


def _mask_head(payload: Payload, streams: Sequence[tuple[Stream, np.ufunc]]) -> None:
    """Run the first bytes of the streams over the MAC (as 128-bit integers) and the lanes."""
    lanes, field = payload.lanes, payload.tau
    for stream, fold in streams:
        head = stream.words64(STREAM_MAC_BYTES // 8 + lanes.size)
        word = int(head[0]) + (int(head[1]) << 64)
        field += word if fold is np.add else -word
        fold(lanes, head[2:], out=lanes)
    payload.tau = field
