"""The server's open attempt as bytes, so that a restarted server can finish it.

Cohort, masked sum and AckSet are written before shares are asked for; the opened sum after it.
"""

import hashlib
import struct
from itertools import pairwise

import numpy as np

from privacy.errors import ProtocolError
from privacy.masking import Payload
from privacy.secagg_messages import SHARES_BOX, AckSet, Cohort, RoundStart, cohort_hash
from privacy.secagg_server import Agreed, Coordinator, Formed, Opened, RunningSum, Started
from privacy.wire import SERVER, read

_LENGTHS = struct.Struct("<QQQQ")
_DIGEST_BYTES = 32


def suspend(agreed: Agreed, start: bytes, ack_set: bytes) -> bytes:
    """Return everything that `resume` needs.

    Args:
        agreed: the attempt, its survivors acknowledged.
        start: its RoundStart.
        ack_set: its AckSet, not sent yet.
    """
    running = agreed.running
    parts = (start, running.formed.signed, ack_set, running.total.words.tobytes())
    body = _LENGTHS.pack(*(len(part) for part in parts)) + b"".join(parts)
    return hashlib.sha256(body).digest() + body


def resume(server: Coordinator, data: bytes) -> tuple[Agreed, bytes, bytes]:
    """Return the attempt, its RoundStart and its AckSet, ready to ask for shares again.

    Args:
        server: the server's keys, plan and roster.
        data: from `suspend`.

    Raises:
        ProtocolError: the bytes are damaged, or of another plan or server.
    """
    body = data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES] or len(body) < _LENGTHS.size:
        raise ProtocolError("expected a suspended attempt, got damaged bytes; nothing was opened")
    ends = [_LENGTHS.size]
    for length in _LENGTHS.unpack_from(body):
        ends.append(ends[-1] + length)
    start, signed, ack_set, words = (body[left:right] for left, right in pairwise(ends))
    begin = read(RoundStart, start)
    header = begin.message.header
    members = begin.message.members
    started = Started(server, header.run, members, header.counter, begin.message.kind)
    agreed = read(AckSet, ack_set)
    survivors = agreed.message.acks[0].message.survivors
    count = struct.unpack_from("<H", signed, len(started.header(Cohort.NUMBER).encode()))[0]
    # The boxes were for the sites alone; the server needs the readies that they came with.
    cohort = read(Cohort, signed + bytes((count - 1) * (2 + SHARES_BOX)))
    for message in (begin, agreed, cohort):
        if message.message.header.sender != SERVER or not message.is_by(server.identity.public):
            raise ProtocolError("expected an attempt of this server, got another's")
    readies = {one.message.header.sender: one.message for one in cohort.message.readies}
    hashed = cohort_hash({index: ready.mask_key for index, ready in readies.items()})
    running = RunningSum(Formed(started, readies, hashed, {}, signed, {}))
    if len(words) != started.shape.payload_bytes:
        raise ProtocolError("expected a sum of this plan, got another; nothing was opened")
    running.total = Payload(started.shape, np.frombuffer(bytearray(words), dtype=np.uint8))
    running.closed = True
    return Agreed(running, survivors, {}), start, ack_set


def reopened(agreed: Agreed, words: bytes) -> Opened:
    """Return the sum that was opened in an attempt, from the bytes that were kept of it.

    Raises:
        ProtocolError: the bytes are not a sum of this plan.
    """
    started = agreed.running.formed.started
    if len(words) != started.shape.payload_bytes:
        raise ProtocolError("expected an opened sum of this plan, got other bytes")
    payload = Payload(started.shape, np.frombuffer(bytearray(words), dtype=np.uint8))
    return Opened(started, agreed.survivors, payload, {})
