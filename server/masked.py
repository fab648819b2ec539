"""The masked sum: the server's messages of one attempt, in order, over an exchange of bytes.

The checks and the sum are the protocol's (privacy.secagg_server). A site's vector is folded as it
arrives, masked as it is; what is opened is the sum over the survivors.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from privacy import secagg_server
from privacy.errors import AbsentError, ProtocolError
from privacy.roster import Kind, colluders_max
from privacy.secagg_messages import NO_RESULT, Result, RoundStart, result_hash
from privacy.secagg_server import Agreed, Coordinator, Formed, Run, RunningSum
from privacy.secagg_suspend import resume, suspend
from privacy.wire import Counter, read, read_header
from server.rounds import Exchange, Opened, Order, UnvouchedError
from server.store import Order as Place
from server.store import ServerStore
from shared_models.messages import (
    PLACES_MAX,
    RUN_BYTES,
    Opening,
    call_to_run,
    checkable,
    directions,
    place,
    read_greeting,
)
from shared_models.strategies import state_hash

_KINDS = {"train": Kind.TRAIN, "evaluate": Kind.EVALUATE}
_WORDS: dict[Kind, Literal["train", "evaluate"]] = {
    Kind.TRAIN: "train",
    Kind.EVALUATE: "evaluate",
}
Stand = tuple[bytes, Kind | None]  # a model's hash and what is to be done with it; None: nothing
_LOG = logging.getLogger("fedward.server")


class MaskedSum:
    """Opens sums; keeps one run of the protocol for as long as all its members answer."""

    def __init__(
        self,
        coordinator: Callable[[Sequence[str]], Coordinator],
        places: Callable[[Sequence[str]], tuple[int, ...]],
        deadline_s: float,
        once: bool = False,
        store: ServerStore | None = None,
    ) -> None:
        """Wait for an order.

        Args:
            coordinator: the server's keys, plan and roster for a run of these sites.
            places: the places of these sites in the whole roster; () when they are all of it.
            deadline_s: of one exchange.
            once: a run ends with its first sum, for the sites too; simulated cohorts only.
            store: keeps counters and the open attempt across a crash; a simulation, whose sites
                end with their server, needs none.
        """
        self._coordinator, self._places, self._deadline_s = coordinator, places, deadline_s
        self._once, self._store = once, store
        self._before = store  # what another process may have left open; looked at once
        self._run: Run | None = None
        self._trail: list[Opening] = []  # sums that some member may not have followed yet
        self._result = NO_RESULT
        self._last: tuple[bytes, bytes, secagg_server.Opened] | None = None
        # The last orders, oldest first, and the Result that each started after.
        self._orders: dict[Place, bytes] = {} if store is None else store.orders()
        self._counter = Counter(0, 0) if store is None else store.counter()
        self._suspicious = False  # whether a sum was taken back: then vectors are hashed on arrival

    def __call__(self, exchange: Exchange, order: Order) -> Opened:
        """Ask the order's sites and return the sum of those that stayed to the end.

        Raises:
            ProtocolError: too few sites, or one that broke the protocol; nothing was opened.
            UnvouchedError: too few sites computed the state: the last sum is to be taken back.
            AbsentError: no site answered at all.
        """
        digest = state_hash(order.state)
        stand = (digest, _KINDS[order.kind])
        finished = self._pick_up(exchange, order.sites, stand)
        if finished is not None:
            return finished
        self._extend_trail(digest)
        self._stand(stand)
        run, formed, start = self._form(exchange, order, digest)
        talk = _Talk(exchange, order.sites, self._deadline_s)
        complete = len(formed.cohort) == _present(run)
        if complete:
            self._trail = []  # who is ready has followed it
        running = RunningSum(formed, hashing=self._suspicious)
        for site, reply in talk.each("cohort", formed.cohort, formed.message):
            running.add(site, reply)
            del reply  # a vector: let go of it before the next one arrives
        closed, survivors = secagg_server.close(running)
        acks = talk.all("survivors", closed.survivors, survivors)
        agreed, ack_set = secagg_server.agree_survivors(closed, acks)
        if self._store is not None:
            self._store.keep_attempt(*suspend(agreed, start, ack_set))
        opened = secagg_server.open_sum(agreed, talk.all("unmask", agreed.survivors, ack_set))
        self._note(agreed, start, ack_set, opened)
        # A member that was silent has no keys any more, or is gone: the next sum is a new run.
        if complete and not self._once:
            self._run = run
        for site, reason in sorted({**formed.refused, **opened.refused}.items()):
            _LOG.warning("round %d: %s was left out: %s", order.round, order.sites[site], reason)
        return _named(opened, order.sites)

    def _form(self, exchange: Exchange, order: Order, digest: bytes) -> tuple[Run, Formed, bytes]:
        """Start an attempt and return its run, cohort and RoundStart (messages 4 to 6).

        In a run that is going on, sites that refuse the last sum do so here. Nothing was masked
        and no record read, so a new run, in which they say what they computed, is the same attempt.
        """
        going_on = self._run is not None
        try:
            return self._start(exchange, order, digest)
        except ProtocolError as error:
            if not going_on:
                raise
            _LOG.warning("round %d: %s; a new run begins", order.round, error)
        return self._start(exchange, order, digest)

    def _start(self, exchange: Exchange, order: Order, digest: bytes) -> tuple[Run, Formed, bytes]:
        run, new = self._set_up(exchange, order.sites, (digest, _KINDS[order.kind]))
        counter = self._next_counter(Counter(order.round, order.attempt))
        started, start = secagg_server.start_round(
            run, counter, _KINDS[order.kind], digest, self._result
        )
        talk = _Talk(exchange, order.sites, self._deadline_s)
        self._run = None  # a failed attempt ends the run
        message = directions(start, self._trail, order.state if new else b"")
        formed = secagg_server.form_cohort(started, talk.all("start", started.members, message))
        return run, formed, start

    def _next_counter(self, wanted: Counter) -> Counter:
        """Take a counter above all before: also when a sum was taken back and its round is due."""
        last = self._counter
        self._counter = wanted if wanted > last else Counter(last.round, last.attempt + 1)
        if self._store is not None:
            self._store.keep_counter(self._counter)
        return self._counter

    def _stand(self, order: Place) -> None:
        """Note the Result that an order starts after; one known from before is gone back to."""
        if order in self._orders and self._orders[order] != self._result:
            self._result, self._trail = self._orders[order], []
            return
        self._orders[order] = self._result
        self._orders = dict(list(self._orders.items())[-PLACES_MAX:])
        if self._store is not None:
            self._store.keep_orders(self._orders)

    def _check_vouched(self, stand: Stand, named: Sequence[tuple[bytes, ...]], n: int) -> None:
        """Check that enough sites computed the order's state, or take the last sum back.

        A site that did not compute it wants floor((n-1)/3) + 1 others that did (section 6). Who
        can check the last sum will have computed it.
        """
        needed = colluders_max(n) + 1
        names = {place(stand[0], self._result)}
        if self._trail:
            last = read_header(self._trail[-1].start)
            names.add(checkable(last.run, last.counter))
        if sum(not names.isdisjoint(one) for one in named) >= needed:
            return
        # Only one sum back: for more, that many sites were there, and are to be waited for.
        for (model, kind), result in reversed(self._orders.items()):
            if (model, kind) == stand:
                continue
            if sum(place(model, result) in one for one in named) < needed:
                break
            self._suspicious = True
            self._orders = {(model, kind): result}
            if self._store is not None:
                self._store.keep_orders(self._orders, forget_sum=True)
            raise UnvouchedError(
                f"expected {needed} sites that computed the state, got fewer: they refused the "
                "last sum or lost its key; it is taken back",
                model,
                _WORDS[kind],
            )
        raise ProtocolError(
            f"expected {needed} sites that computed the state or the one before it, got fewer; "
            "nothing was opened"
        )

    def _note(
        self, agreed: Agreed, start: bytes, ack_set: bytes, opened: secagg_server.Opened
    ) -> None:
        """Keep a sum that has just been opened."""
        if self._store is not None:
            self._store.keep_attempt(*suspend(agreed, start, ack_set, opened))
        # Once a run is over with its sum, nobody is told it, and it need not stay.
        self._last = None if self._once else (start, ack_set, opened)

    def _pick_up(self, exchange: Exchange, sites: tuple[str, ...], stand: Stand) -> Opened | None:
        """Finish what a server that stopped had begun; return the sum when it is the one wanted.

        Sites that gave their answer give the same bytes again, so nothing new is opened.
        """
        store, self._before = self._before, None
        kept = None if store is None else store.last_attempt()
        if kept is None:
            return None
        agreed, start, ack_set, opened = resume(self._coordinator(sites), *kept)
        begin = read(RoundStart, start).message
        same = (begin.model, begin.kind) == stand
        self._result = begin.result  # what the sites had before it
        if opened is not None:
            self._last = (start, ack_set, opened)
        elif same:
            talk = _Talk(exchange, sites, self._deadline_s)
            answers = talk.all("unmask", agreed.survivors, ack_set)
            opened = secagg_server.open_sum(agreed, answers)
            self._note(agreed, start, ack_set, opened)
        else:
            return None  # an attempt that was given up
        return _named(opened, sites) if same else None

    def finish(self, exchange: Exchange, sites: tuple[str, ...], state: bytes) -> None:
        """Tell the sites the last sum, until so many have checked it that it can be believed.

        Raises:
            UnvouchedError: too few can check it: it is to be taken back.
            ProtocolError, AbsentError: too few sites were there to say.
        """
        stand = (state_hash(state), None)
        self._pick_up(exchange, sites, stand)
        self._extend_trail(stand[0])
        if not self._trail:
            return  # there was none, or sites of a simulated cohort do not follow it
        needed = colluders_max(self._coordinator(sites).plan.n) + 1
        for _ in range(3):  # who refuses the sum says so in the greeting of the next run
            run, _ = self._set_up(exchange, sites, stand)
            if self._confirmed(exchange, sites, run) >= needed:
                return
            self._run = None
        raise ProtocolError(
            f"expected {needed} sites that checked the last sum, got fewer; it is not believed yet"
        )

    def _confirmed(self, exchange: Exchange, sites: tuple[str, ...], run: Run) -> int:
        """Return how many members followed the last sum."""
        talk = _Talk(exchange, sites, self._deadline_s)
        message, confirmed = directions(b"", self._trail, b""), 0
        with suppress(AbsentError):  # a site that refuses it is as silent as one that is gone
            for _, reply in talk.all("result", run.members, message):
                confirmed += reply == b""
        return confirmed

    def _extend_trail(self, digest: bytes) -> None:
        """Add the last sum to the trail, now that the state it led to is known."""
        if self._last is None:
            return
        start, ack_set, opened = self._last
        result = secagg_server.write_result(opened, digest)
        self._result = result_hash(read(Result, result))
        self._trail = [*self._trail, Opening(start, ack_set, result)]
        self._last = None

    def _set_up(self, exchange: Exchange, sites: tuple[str, ...], stand: Stand) -> tuple[Run, bool]:
        """Return the run that is still good, or a new one (messages 1 to 3); and whether new."""
        if self._run is not None:
            return self._run, False
        # Of the runs before, only the last sum can still be checked: by those who revealed it.
        self._trail = self._trail[-1:]
        server = self._coordinator(sites)
        talk = _Talk(exchange, sites, self._deadline_s)
        run = os.urandom(RUN_BYTES)
        everyone = tuple(range(len(sites)))
        call = call_to_run(run, self._places(sites))
        greetings: dict[int, tuple[bytes, ...]] = {}
        hellos = _greeted(talk.all("hello", everyone, call), greetings)
        gathered, roster = secagg_server.gather(server, run, hellos)
        if not self._once:
            named = [greetings[index] for index in gathered.members]
            self._check_vouched(stand, named, server.plan.n)
        parts = talk.all("roster", gathered.members, roster)
        ready, messages = secagg_server.relay(gathered, parts)
        confirmations = talk.each("group", ready.members, messages.__getitem__)
        # Empty: anything else is a late answer to another message.
        confirmed = {index for index, reply in confirmations if reply == b""}
        if confirmed != set(ready.members):
            missing = [sites[index] for index in ready.members if index not in confirmed]
            raise ProtocolError(
                f"message 3: expected all members to go on, {', '.join(missing)} did not; "
                "nothing was opened"
            )
        self._run = ready
        return ready, True


def _greeted(
    answers: Iterator[tuple[int, bytes]], names: dict[int, tuple[bytes, ...]]
) -> Iterator[tuple[int, bytes]]:
    """Yield each site's RunHello; put aside from where it can go on."""
    for site, answer in answers:
        with suppress(ProtocolError):  # no greeting: as if it had not answered
            hello, known = read_greeting(answer)
            names.setdefault(site, known)
            yield site, hello


