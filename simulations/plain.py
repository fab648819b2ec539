"""The unmasked sum of a simulation: the same integers as under masks, sent in clear.

It exists here only: no deployment can be switched to it.
"""

import struct
from typing import Literal

import numpy as np

from client.site import Site
from privacy.encoding import RingBits
from privacy.errors import AbsentError, ProtocolError
from server.rounds import Exchange, Opened, Order
from shared_models.strategies import State, read_state

KIND = "plain"
_HEADER = struct.Struct("<BIH")  # kind, round, attempt
_KINDS: tuple[Literal["train"], Literal["evaluate"]] = ("train", "evaluate")


class PlainAnswers:
    """The sites' end: one for all virtual sites of a process."""

    def __init__(self, parameters: int) -> None:
        """``parameters``: of the study's network."""
        self._parameters = parameters
        self._last: tuple[bytes, State] | None = None

    def answer(self, site: Site, message: bytes) -> bytes:
        """Return the site's integers for one order."""
        kind, number, attempt = _HEADER.unpack_from(message)
        given = site.contribute(_KINDS[kind], self._state(message), number, attempt)
        return given.values.tobytes() + given.lanes.tobytes()

    def _state(self, message: bytes) -> State:
        # All sites of a round receive the very same bytes object: read it once.
        if self._last is None or self._last[0] is not message:
            self._last = (message, read_state(message[_HEADER.size :], self._parameters))
        return self._last[1]


class PlainSum:
    """The server's end: folds each site's integers into one running sum as they arrive."""

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        min_sites: int,
        deadline_s: float,
        ring_bits: RingBits = 32,
    ) -> None:
        """``shapes``: number of values and of lanes, for each kind of round."""
        self._shapes = shapes
        self._min_sites = min_sites
        self._deadline_s = deadline_s
        self._limit = 1 << (ring_bits - 1)

    def __call__(self, exchange: Exchange, order: Order) -> Opened:
        """Ask all sites of the order and return the sum of those that answered."""
        count, lane_count = self._shapes[order.kind]
        values = np.zeros(count, dtype=np.int64)
        lanes = np.zeros(lane_count, dtype=np.int64)
        header = _HEADER.pack(_KINDS.index(order.kind), order.round, order.attempt)
        message = header + order.state
        answered: list[str] = []
        outgoing = dict.fromkeys(order.sites, message)
        for site, reply in exchange(KIND, outgoing, self._deadline_s):
            if len(reply) != 4 * count + 8 * lane_count:
                raise ProtocolError(
                    f"expected {4 * count + 8 * lane_count} bytes of a site, got {len(reply)}"
                )
            values += np.frombuffer(reply, dtype="<i4", count=count)
            lanes += np.frombuffer(reply, dtype="<i8", offset=4 * count)
            answered.append(site)
        if len(answered) < self._min_sites:
            raise AbsentError(
                f"expected answers of {self._min_sites} sites or more, got {len(answered)}; "
                "no sum was made"
            )
        if count and not -self._limit <= int(values.min()) <= int(values.max()) < self._limit:
            # Under masks it would wrap and fail its check (section 5 of the protocol).
            raise ProtocolError(
                "expected a sum within the ring, got one beyond it; it was not used"
            )
        return Opened(values, lanes, tuple(sorted(answered)))

    def finish(self, exchange: Exchange, sites: tuple[str, ...], state: bytes) -> None:
        """Do nothing: every order carried its state."""
