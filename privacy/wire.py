"""How FSA1 frames a message: header, counted body, signature, tail, each length checked before use.

It knows no single message (secagg_messages) and no phase (secagg_site, secagg_server). Section 2
of the protocol; integers are little-endian. Boxes and payloads are the tail, after the signature.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

from privacy.errors import ProtocolError
from privacy.keys import SIGNATURE_BYTES, Identity, verify
from privacy.pages import ask_for_large_pages
from privacy.roster import SITES_MAX

VERSION = 1
SERVER = 0xFFFF
BITMAP_BYTES = 32
_HEADER = struct.Struct("<4sBBH16sIHH")
COUNT = struct.Struct("<H")
HEADER_BYTES = _HEADER.size


class Counter(NamedTuple):
    """Round and attempt; it only grows, over all kinds and runs of a study."""

    round: int
    attempt: int


@dataclass(frozen=True)
class Header:
    """The 32 bytes in front of every message."""

    number: int
    run: bytes
    counter: Counter
    sender: int
    flags: int = 0

    def encode(self) -> bytes:
        """Return the 32 bytes."""
        return _HEADER.pack(
            b"FSA1", self.number, VERSION, self.flags, self.run, *self.counter, self.sender
        )


def read_header(data: bytes | memoryview) -> Header:
    """Return the header of any message.

    Raises:
        ProtocolError: too short, not FSA1, or another version.
    """
    if len(data) < HEADER_BYTES:
        raise malformed(f"expected a header of {HEADER_BYTES} bytes, got {len(data)}")
    magic, number, version, flags, run, round_, attempt, sender = _HEADER.unpack_from(data)
    if magic != b"FSA1" or version != VERSION:
        raise malformed(f"expected FSA1 version {VERSION}, got another protocol or version")
    return Header(number, run, Counter(round_, attempt), sender, flags)


class Message(Protocol):
    """What `write` and `read` ask of each message."""

    NUMBER: ClassVar[int]
    FLAGS: ClassVar[int]

    @property
    def header(self) -> Header:
        """The header."""

    @property
    def tail_bytes(self) -> int:
        """How many bytes follow the signature."""

    def body(self) -> bytes:
        """Return the signed body."""

    @classmethod
    def body_bytes(cls, data: memoryview) -> int:
        """Return how long the body at the start of ``data`` says it is, each count checked."""

    @classmethod
    def parse(cls, header: Header, body: bytes) -> Self:
        """Return the message of a body whose length was checked."""


M = TypeVar("M", bound=Message)
M_co = TypeVar("M_co", bound=Message, covariant=True)


@dataclass(frozen=True)
class Signed(Generic[M_co]):
    """A message as it was read, with the exact bytes that were signed."""

    message: M_co
    head: bytes
    body: bytes
    signature: bytes
    tail: memoryview

    @property
    def signed(self) -> bytes:
        """The message without its tail."""
        return self.head + self.body + self.signature

    def is_by(self, public: bytes) -> bool:
        """Say whether ``public`` signed it."""
        return verify(public, self.head, self.body, self.signature)


def write(message: Message, identity: Identity, tail: bytes | memoryview = b"") -> bytes:
    """Return the bytes of a message, signed by ``identity``."""
    head, body = message.header.encode(), message.body()
    return b"".join((head, body, identity.sign(head, body), tail))


def front_bytes(kind: type[Message]) -> int:
    """Return how long header, body and signature are, of a kind whose body has a fixed length."""
    return HEADER_BYTES + kind.body_bytes(memoryview(b"")) + SIGNATURE_BYTES


class Draft:
    """A message whose tail is written where it will be sent from, before what is signed is known.

    A vector is so large that another copy would cost a tenth of the time of all its masks.
    """

    def __init__(self, kind: type[Message], tail_bytes: int) -> None:
        """Make room for a message of a kind that `front_bytes` knows."""
        start = front_bytes(kind)
        # BytesIO is the one way to fill bytes in place: it hands out those that it was given.
        self._file = BytesIO(bytes(start + tail_bytes))
        self.tail = self._file.getbuffer()[start:]
        ask_for_large_pages(self.tail)

    def sign(self, message: Message, identity: Identity) -> bytes:
        """Return the bytes of the message; nothing may hold on to ``tail`` any more."""
        head, body = message.header.encode(), message.body()
        self.tail.release()
        self._file.write(b"".join((head, body, identity.sign(head, body))))
        return self._file.getvalue()


def read(kind: type[M], data: bytes | memoryview) -> Signed[M]:
    """Read one message of this kind, which must fill ``data``.

    Raises:
        ProtocolError: anything is not as section 2 says: header, kind, counts, lengths, order.
    """
    signed, end = read_at(kind, memoryview(data), 0)
    if len(data) - end != signed.message.tail_bytes:
        raise malformed(
            f"expected {signed.message.tail_bytes} bytes after the signature of message "
            f"{kind.NUMBER}, got {len(data) - end}"
        )
    return signed


def read_at(kind: type[M], data: memoryview, start: int) -> tuple[Signed[M], int]:
    """Read the signed part at ``start``; return it, with all that follows as tail, and its end."""
    head = bytes(data[start : start + HEADER_BYTES])
    header = read_header(head)
    if header.number != kind.NUMBER or header.flags & ~kind.FLAGS:
        raise malformed(f"expected message {kind.NUMBER}, got {header.number} or unknown flags")
    begin = start + HEADER_BYTES
    middle = begin + kind.body_bytes(data[begin:])
    end = middle + SIGNATURE_BYTES
    if end > len(data):
        raise malformed(f"expected {end} bytes of message {kind.NUMBER}, got {len(data)}")
    body = bytes(data[begin:middle])
    message = kind.parse(header, body)
    return Signed(message, head, body, bytes(data[middle:end]), data[end:]), end


def malformed(what: str) -> ProtocolError:
    """Return the error of bytes that break the form of section 2."""
    return ProtocolError(f"{what}; the message was discarded")


def read_count(data: memoryview, at: int) -> int:
    """Return the count at ``at``, refused above the ceiling before anything is sized by it."""
    if len(data) < at + COUNT.size:
        raise malformed("expected a count, got the end of the message")
    count: int = COUNT.unpack_from(data, at)[0]
    if not 1 <= count <= SITES_MAX:
        raise malformed(f"expected a count in 1..{SITES_MAX}, got {count}")
    return count


# --- parts of bodies ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Records:
    """Entries of one width, each after its site's u16, sites ascending."""

    sites: tuple[int, ...]
    width: int
    block: bytes

    def __getitem__(self, site: int) -> bytes:
        start = self.sites.index(site) * (2 + self.width) + 2
        return self.block[start : start + self.width]


