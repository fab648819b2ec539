"""The twelve messages of FSA1, field by field, as section 2 of the protocol lists them.

It checks form alone: who signed, and what a phase expects, is for secagg_site and secagg_server.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from privacy.keys import BOX_OVERHEAD, KEY_BYTES, SIGNATURE_BYTES
from privacy.roster import SITES_MAX, Kind
from privacy.wire import (
    COUNT,
    HEADER_BYTES,
    Counter,
    Header,
    Records,
    Signed,
    ascending,
    bitmap,
    malformed,
    read,
    read_at,
    read_bitmap,
    read_count,
    read_header,
    read_records,
)

HASH_BYTES = 32
PART_BOX = KEY_BYTES + BOX_OVERHEAD  # a part of the group key
SHARES_BOX = 2 * KEY_BYTES + BOX_OVERHEAD  # a share of b and one of the mask secret
COMPUTED = 1  # flag of Ready: "I computed this state myself" (section 6)
NO_RESULT = bytes(HASH_BYTES)  # the result hash in the first RoundStart of a study


@dataclass(frozen=True)
class _Fixed:
    """A message whose body is one struct."""

    header: Header
    FLAGS: ClassVar[int] = 0
    BODY: ClassVar[struct.Struct]
    tail_bytes: ClassVar[int] = 0

    @classmethod
    def body_bytes(cls, data: memoryview) -> int:  # noqa: ARG003 no count inside
        """Return the fixed length."""
        return cls.BODY.size


@dataclass(frozen=True)
class RunHello(_Fixed):
    """Message 1: a site offers its keys for one run."""

    NUMBER: ClassVar[int] = 1
    BODY: ClassVar[struct.Struct] = struct.Struct("<32s32s32sIH32s32s")
    channel_key: bytes
    plan: bytes
    part_commitment: bytes
    last: Counter
    ledger_head: bytes
    nonce: bytes

    def body(self) -> bytes:
        """Return the signed body."""
        return self.BODY.pack(
            self.channel_key,
            self.plan,
            self.part_commitment,
            *self.last,
            self.ledger_head,
            self.nonce,
        )

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        key, plan, part, round_, attempt, ledger, nonce = cls.BODY.unpack(body)
        return cls(header, key, plan, part, Counter(round_, attempt), ledger, nonce)


HELLO_BYTES = HEADER_BYTES + RunHello.BODY.size + SIGNATURE_BYTES


@dataclass(frozen=True)
class RunRoster:
    """Message 2: all RunHello, in index order."""

    NUMBER: ClassVar[int] = 2
    FLAGS: ClassVar[int] = 0
    tail_bytes: ClassVar[int] = 0
    header: Header
    hellos: tuple[Signed[RunHello], ...]

    def body(self) -> bytes:
        """Return the signed body."""
        return COUNT.pack(len(self.hellos)) + b"".join(hello.signed for hello in self.hellos)

    @classmethod
    def body_bytes(cls, data: memoryview) -> int:
        """Return how long the body says it is."""
        return COUNT.size + read_count(data, 0) * HELLO_BYTES

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        view = memoryview(body)
        starts = range(COUNT.size, len(body), HELLO_BYTES)
        hellos = tuple(read(RunHello, view[at : at + HELLO_BYTES]) for at in starts)
        _check_senders(hello.message.header for hello in hellos)
        return cls(header, hellos)


def _check_senders(headers: Iterable[Header]) -> None:
    senders = tuple(header.sender for header in headers)
    if not ascending(senders) or senders[-1] >= SITES_MAX:
        raise malformed("expected ascending senders, got unsorted, repeated or too high ones")


@dataclass(frozen=True)
class GroupPart:
    """Message 3, from a site: its part of the group key, boxed for each peer."""

    NUMBER: ClassVar[int] = 3
    FLAGS: ClassVar[int] = 0
    tail_bytes: ClassVar[int] = 0
    header: Header
    boxes: Records

    def body(self) -> bytes:
        """Return the signed body."""
        return COUNT.pack(len(self.boxes.sites)) + self.boxes.block

    @classmethod
    def body_bytes(cls, data: memoryview) -> int:
        """Return how long the body says it is."""
        return COUNT.size + read_count(data, 0) * (2 + PART_BOX)

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        return cls(header, read_records(body[COUNT.size :], PART_BOX))


def write_group_parts(header: Header, boxes: Records) -> bytes:
    """Return message 3 to a site: its peers' boxes for it. Unsigned: the boxes are sealed."""
    return header.encode() + COUNT.pack(len(boxes.sites)) + boxes.block


