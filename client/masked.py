"""A site's part in masked rounds: it walks the phases of the protocol and trains when it may.

The checks are the protocol's (privacy.secagg_*), the work is the site's; here is their order. What
must outlive a restart is not on disk yet: a restarted site joins the next run.
"""

from collections.abc import Callable
from typing import Literal

from client.site import Contribution, Site
from privacy import secagg_setup, secagg_site
from privacy.errors import ProtocolError
from privacy.roster import Kind
from privacy.secagg_messages import RoundStart
from privacy.wire import Counter, read
from shared_models.messages import read_call, read_order
from shared_models.strategies import State, read_state, state_hash

# The numbers of a run's members in the whole roster (none: everyone) -> the site's place in it.
Member = Callable[[tuple[int, ...]], secagg_setup.Site]

_Phase = (
    secagg_setup.Greeted
    | secagg_setup.Joined
    | secagg_site.Advertised
    | secagg_site.Masked
    | secagg_site.Acknowledged
    | None
)


class Orders:
    """Reads orders with their state; remembers the last, which many sites of a process share."""

    def __init__(self, parameters: int) -> None:
        """``parameters``: of the study's network."""
        self._parameters = parameters
        self._last: tuple[bytes, tuple[bytes, bytes, State]] | None = None

    def read(self, message: bytes) -> tuple[bytes, bytes, State]:
        """Return the RoundStart, the hash of the state, and the state.

        Raises:
            ProtocolError: the bytes are not an order with a state of this network.
        """
        if self._last is None or self._last[0] is not message:
            order, blob = read_order(message)
            self._last = (message, (order, state_hash(blob), read_state(blob, self._parameters)))
        return self._last[1]


class Participant:
    """One site's place in a run; a message out of order is refused and changes nothing."""

    def __init__(self, site: Site, member: Member, orders: Orders, once: bool) -> None:
        """Wait for a run.

        Args:
            site: does the work.
            member: the site's keys, plan and place.
            orders: reads orders; one for all sites of a process.
            once: a run ends with its first sum; simulated cohorts only.
        """
        self._site, self._member, self._orders, self._once = site, member, orders, once
        self._phase: _Phase = None
        self._grouped: secagg_setup.Grouped | None = None
        self._last = Counter(0, 0)
        self._runs: set[bytes] = set()
        self._state: tuple[bytes, State] | None = None
        self._stored: tuple[tuple[Kind, bytes], Contribution] | None = None

    def answer(self, kind: str, message: bytes) -> bytes:
        """Return the answer to one message of the server.

        Raises:
            ProtocolError: a check failed or the message is out of order.
            PrivacyError: the site's policy or ledger refuses.
        """
        steps = {
            "hello": self._hello,
            "roster": self._join,
            "group": self._group,
            "start": self._start,
            "cohort": self._contribute,
            "survivors": self._acknowledge,
            "unmask": self._reveal,
        }
        return steps[kind](message)

    def _hello(self, message: bytes) -> bytes:
        run, members = read_call(message)
        if run in self._runs:  # section 1: a repeated id is refused
            raise ProtocolError("expected a new run, got a repeated id; nothing was sent")
        self._runs.add(run)
        self._grouped = self._state = None
        self._phase, answer = secagg_setup.hello(self._member(members), run, self._last)
        return answer

    def _join(self, message: bytes) -> bytes:
        if not isinstance(self._phase, secagg_setup.Greeted):
            raise _out_of_order("roster")
        self._phase, answer = secagg_setup.join(self._phase, message)
        return answer

    def _group(self, message: bytes) -> bytes:
        if not isinstance(self._phase, secagg_setup.Joined):
            raise _out_of_order("group")
        self._grouped, self._phase = secagg_setup.group(self._phase, message), None
        return b""

    def _start(self, message: bytes) -> bytes:
        if self._grouped is None:
            raise _out_of_order("start")
        order, digest, state = self._orders.read(message)
        kind = read(RoundStart, order).message.kind
        # The state came with the order: that everyone was told the same is what its hash in the
        # masks proves. That it is the strategy's own step is not checked here yet.
        expected = secagg_site.Expected(kind, digest)
        phase, answer = secagg_site.start(self._grouped, order, expected, self._last)
        self._last = phase.attempt.counter
        self._phase, self._state = phase, (digest, state)
        return answer

    def _contribute(self, message: bytes) -> bytes:
        if not isinstance(self._phase, secagg_site.Advertised) or self._state is None:
            raise _out_of_order("cohort")
        shared = secagg_site.admit(self._phase, message)
        digest, state = self._state
        kind, counter = shared.attempt.kind, shared.attempt.counter
        if self._stored is None or self._stored[0] != (kind, digest):
            work = self._site.contribute(_WORDS[kind], state, counter.round, counter.attempt)
            self._stored = ((kind, digest), work)
        # Section 6: until this site has sent Unmask, a new attempt masks the same integers again.
        given = self._stored[1]
        self._phase, answer = secagg_site.mask(shared, given.values, given.lanes)
        return answer

    def _acknowledge(self, message: bytes) -> bytes:
        if not isinstance(self._phase, secagg_site.Masked):
            raise _out_of_order("survivors")
        self._phase, answer = secagg_site.acknowledge(self._phase, message)
        return answer

    def _reveal(self, message: bytes) -> bytes:
        if not isinstance(self._phase, secagg_site.Acknowledged):
            raise _out_of_order("unmask")
        _, answer = secagg_site.reveal(self._phase, message)
        self._phase = self._stored = self._state = None
        if self._once:
            self._grouped = None
        return answer


KINDS = ("hello", "roster", "group", "start", "cohort", "survivors", "unmask")
_WORDS: dict[Kind, Literal["train", "evaluate"]] = {Kind.TRAIN: "train", Kind.EVALUATE: "evaluate"}


def _out_of_order(kind: str) -> ProtocolError:
    return ProtocolError(f"expected another message than {kind} now; nothing was sent")