def _present(run: Run) -> int:
    """Return how many sites a run would have with everybody in it: a revoked one never returns."""
    return sum(not site.revoked for site in run.server.roster.sites)


def _named(opened: secagg_server.Opened, sites: tuple[str, ...]) -> Opened:
    """Return the sum as the rounds know it: a view, since a copy would be another vector."""
    names = tuple(sites[index] for index in opened.survivors)
    values = opened.values
    values.flags.writeable = False  # the sites are still to be shown them
    return Opened(values, opened.lanes.copy(), names)


class _Talk:
    """Exchanges with sites by their place in the run instead of their names."""

    def __init__(self, exchange: Exchange, sites: tuple[str, ...], deadline_s: float) -> None:
        self._exchange, self.sites, self._deadline_s = exchange, sites, deadline_s

    def all(self, kind: str, members: Sequence[int], message: bytes) -> Iterator[tuple[int, bytes]]:
        """Send the same message to all members."""
        return self.each(kind, members, dict.fromkeys(members, message).__getitem__)

    def each(
        self, kind: str, members: Sequence[int], message: Callable[[int], bytes]
    ) -> Iterator[tuple[int, bytes]]:
        """Send each member its message, made when it is sent; yield answers as they arrive."""
        outgoing = _Outgoing({self.sites[member]: member for member in members}, message)
        silent = True
        for site, reply in self._exchange(kind, outgoing, self._deadline_s):
            silent = False
            yield outgoing.members[site], reply
            del reply  # it may be a vector
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