def records(entries: Mapping[int, bytes], width: int) -> Records:
    """Return the entries in ascending order of site."""
    sites = tuple(sorted(entries))
    return Records(sites, width, b"".join(COUNT.pack(site) + entries[site] for site in sites))


def read_records(block: bytes | memoryview, width: int) -> Records:
    """Read entries that fill ``block``.

    Raises:
        ProtocolError: a piece is left over, or sites are unsorted, repeated or too high.
    """
    if len(block) % (2 + width):
        raise malformed(f"expected entries of {2 + width} bytes, got a piece of one")
    block = bytes(block)
    sites = tuple(block[:: 2 + width])  # the low bytes of the u16; the high ones must be 0
    if any(block[1 :: 2 + width]) or (sites and sites[-1] >= SITES_MAX) or not ascending(sites):
        raise malformed("expected ascending site indices, got unsorted, repeated or too high ones")
    return Records(sites, width, block)


def ascending(sites: tuple[int, ...]) -> bool:
    """Say whether the sites are sorted and none repeats."""
    return sorted(set(sites)) == list(sites)


def bitmap(sites: Iterable[int]) -> bytes:
    """Return 32 bytes with bit i of byte i // 8 set for each site."""
    return sum(1 << site for site in set(sites)).to_bytes(BITMAP_BYTES, "little")


def read_bitmap(data: bytes) -> tuple[int, ...]:
    """Return the sites of a bitmap, ascending.

    Raises:
        ProtocolError: a site above the ceiling.
    """
    bits = int.from_bytes(data, "little")
    if bits >> SITES_MAX:
        raise malformed(f"expected sites below {SITES_MAX} in a bitmap, got a higher one")
    return tuple(site for site, bit in enumerate(f"{bits:b}"[::-1]) if bit == "1")
