"""A site's part in masked rounds: it walks the phases of the protocol and trains when it may.

The checks are the protocol's (privacy.secagg_*), the work is the site's; here is their order, and
that what must outlive a crash is in the store before it is sent.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from client.lineage import Known, Lineage
from client.site import Contribution, Site
from privacy import secagg_setup, secagg_site
from privacy.errors import ProtocolError
from privacy.heads import Heads, countersign
from privacy.roster import Kind
from privacy.secagg_messages import NO_RESULT, Result, RoundStart, result_hash
from privacy.secagg_replay import replay
from privacy.wire import Counter, read, read_header
from shared_models.messages import PLACES_MAX, Opening, checkable, greeting, place, read_call

# The numbers of a run's members in the whole roster (none: everyone) -> the site's place in it.
Member = Callable[[tuple[int, ...]], secagg_setup.Site]
START = Counter(0, 0)


class Store(Protocol):
    """What a participant remembers; `privacy.secagg_store.SiteStore` keeps it on disk."""

    def begin_run(self, run: bytes) -> None: ...  # noqa: D102 - as SiteStore says
    def counters(self) -> Mapping[int, Counter]: ...  # noqa: D102
    def raise_counters(self, seen: Mapping[int, Counter]) -> None: ...  # noqa: D102
    def advance(self, own: int, counter: Counter) -> None: ...  # noqa: D102
    def acknowledge(  # noqa: D102
        self, run: bytes, counter: Counter, cohort: bytes, survivors: tuple[int, ...]
    ) -> None: ...
    def answer(self, run: bytes, counter: Counter, ack_set: bytes) -> bytes | None: ...  # noqa: D102
    def keep_answer(  # noqa: D102
        self, run: bytes, counter: Counter, ack_set: bytes, answer: bytes
    ) -> None: ...
    def work(  # noqa: D102
        self, kind: Kind, model: bytes
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]] | None: ...
    def keep_work(  # noqa: D102
        self,
        kind: Kind,
        model: bytes,
        values: npt.NDArray[np.int32],
        lanes: npt.NDArray[np.int64],
    ) -> None: ...
    def states(self) -> list[tuple[bytes, bytes]]: ...  # noqa: D102
    def keep_state(self, blob: bytes, result: bytes) -> None: ...  # noqa: D102
    def take_back(self, result: bytes) -> None: ...  # noqa: D102
    def check_exact(self, model: bytes, survivors: tuple[int, ...] | None) -> None: ...  # noqa: D102
    def open_exact(self, model: bytes, survivors: tuple[int, ...]) -> None: ...  # noqa: D102


class _Ordered(NamedTuple):
    """After message 4, with the state that the order is on: the own one may move on meanwhile."""

    advertised: secagg_site.Advertised
    known: Known


_Phase = (
    secagg_setup.Greeted
    | secagg_setup.Joined
    | _Ordered
    | secagg_site.Masked
    | secagg_site.Acknowledged
    | None
)


class Participant:
    """One site's place in a run; a message out of order is refused and changes nothing."""

    def __init__(
        self,
        site: Site,
        member: Member,
        lineage: Lineage,
        store: Store,
        once: bool = False,
        heads: Heads | None = None,
    ) -> None:
        """Wait for a run.

            Args:
        site: does the work.
        member: the site's keys, plan and place.
        lineage: steps from state to state; one for all sites of a process.
        store: remembers what must outlive a crash.
        once: a run ends with its first sum and its members may never have met: simulated
            cohorts only. States are then taken from the server.
        heads: keeps how long peers' ledgers were, over all studies; None in a simulation.
        """
        self._site, self._member, self._lineage = site, member, lineage
        self._store, self._once, self._heads = store, once, heads
        self._phase: _Phase = None
        self._grouped: secagg_setup.Grouped | None = None
        # Kept until its Result is checked or another answer is given: a server that restarts may
        # open it although it has begun another attempt since.
        self._revealed: secagg_site.Revealed | None = None
        # What it computed itself and the Result that led there, newest first: the present place
        # and the one before, to which the server may have to go back (section 6).
        self._places = [
            (replace(lineage.told(blob), computed=True), result) for blob, result in store.states()
        ]
        self._known: Known | None = None
        self._result = NO_RESULT
        if self._places:
            self._known, self._result = self._places[0]

    @property
    def known(self) -> Known | None:
        """The state as the site knows it: after the last sum that it checked."""
        return self._known

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
            "result": self._finish,
        }
        return steps[kind](message)

    def _hello(self, message: bytes) -> bytes:
        run, members = read_call(message)
        member = self._member(members)
        self._store.begin_run(run)
        self._grouped = None
        last = self._store.counters().get(member.index, START)
        self._phase, answer = secagg_setup.hello(member, run, last, self._site.ledger_head())
        names = self._vouched()
        if self._revealed is not None:
            names.append(checkable(self._revealed.attempt.run, self._revealed.attempt.counter))
        return greeting(answer, names)

    def _join(self, message: bytes) -> bytes:
        if not isinstance(self._phase, secagg_setup.Greeted):
            raise _out_of_order("roster")
        highest = {} if self._once else self._store.counters()
        place = self._phase.site
        owners = [member.public for member in place.roster.sites]
        heads = self._heads
        seen = {} if heads is None else {i: heads.latest(one) for i, one in enumerate(owners)}
        self._phase, answer = secagg_setup.join(self._phase, message, highest, seen)
        if heads is not None:
            for index, head in self._phase.heads.items():
                heads.keep(countersign(place.identity, owners[index], head), owners)
        if not self._once:
            self._store.raise_counters(self._phase.highest)
        return answer

    def _group(self, message: bytes) -> bytes:
        if not isinstance(self._phase, secagg_setup.Joined):
            raise _out_of_order("group")
        self._grouped, self._phase = secagg_setup.group(self._phase, message), None
        return b""

    def _start(self, message: bytes) -> bytes:
        grouped = self._grouped
        if grouped is None:
            raise _out_of_order("start")
        order, trail, blob = self._lineage.directions(message)
        for opening in trail:
            self._follow(opening, grouped)
        begin = read(RoundStart, order).message
        known, result = self._adopt(begin, blob)
        self._lineage.round(known, begin.kind, begin.header.counter)
        expected = secagg_site.Expected(begin.kind, known.digest, result)
        last = self._store.counters().get(grouped.site.index, START)
        computed = known.computed or self._once
        phase, answer = secagg_site.start(grouped, order, expected, last, computed)
        self._store.advance(grouped.site.index, phase.attempt.counter)
        self._phase, self._known, self._result = _Ordered(phase, known), known, result
        if known.computed and self._places and self._places[0][1] != result:
            # The last sum was taken back: what followed from it is of no use to anybody.
            self._places = [one for one in self._places if one[1] == result]
            self._store.take_back(result)
        return answer

    def _vouched(self) -> list[bytes]:
        """Return the places that the site computed itself, newest first; the first is the plan's.

        Those it goes on from whenever the server asks: a sum that is opened again on one of them
        is of fresh draws, and debited (section 6).
        """
        own = [place(known.digest, result) for known, result in self._places]
        return [*own, place(self._lineage.first_model, NO_RESULT)][:PLACES_MAX]

    def _follow(self, opening: Opening, grouped: secagg_setup.Grouped) -> None:
        """Check one opened sum and take its step, when it follows the own state (section 6)."""
        known, revealed = self._known, self._revealed
        begin = read(RoundStart, opening.start).message
        if known is None or begin.model != known.digest or begin.result != self._result:
            return  # an older one, or of a state that this site does not have
        kind = begin.kind
        self._lineage.round(known, kind, begin.header.counter)
        if revealed is not None and (revealed.attempt.run, revealed.attempt.counter) == (
            begin.header.run,
            begin.header.counter,
        ):
            try:
                sums = secagg_site.check(revealed, opening.result)
            except secagg_site.SpoiltSumError:
                self._revealed = None  # it will be no better: the server must take it back
                raise
        elif begin.header.run == grouped.run:
            expected = secagg_site.Expected(kind, known.digest, self._result)
            sums = replay(grouped, *opening, expected)
        else:
            return  # missed in an earlier run, whose key is gone
        names = tuple(member.name for member in grouped.site.roster.sites)
        self._known = self._lineage.after(known, kind, sums, names)
        self._result, self._revealed = sums.result_hash, None
        if self._known.computed:
            self._places = [(self._known, self._result), *self._places][:PLACES_MAX]
            self._store.keep_state(self._known.blob, self._result)

    def _adopt(self, begin: RoundStart, blob: bytes) -> tuple[Known, bytes]:
        """Return state and last result: the own ones, or the server's where no way leads there.

        Nothing is kept here: neither signature nor hash is checked yet.
        """
        own, asked = self._known, (begin.model, begin.result)
        if own is not None and (own.digest, self._result) == asked:
            return own, self._result
        for known, result in self._places:  # also the one before the last sum
            if result == begin.result:
                return known, result  # `secagg_site.start` refuses another model
        told = self._lineage.told(blob) if blob else None
        vouched = place(*asked) in self._vouched()  # the plan's first state, again
        if own is not None and own.computed and not vouched and not self._missed(own, begin, told):
            if own.digest == begin.model:
                return own, self._result  # `secagg_site.start` refuses the other result
            raise ProtocolError(
                "message 4: expected the hash of the own model and state, got another; "
                "nothing was sent"
            )
        if told is None:
            raise ProtocolError("message 4: expected a state to start from, got none")
        # Nobody but those who computed it can vouch for it: `secagg_site.admit` counts them.
        return (told if vouched else replace(told, computed=False)), begin.result

    def _missed(self, own: Known, begin: RoundStart, told: Known | None) -> bool:
        """Say whether sums may have been opened without this site since its own state."""
        if own.digest == begin.model:
            return begin.kind is Kind.TRAIN and self._lineage.evaluated(own.state.round)
        return told is not None and told.state.round > own.state.round

    def _contribute(self, message: bytes) -> bytes:
        if not isinstance(self._phase, _Ordered):
            raise _out_of_order("cohort")
        shared, known = secagg_site.admit(self._phase.advertised, message), self._phase.known
        attempt = shared.attempt
        if not self._once:
            self._store.raise_counters(dict.fromkeys(shared.cohort, attempt.counter))
        if self._is_exact(attempt):
            self._store.check_exact(attempt.model, None)
        # Section 6: until this site has sent Unmask, a new attempt masks the same integers again.
        stored = self._store.work(attempt.kind, attempt.model)
        if stored is None:
            number = self._lineage.round(known, attempt.kind, attempt.counter)
            again = (attempt.counter.round - number) << 16 | attempt.counter.attempt
            work = self._site.contribute(_WORDS[attempt.kind], known.state, number, again)
            # Section 7: in mode distributed every attempt is a draw and a debit of its own.
            if not self._lineage.draws_afresh:
                self._store.keep_work(attempt.kind, attempt.model, work.values, work.lanes)
        else:
            work = Contribution(*stored)
        self._phase, answer = secagg_site.mask(shared, work.values, work.lanes)
        return answer

    def _is_exact(self, attempt: secagg_site.Attempt) -> bool:
        """Say whether held-out records are about to be summed without noise (section 7)."""
        return attempt.kind is Kind.EVALUATE and self._lineage.opens_once

    def _acknowledge(self, message: bytes) -> bytes:
        if not isinstance(self._phase, secagg_site.Masked):
            raise _out_of_order("survivors")
        phase, answer = secagg_site.acknowledge(self._phase, message)
        attempt = phase.attempt
        if self._is_exact(attempt):
            self._store.check_exact(attempt.model, phase.survivors)
        self._store.acknowledge(attempt.run, attempt.counter, phase.cohort_hash, phase.survivors)
        self._phase = phase
        return answer

    def _reveal(self, message: bytes) -> bytes:
        header = read_header(message)
        asked = hashlib.sha256(message).digest()
        given = self._store.answer(header.run, header.counter, asked)
        if given is not None:
            return given  # section 2, message 11: the same bytes to the same AckSet
        if not isinstance(self._phase, secagg_site.Acknowledged):
            raise _out_of_order("unmask")
        revealed, answer = secagg_site.reveal(self._phase, message)
        if self._is_exact(revealed.attempt):
            self._store.open_exact(revealed.attempt.model, revealed.survivors)
        self._store.keep_answer(revealed.attempt.run, revealed.attempt.counter, asked, answer)
        self._phase, self._revealed = None, revealed
        if self._once:
            self._grouped = self._revealed = None
        return answer

    def _finish(self, message: bytes) -> bytes:
        """Check the study's last sum; no round follows that would carry it."""
        if self._grouped is None:
            raise _out_of_order("result")
        trail = self._lineage.directions(message).trail
        for opening in trail:
            self._follow(opening, self._grouped)
        if not trail or result_hash(read(Result, trail[-1].result)) != self._result:
            raise ProtocolError(
                "message 12: expected a sum that follows the own state, got another; it is left out"
            )
        return b""


KINDS = ("hello", "roster", "group", "start", "cohort", "survivors", "unmask", "result")
_WORDS: dict[Kind, Literal["train", "evaluate"]] = {
    Kind.TRAIN: "train",
    Kind.EVALUATE: "evaluate",
}


def _out_of_order(kind: str) -> ProtocolError:
    return ProtocolError(f"expected another message than {kind} now; nothing was sent")