def read_group_parts(data: bytes) -> tuple[Header, Records]:
    """Read message 3 to a site.

    Raises:
        ProtocolError: its form is not that of section 2.
    """
    header = read_header(data)
    body = memoryview(data)[HEADER_BYTES:]
    if header.number != GroupPart.NUMBER or header.flags:
        raise malformed(f"expected message {GroupPart.NUMBER}, got {header.number}")
    if len(body) != GroupPart.body_bytes(body):
        raise malformed(f"expected {GroupPart.body_bytes(body)} bytes, got {len(body)}")
    return header, read_records(body[COUNT.size :], PART_BOX)


@dataclass(frozen=True)
class RoundStart(_Fixed):
    """Message 4: what is summed next, on which model, by whom."""

    NUMBER: ClassVar[int] = 4
    BODY: ClassVar[struct.Struct] = struct.Struct("<B32s32s32s")
    kind: Kind
    model: bytes
    result: bytes
    members: tuple[int, ...]

    def body(self) -> bytes:
        """Return the signed body."""
        return self.BODY.pack(self.kind, self.model, self.result, bitmap(self.members))

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        kind, model, result, members = cls.BODY.unpack(body)
        if kind not in (Kind.TRAIN, Kind.EVALUATE):
            raise malformed(f"expected a round to train (1) or evaluate (2), got {kind}")
        return cls(header, Kind(kind), model, result, read_bitmap(members))


_READY = struct.Struct("<32s16s32s32sH")


@dataclass(frozen=True)
class Ready:
    """Message 5: a site's mask key and commitments for one attempt; boxes for peers follow."""

    NUMBER: ClassVar[int] = 5
    FLAGS: ClassVar[int] = COMPUTED
    header: Header
    ctx: bytes
    group_tag: bytes
    mask_key: bytes
    self_commitment: bytes
    share_commitments: Records  # two of 32 bytes for each member of the run, its own included

    def body(self) -> bytes:
        """Return the signed body."""
        shares = self.share_commitments
        fixed = (self.ctx, self.group_tag, self.mask_key, self.self_commitment)
        return _READY.pack(*fixed, len(shares.sites)) + shares.block

    @property
    def tail_bytes(self) -> int:
        """One box for each member but the sender."""
        return (len(self.share_commitments.sites) - 1) * (2 + SHARES_BOX)

    @classmethod
    def body_bytes(cls, data: memoryview) -> int:
        """Return how long the body says it is."""
        count = read_count(data, _READY.size - COUNT.size)
        return _READY.size + count * (2 + 2 * HASH_BYTES)

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        ctx, tag, key, commitment, _ = _READY.unpack_from(body)
        shares = read_records(body[_READY.size :], 2 * HASH_BYTES)
        return cls(header, ctx, tag, key, commitment, shares)

    def commitment(self, kind: int, destination: int) -> bytes:
        """Return the commitment to one share; kind 0 is for b, 1 for the mask secret."""
        return self.share_commitments[destination][kind * HASH_BYTES :][:HASH_BYTES]


@dataclass(frozen=True)
class Cohort:
    """Message 6: the signed part of every Ready of U1; the receiver's boxes follow."""

    NUMBER: ClassVar[int] = 6
    FLAGS: ClassVar[int] = 0
    header: Header
    readies: tuple[Signed[Ready], ...]

    def body(self) -> bytes:
        """Return the signed body."""
        return COUNT.pack(len(self.readies)) + b"".join(ready.signed for ready in self.readies)

    @property
    def tail_bytes(self) -> int:
        """One box from each member of U1 but the receiver."""
        return (len(self.readies) - 1) * (2 + SHARES_BOX)

    @classmethod
    def body_bytes(cls, data: memoryview) -> int:
        """Return how long the body says it is."""
        end = COUNT.size
        for _ in range(read_count(data, 0)):
            end += HEADER_BYTES + Ready.body_bytes(data[end + HEADER_BYTES :]) + SIGNATURE_BYTES
        return end

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        view, readies, end = memoryview(body), [], COUNT.size
        while end < len(body):
            ready, end = read_at(Ready, view, end)
            readies.append(ready)
        _check_senders(ready.message.header for ready in readies)
        return cls(header, tuple(readies))


