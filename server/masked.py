"""The masked sum: the server's messages of one attempt, in order, over an exchange of bytes.

The checks and the sum are the protocol's (privacy.secagg_server). A site's vector is folded as it
arrives, masked as it is; what is opened is the sum over the survivors.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from privacy import secagg_server
from privacy.errors import AbsentError, ProtocolError
from privacy.roster import Kind
from privacy.secagg_server import Coordinator, Run, RunningSum
from privacy.wire import Counter
from server.rounds import Exchange, Opened, Order
from shared_models.messages import RUN_BYTES, call_to_run, order_with_state
from shared_models.strategies import state_hash

_KINDS = {"train": Kind.TRAIN, "evaluate": Kind.EVALUATE}


class MaskedSum:
    """Opens sums; keeps one run of the protocol for as long as all its members answer."""

    def __init__(
        self,
        coordinator: Callable[[Sequence[str]], Coordinator],
        places: Callable[[Sequence[str]], tuple[int, ...]],
        deadline_s: float,
        once: bool = False,
    ) -> None:
        """Wait for an order.

        Args:
            coordinator: the server's keys, plan and roster for a run of these sites.
            places: the places of these sites in the whole roster; () when they are all of it.
            deadline_s: of one exchange.
            once: a run ends with its first sum, for the sites too; simulated cohorts only.
        """
        self._coordinator, self._places, self._deadline_s = coordinator, places, deadline_s
        self._once = once
        self._run: tuple[tuple[str, ...], Run] | None = None

    def __call__(self, exchange: Exchange, order: Order) -> Opened:
        """Ask the order's sites and return the sum of those that stayed to the end.

        Raises:
            ProtocolError: too few sites, or one that broke the protocol; nothing was opened.
            AbsentError: no site answered at all.
        """
        run = self._set_up(exchange, order.sites)
        self._run = None  # only an attempt that all members finish leaves the run usable
        counter = Counter(order.round, order.attempt)
        kind = _KINDS[order.kind]
        started, start = secagg_server.start_round(run, counter, kind, state_hash(order.state))
        talk = _Talk(exchange, order.sites, self._deadline_s)
        message = order_with_state(start, order.state)
        formed = secagg_server.form_cohort(started, talk.all("start", run.members, message))
        running = RunningSum(formed)
        for site, reply in talk.each("cohort", formed.cohort, formed.message):
            running.add(site, reply)
        closed, survivors = secagg_server.close(running)
        acks = talk.all("survivors", closed.survivors, survivors)
        agreed, ack_set = secagg_server.agree_survivors(closed, acks)
        opened = secagg_server.open_sum(agreed, talk.all("unmask", agreed.survivors, ack_set))
        if not self._once and len(opened.survivors) == len(order.sites) and not opened.refused:
            self._run = (order.sites, run)
        return Opened(
            opened.values.astype(np.int64),
            opened.lanes.copy(),
            tuple(order.sites[index] for index in opened.survivors),
        )

    def _set_up(self, exchange: Exchange, sites: tuple[str, ...]) -> Run:
        """Return the run that is still good, or set up a new one (messages 1 to 3)."""
        if self._run is not None and self._run[0] == sites:
            return self._run[1]
        server = self._coordinator(sites)
        talk = _Talk(exchange, sites, self._deadline_s)
        run = os.urandom(RUN_BYTES)
        everyone = tuple(range(len(sites)))
        call = call_to_run(run, self._places(sites))
        gathered, roster = secagg_server.gather(server, run, talk.all("hello", everyone, call))
        parts = talk.all("roster", gathered.members, roster)
        ready, messages = secagg_server.relay(gathered, parts)
        confirmed = {i for i, _ in talk.each("group", ready.members, messages.__getitem__)}
        if confirmed != set(ready.members):
            missing = [sites[index] for index in ready.members if index not in confirmed]
            raise ProtocolError(
                f"message 3: expected all members to go on, {', '.join(missing)} did not; "
                "nothing was opened"
            )
        return ready


class _Talk:
    """Exchanges with sites by their place in the run instead of their names."""

    def __init__(self, exchange: Exchange, sites: tuple[str, ...], deadline_s: float) -> None:
        self._exchange, self._sites, self._deadline_s = exchange, sites, deadline_s

    def all(self, kind: str, members: Sequence[int], message: bytes) -> Iterator[tuple[int, bytes]]:
        """Send the same message to all members."""
        return self.each(kind, members, dict.fromkeys(members, message).__getitem__)

    def each(
        self, kind: str, members: Sequence[int], message: Callable[[int], bytes]
    ) -> Iterator[tuple[int, bytes]]:
        """Send each member its message, made when it is sent; yield answers as they arrive."""
        outgoing = _Outgoing({self._sites[member]: member for member in members}, message)
        silent = True
        for site, reply in self._exchange(kind, outgoing, self._deadline_s):
            silent = False
            yield outgoing.members[site], reply
        if silent:
            raise AbsentError(f"{kind}: expected answers, none of {len(members)} sites was there")


class _Outgoing(Mapping[str, bytes]):
    """Messages that are made when they are sent, so that they are never all in memory."""

    def __init__(self, members: Mapping[str, int], message: Callable[[int], bytes]) -> None:
        self.members, self._message = members, message

    def __getitem__(self, site: str) -> bytes:
        return self._message(self.members[site])

    def __contains__(self, site: object) -> bool:
        return site in self.members

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)
