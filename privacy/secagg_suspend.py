"""The server's open attempt as bytes, so that a restarted server can finish it.

Cohort, masked sum and AckSet are written before shares are asked for; the opened sum, in place of
the masked one, after it. A sum is as large as a vector: it is not joined to the rest, nor copied.
"""

import hashlib
import struct
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from privacy.errors import ProtocolError
from privacy.masking import Payload
from privacy.secagg_messages import SHARES_BOX, AckSet, Cohort, RoundStart, cohort_hash
from privacy.secagg_server import Agreed, Coordinator, Formed, Opened, RunningSum, Started
from privacy.wire import SERVER, read

_FIXED = struct.Struct("<?32sQQQ")  # opened, SHA-256 of the sum, lengths of the parts that follow
_DIGEST_BYTES = 32


class Suspended(NamedTuple):
    """What is kept of an attempt: all of it but the sum, and the sum where it lies."""

    head: bytes
    words: memoryview


class Resumed(NamedTuple):
    """An attempt that can be finished; ``opened`` when it was."""

    agreed: Agreed
    start: bytes
    ack_set: bytes
    opened: Opened | None


def suspend(
    agreed: Agreed, start: bytes, ack_set: bytes, opened: Opened | None = None
) -> Suspended:
    """Return everything that `resume` needs; ``words`` is a view, to be kept before it changes.

    Args:
        agreed: the attempt, its survivors acknowledged.
        start: its RoundStart.
        ack_set: its AckSet; not sent yet, unless the sum is open.
        opened: the sum, once it is open; it takes the place of the masked one.
    """
    words = agreed.running.total.words.data  # masked, or open in place
    hashed = hashlib.sha256(words).digest() if opened is None else opened.payload_hash
    parts = (start, agreed.running.formed.signed, ack_set)
    fixed = _FIXED.pack(opened is not None, hashed, *(len(part) for part in parts))
    body = b"".join((fixed, *parts))
    return Suspended(hashlib.sha256(body).digest() + body, words)


def resume(server: Coordinator, head: bytes, words: Iterable[bytes]) -> Resumed:
    """Return the attempt with its sum, ready to ask for shares again or open already.

    Args:
        server: the server's keys, plan and roster.
        head: from `suspend`.
        words: the sum that came with it, cut anyhow; read once.

    Raises:
        ProtocolError: the bytes are damaged, or of another plan or server.
    """
    body = head[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != head[:_DIGEST_BYTES] or len(body) < _FIXED.size:
        raise _damaged()
    is_open, hashed, *lengths = _FIXED.unpack_from(body)
    ends = [_FIXED.size]
    for length in lengths:
        ends.append(ends[-1] + length)
    start, signed, ack_set = (body[left:right] for left, right in pairwise(ends))
    begin = read(RoundStart, start)
    header = begin.message.header
    members = begin.message.members
    started = Started(server, header.run, members, header.counter, begin.message.kind)
    acks = read(AckSet, ack_set)
    survivors = acks.message.acks[0].message.survivors
    count = struct.unpack_from("<H", signed, len(started.header(Cohort.NUMBER).encode()))[0]
    # The boxes were for the sites alone; the server needs the readies that they came with.
    cohort = read(Cohort, signed + bytes((count - 1) * (2 + SHARES_BOX)))
    for message in (begin, acks, cohort):
        if message.message.header.sender != SERVER or not message.is_by(server.identity.public):
            raise ProtocolError("expected an attempt of this server, got another's")
    readies = {one.message.header.sender: one.message for one in cohort.message.readies}
    cohort_digest = cohort_hash({index: ready.mask_key for index, ready in readies.items()})
    running = RunningSum(Formed(started, readies, cohort_digest, {}, signed, {}))
    _fill(running.total, words, hashed)
    running.closed, running.opened = True, is_open
    opened = Opened(running, survivors, hashed, {}) if is_open else None
    return Resumed(Agreed(running, survivors, {}), start, ack_set, opened)


def _fill(total: Payload, words: Iterable[bytes], hashed: bytes) -> None:
    """Copy the pieces into the sum; check that they fill it and what they hash to."""
    digest, end = hashlib.sha256(), 0
    for piece in words:
        start, end = end, end + len(piece)
        if end > total.words.size:
            break
        total.words[start:end] = np.frombuffer(piece, dtype=np.uint8)
        digest.update(piece)
    if end != total.words.size:
        raise ProtocolError("expected a sum of this plan, got another; nothing was opened")
    if digest.digest() != hashed:
        raise _damaged()


def _damaged() -> ProtocolError:
    return ProtocolError("expected a suspended attempt, got damaged bytes; nothing was opened")
