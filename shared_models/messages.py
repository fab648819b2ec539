"""The messages around the aggregation protocol: call to a run, greeting, a round's directions.

Everything else on the wire is the protocol's own (privacy.wire, privacy.secagg_messages).
"""

import hashlib
import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from privacy.errors import ProtocolError

RUN_BYTES = 16
MEMBERS_MAX = 100
_COUNT = struct.Struct("<H")
_MEMBER = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")
TRAIL_MAX = 16  # a site that missed more takes the state from the server
PLACES_MAX = 2  # a sum starts from a place that enough sites computed: one step back is enough
_NAMES_MAX = PLACES_MAX + 1  # and the attempt whose sum the site can still check
_NAME_BYTES = 32
_ATTEMPT = struct.Struct("<IH")


def call_to_run(run: bytes, members: tuple[int, ...] = ()) -> bytes:
    """Return the message that asks a site for its RunHello.

    Args:
        run: the new run's id, 16 bytes.
        members: places in the whole roster of a simulated cohort; () for everyone.
    """
    if len(run) != RUN_BYTES:
        raise ValueError(f"expected a run id of {RUN_BYTES} bytes, got {len(run)}")
    return run + _COUNT.pack(len(members)) + b"".join(_MEMBER.pack(place) for place in members)


def read_call(message: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Return the run's id and its members.

    Raises:
        ProtocolError: the length is wrong, or members are too many, unsorted or repeated.
    """
    head = RUN_BYTES + _COUNT.size
    count = _COUNT.unpack_from(message, RUN_BYTES)[0] if len(message) >= head else -1
    if not 0 <= count <= MEMBERS_MAX or len(message) != head + count * _MEMBER.size:
        raise ProtocolError(f"expected a call to a run, got {len(message)} other bytes")
    members = tuple(place for (place,) in _MEMBER.iter_unpack(message[head:]))
    if any(left >= right for left, right in pairwise(members)):
        raise ProtocolError("expected members in ascending order, got others")
    return message[:RUN_BYTES], members


def place(model: bytes, result: bytes) -> bytes:
    """Return the 32-byte name of a point in a study's history: a state and the sum before it.

    Args:
        model: hash of model and strategy state.
        result: hash of the last Result; an evaluation has one and leaves the state as it is.
    """
    return hashlib.sha256(b"fedward place" + model + result).digest()


def checkable(run: bytes, attempt: tuple[int, int]) -> bytes:
    """Return the 32-byte name of an attempt whose sum a site can check: it has its key.

    Args:
        run: id of the run, 16 bytes.
        attempt: the counter, round and attempt.
    """
    return hashlib.sha256(b"fedward check" + run + _ATTEMPT.pack(*attempt)).digest()


def greeting(hello: bytes, names: Sequence[bytes]) -> bytes:
    """Return a site's answer to a call: RunHello, and from where it can go on by itself.

    Args:
        hello: the signed RunHello.
        names: of places that it computed, and of the attempt whose sum it can check. A hint,
            unsigned: it helps the server to choose, and whether a site goes on from there is the
            site's own check (section 6 of the protocol).
    """
    return _COUNT.pack(len(names)) + b"".join(names) + hello


def read_greeting(message: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return RunHello and the names.

    Raises:
        ProtocolError: the length does not fit.
    """
    count = _COUNT.unpack_from(message)[0] if len(message) >= _COUNT.size else -1
    end = _COUNT.size + count * _NAME_BYTES
    if not 0 <= count <= _NAMES_MAX or len(message) < end:
        raise ProtocolError(f"expected a greeting, got {len(message)} other bytes")
    starts = range(_COUNT.size, end, _NAME_BYTES)
    return message[end:], tuple(message[at : at + _NAME_BYTES] for at in starts)


class Opening(NamedTuple):
    """What shows that a sum was opened: its RoundStart, its AckSet and its Result."""

    start: bytes
    acks: bytes
    result: bytes | memoryview


class Directions(NamedTuple):
    """What a site is sent at the start of a round.

    Attributes:
        order: RoundStart.
        trail: the openings of the run that the site may not have followed yet, oldest first.
        state: the model and strategy state, once a run; else empty.
    """

    order: bytes
    trail: tuple[Opening, ...]
    state: bytes


def directions(order: bytes, trail: Sequence[Opening], state: bytes) -> bytes:
    """Return one message for all sites that are as far as each other."""
    parts = [order, state, *(part for opening in trail for part in opening)]
    lengths = (_LENGTH.pack(len(part)) for part in parts)
    return b"".join((_COUNT.pack(len(parts)), *lengths, *parts))


def read_directions(message: bytes) -> Directions:
    """Return the parts; all of them are still to be checked.

    Raises:
        ProtocolError: the lengths do not fit.
    """
    count = _COUNT.unpack_from(message)[0] if len(message) >= _COUNT.size else 0
    start = _COUNT.size + count * _LENGTH.size
    openings, rest = divmod(count - 2, 3)  # a rest, too, where order or state is missing
    if rest or openings > TRAIL_MAX or len(message) < start:
        raise ProtocolError(f"expected an order with its state, got {len(message)} other bytes")
    lengths = [length for (length,) in _LENGTH.iter_unpack(message[_COUNT.size : start])]
    if start + sum(lengths) != len(message):
        raise ProtocolError(f"expected an order with its state, got {len(message)} other bytes")
    ends = list(accumulate(lengths, initial=start))
    parts = [message[left:right] for left, right in pairwise(ends)]
    trail = tuple(Opening(*parts[at : at + 3]) for at in range(2, count, 3))
    return Directions(parts[0], trail, parts[1])