@dataclass(frozen=True)
class Masked(_Fixed):
    """Message 7: a masked vector; the payload follows."""

    NUMBER: ClassVar[int] = 7
    BODY: ClassVar[struct.Struct] = struct.Struct("<32sQ32s")
    cohort_hash: bytes
    length: int
    payload_hash: bytes

    def body(self) -> bytes:
        """Return the signed body."""
        return self.BODY.pack(self.cohort_hash, self.length, self.payload_hash)

    @property
    def tail_bytes(self) -> int:  # type: ignore[override]
        """The payload."""
        return self.length

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        return cls(header, *cls.BODY.unpack(body))


@dataclass(frozen=True)
class _SurvivorSet(_Fixed):
    """The body that messages 8 and 9 share."""

    BODY: ClassVar[struct.Struct] = struct.Struct("<32s32s")
    cohort_hash: bytes
    survivors: tuple[int, ...]  # U2

    def body(self) -> bytes:
        """Return the signed body."""
        return self.BODY.pack(self.cohort_hash, bitmap(self.survivors))

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        cohort_hash, survivors = cls.BODY.unpack(body)
        return cls(header, cohort_hash, read_bitmap(survivors))


@dataclass(frozen=True)
class Survivors(_SurvivorSet):
    """Message 8: whose vectors are in the sum."""

    NUMBER: ClassVar[int] = 8


@dataclass(frozen=True)
class SurvivorAck(_SurvivorSet):
    """Message 9: a site saw this set and will see no other in this attempt."""

    NUMBER: ClassVar[int] = 9


ACK_BYTES = HEADER_BYTES + SurvivorAck.BODY.size + SIGNATURE_BYTES


@dataclass(frozen=True)
class AckSet:
    """Message 10: at least t SurvivorAcks."""

    NUMBER: ClassVar[int] = 10
    FLAGS: ClassVar[int] = 0
    tail_bytes: ClassVar[int] = 0
    header: Header
    acks: tuple[Signed[SurvivorAck], ...]

    def body(self) -> bytes:
        """Return the signed body."""
        return COUNT.pack(len(self.acks)) + b"".join(ack.signed for ack in self.acks)

    @classmethod
    def body_bytes(cls, data: memoryview) -> int:
        """Return how long the body says it is."""
        return COUNT.size + read_count(data, 0) * ACK_BYTES

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        view = memoryview(body)
        starts = range(COUNT.size, len(body), ACK_BYTES)
        acks = tuple(read(SurvivorAck, view[at : at + ACK_BYTES]) for at in starts)
        _check_senders(ack.message.header for ack in acks)
        return cls(header, acks)


@dataclass(frozen=True)
class Unmask:
    """Message 11: for each site of U1 one share, of b (alive) or of its mask secret (dropped)."""

    NUMBER: ClassVar[int] = 11
    FLAGS: ClassVar[int] = 0
    tail_bytes: ClassVar[int] = 0
    header: Header
    shares: Records

    def body(self) -> bytes:
        """Return the signed body."""
        return COUNT.pack(len(self.shares.sites)) + self.shares.block

    @classmethod
    def body_bytes(cls, data: memoryview) -> int:
        """Return how long the body says it is."""
        return COUNT.size + read_count(data, 0) * (2 + KEY_BYTES)

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        return cls(header, read_records(body[COUNT.size :], KEY_BYTES))


@dataclass(frozen=True)
class Result(_Fixed):
    """Message 12: the opened sum; its payload (tau, lanes, values, as in Masked) follows."""

    NUMBER: ClassVar[int] = 12
    BODY: ClassVar[struct.Struct] = struct.Struct("<32s32sQ32s")
    survivors: tuple[int, ...]
    next_model: bytes
    length: int
    payload_hash: bytes

    def body(self) -> bytes:
        """Return the signed body."""
        fixed = (bitmap(self.survivors), self.next_model, self.length, self.payload_hash)
        return self.BODY.pack(*fixed)

    @property
    def tail_bytes(self) -> int:  # type: ignore[override]
        """The payload."""
        return self.length

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body."""
        survivors, next_model, length, payload_hash = cls.BODY.unpack(body)
        return cls(header, read_bitmap(survivors), next_model, length, payload_hash)


def result_hash(result: Signed[Result]) -> bytes:
    """Return what the next RoundStart says of this Result: SHA-256 of header and body."""
    return hashlib.sha256(result.head + result.body).digest()


def cohort_hash(mask_keys: Mapping[int, bytes]) -> bytes:
    """Return the SHA-256 over i in U1 of (i u16, mask key) (message 6)."""
    ordered = sorted(mask_keys)
    return hashlib.sha256(b"".join(COUNT.pack(i) + mask_keys[i] for i in ordered)).digest()
