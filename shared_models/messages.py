"""The two messages around the aggregation protocol: the call to a run, the order with its state.

Everything else on the wire is the protocol's own (privacy.wire, privacy.secagg_messages).
"""

import struct
from itertools import pairwise

from privacy.errors import ProtocolError

RUN_BYTES = 16
MEMBERS_MAX = 100
_COUNT = struct.Struct("<H")
_MEMBER = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
ORDER_BYTES_MAX = 1 << 12  # a RoundStart has under 300 bytes


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


def order_with_state(order: bytes, state: bytes) -> bytes:
    """Return a RoundStart and the state that it names by hash, as one message for all sites."""
    return _LENGTH.pack(len(order)) + order + state


def read_order(message: bytes) -> tuple[bytes, bytes]:
    """Return the RoundStart and the state; both are still to be checked.

    Raises:
        ProtocolError: the lengths do not fit.
    """
    length = _LENGTH.unpack_from(message)[0] if len(message) >= _LENGTH.size else ORDER_BYTES_MAX
    if length >= ORDER_BYTES_MAX or len(message) < _LENGTH.size + length:
        raise ProtocolError(f"expected an order with its state, got {len(message)} other bytes")
    end = _LENGTH.size + length
    return message[_LENGTH.size : end], message[end:]
