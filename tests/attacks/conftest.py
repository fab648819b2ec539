"""The cast of the attacks: honest sites, an honest server, and a liar who alters any message.

Sites are walked through the public phases of the protocol with their stores; the server is the
project's own, and what it sends or receives is bent on the way. Nothing is expected of anybody
here: what must follow from a lie stands in each test.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy import keys, secagg_server, secagg_setup, secagg_site
from privacy.encoding import ring_bound
from privacy.errors import ProtocolError
from privacy.roster import Kind, Member, Plan, Roster
from privacy.secagg_messages import AckSet, SurvivorAck
from privacy.secagg_setup import SETUP, Site
from privacy.secagg_store import SiteStore
from privacy.wire import SERVER, Counter, read, write

STEPS = ("hello", "roster", "group", "start", "cohort", "survivors", "unmask", "result")
RUN = bytes(range(16))
MODEL = bytes([7]) * 32
FIRST = Counter(1, 0)

TAKES: dict[str, Any] = {  # the phase that a step goes on from
    "roster": secagg_setup.Greeted,
    "group": secagg_setup.Joined,
    "start": object,  # any: a new attempt may begin at every moment
    "cohort": secagg_site.Advertised,
    "survivors": secagg_site.Masked,
    "unmask": secagg_site.Acknowledged | secagg_site.Revealed,
    "result": secagg_site.Revealed,
}

Lie = Callable[[bytes], bytes | None]  # the message -> what arrives instead; None: nothing does


class Hospital:
    """An honest site: it stores before it sends, and a refused message changes nothing."""

    def __init__(self, site: Site, values: Any, lanes: Any, store: SiteStore) -> None:
        self.site, self.values, self.lanes, self.store = site, values, lanes, store
        self.expected = secagg_site.Expected(Kind.TRAIN, MODEL)
        self.watch: Callable[[Any], object] = lambda phase: None  # shown every phase
        self.phase: Any = None
        self.grouped: Any = None

    def answer(self, step: str, data: bytes) -> Any:
        """Return the answer to one message of the server; of Result, the sums it believes.

        Raises:
            ProtocolError: a check failed, or the message is out of order.
        """
        in_order = step == "hello" or isinstance(self.phase, TAKES[step])
        if not in_order or (step == "start" and self.grouped is None):
            raise ProtocolError(f"expected another message than {step} now; nothing was sent")
        return getattr(self, f"_{step}")(data)

    def _hello(self, run: bytes) -> bytes:
        self.store.begin_run(run)
        self.grouped = None
        return self._go(*secagg_setup.hello(self.site, run, self._last()))

    def _roster(self, data: bytes) -> bytes:
        phase, answer = secagg_setup.join(self.phase, data, self.store.counters())
        self.store.raise_counters(phase.highest)
        return self._go(phase, answer)

    def _group(self, data: bytes) -> bytes:
        self.grouped = secagg_setup.group(self.phase, data)
        return self._go(self.grouped, b"")

    def _start(self, data: bytes) -> bytes:
        phase, answer = secagg_site.start(self.grouped, data, self.expected, self._last())
        self.store.advance(self.site.index, phase.attempt.counter)
        return self._go(phase, answer)

    def _cohort(self, data: bytes) -> bytes:
        shared = secagg_site.admit(self.phase, data)
        self.watch(shared)
        return self._go(*secagg_site.mask(shared, self.values, self.lanes))

    def _survivors(self, data: bytes) -> bytes:
        phase, answer = secagg_site.acknowledge(self.phase, data)
        run, counter = phase.attempt.run, phase.attempt.counter
        self.store.acknowledge(run, counter, phase.cohort_hash, phase.survivors)
        return self._go(phase, answer)

    def _unmask(self, data: bytes) -> bytes:
        run, counter = self.phase.attempt.run, self.phase.attempt.counter
        given = self.store.answer(run, counter, data)
        if given is not None:
            return given
        phase, answer = secagg_site.reveal(self.phase, data)
        self.store.keep_answer(run, counter, data, answer)
        return self._go(phase, answer)

    def _result(self, data: bytes) -> secagg_site.Sums:
        return secagg_site.check(self.phase, data)

    def _go(self, phase: Any, answer: bytes) -> bytes:
        self.phase = phase
        self.watch(phase)
        return answer

    def _last(self) -> Counter:
        return self.store.counters().get(self.site.index, SETUP)


@dataclass
class Outcome:
    """What came of a play: who said what, who refused and why, what was opened and believed."""

    said: dict[int, list[tuple[str, bytes]]]
    wire: list[tuple[str, str, int, bytes]] = field(default_factory=list)  # (way, step, site, data)
    refusals: dict[int, ProtocolError] = field(default_factory=dict)
    ended: str = ""  # why the server gave up
    opened: secagg_server.Opened | None = None
    sums: dict[int, secagg_site.Sums] = field(default_factory=dict)


class Federation:
    """n honest sites and their server; ``lies`` bend what a site is told, ``forgeries`` what it
    says. Both map (step, site) to a `Lie`, and (step, None) stands for every site."""

    def __init__(self, n: int, values: int, lanes: int, folder: Path | None, **plan: Any) -> None:
        self.identities = [keys.identity(bytes([1 + site]) * 32) for site in range(n)]
        self.boss = keys.identity(bytes([255]) * 32)
        members = [Member(f"site-{i}", one.public) for i, one in enumerate(self.identities)]
        self.roster = Roster(tuple(members), self.boss.public)
        self.plan = Plan(bytes([1]) * 32, n, values, train_lanes=lanes, **plan)
        self.server = secagg_server.Coordinator(self.boss, self.plan, self.roster)
        self.folder = folder
        self.hospitals = [self.hospital(index) for index in range(n)]
        self.lies: dict[tuple[str, int | None], Lie] = {}
        self.forgeries: dict[tuple[str, int | None], Lie] = {}
        self.run: Any = None
        self.outcome = Outcome({index: [] for index in range(n)})

    def hospital(self, index: int) -> Hospital:
        """A site as it is after a start of its computer: only its store knows the past."""
        draw = np.random.default_rng(index)
        bound = ring_bound(self.plan.ring_bits, self.plan.n)
        values = draw.integers(-bound, bound, self.plan.values, endpoint=True).astype(np.int32)
        lanes = draw.integers(-(2**50), 2**50, self.plan.train_lanes)
        entropy = random.Random(1000 + index).randbytes
        site = Site(self.identities[index], index, self.plan, self.roster, entropy)
        store = SiteStore(self.folder / f"{index}.db" if self.folder else None)
        return Hospital(site, values, lanes, store)

    def watch(self, see: Callable[[Any], object]) -> None:
        """Show every phase of every site of the plays to come."""
        for hospital in self.hospitals:
            hospital.watch = see

    def play(self, run: bytes = RUN, counter: Counter = FIRST) -> Outcome:
        """Set up a run and sum once."""
        self.set_up(run)
        return self.outcome if self.outcome.ended else self.attempt(counter)

    def set_up(self, run: bytes = RUN) -> Outcome:
        """Messages 1 to 3."""
        self._begin()
        try:
            everyone = range(self.plan.n)
            hellos = self.ask("hello", everyone, lambda _: run)
            gathered, roster = secagg_server.gather(self.server, run, hellos)
            parts = self.ask("roster", gathered.members, lambda _: roster)
            self.run, boxes = secagg_server.relay(gathered, parts)
            self.ask("group", self.run.members, boxes.__getitem__)
        except ProtocolError as error:
            self.outcome.ended = str(error)
        return self.outcome

    def attempt(self, counter: Counter = FIRST, keep: bool = True) -> Outcome:
        """Messages 4 to 12; ``keep`` goes on with the outcome of the setup."""
        if not keep:
            self._begin()
        out = self.outcome
        try:
            started, begin = secagg_server.start_round(self.run, counter, Kind.TRAIN, MODEL)
            readies = self.ask("start", self.run.members, lambda _: begin)
            formed = secagg_server.form_cohort(started, readies)
            running = secagg_server.RunningSum(formed)
            for site, data in self.ask("cohort", formed.cohort, formed.message):
                running.add(site, data)
            closed, survivors = secagg_server.close(running)
            acks = self.ask("survivors", closed.survivors, lambda _: survivors)
            agreed, ack_set = secagg_server.agree_survivors(closed, acks)
            answers = self.ask("unmask", closed.survivors, lambda _: ack_set)
            out.opened = secagg_server.open_sum(agreed, answers)
            result = bytes(secagg_server.write_result(out.opened, MODEL))
            self.ask("result", closed.survivors, lambda _: result)
        except ProtocolError as error:
            out.ended = str(error)
        return out

    def ask(
        self, step: str, sites: Iterable[int], message: Callable[[int], bytes]
    ) -> list[tuple[int, bytes]]:
        """One exchange; a site that refused is not asked again before the next play."""
        replies, out = [], self.outcome
        for site in sites:
            told = _bent(self.lies, step, site, message(site))
            if site in out.refusals or told is None:
                continue
            out.wire.append(("to", step, site, told))
            try:
                reply = self.hospitals[site].answer(step, told)
            except ProtocolError as error:
                out.refusals[site] = error
                continue
            if isinstance(reply, secagg_site.Sums):
                out.sums[site] = reply
                continue
            out.said[site].append((step, reply))
            sent = _bent(self.forgeries, step, site, reply)
            if sent is not None:
                out.wire.append(("from", step, site, sent))
                replies.append((site, sent))
        return replies

    def tell(self, step: str, site: int, data: bytes) -> None:
        """Ask one site, whatever the honest server would do; its refusal stands in the outcome."""
        self.outcome.refusals.pop(site, None)
        lies, self.lies = self.lies, {}
        self.ask(step, [site], lambda _: data)
        self.lies = lies

    def ack_set(self, acks: Iterable[bytes]) -> bytes:
        """AckSet over any acknowledgements, signed by the server."""
        signed = tuple(read(SurvivorAck, one) for one in acks)
        header = replace(signed[0].message.header, number=AckSet.NUMBER, sender=SERVER)
        return write(AckSet(header, signed), self.boss)

    def edit(self, kind: Any, by: int | None = None, /, **changes: Any) -> Lie:
        """A lie that sets fields (``head``: of the header) and signs anew; ``by``: whose key."""
        identity = self.boss if by is None else self.identities[by]

        def lie(data: bytes) -> bytes:
            signed = read(kind, data)
            fields = dict(changes)
            header = replace(signed.message.header, **fields.pop("head", {}))
            return write(replace(signed.message, header=header, **fields), identity, signed.tail)

        return lie

    def said(self, site: int, step: str) -> bytes:
        """What a site answered in the last play."""
        return dict(self.outcome.said[site])[step]

    def assert_refused(self, site: int, step: str, match: str) -> None:
        """The site refused this step by name; it has sent what comes before, and nothing else."""
        assert site in self.outcome.refusals, f"site {site} went on: {self.outcome.ended}"
        with pytest.raises(ProtocolError, match=match):
            raise self.outcome.refusals[site]
        steps = [one for one, _ in self.outcome.said[site]]
        assert step not in steps
        assert all(STEPS.index(one) < STEPS.index(step) for one in steps)
        assert steps == [*dict.fromkeys(steps)]

    def assert_no_share_was_sent(self) -> None:
        """Nobody has answered with shares, and nothing was opened."""
        assert not any(step == "unmask" for said in self.outcome.said.values() for step, _ in said)
        assert self.outcome.opened is None

    def assert_only_true_sums(self) -> None:
        """What any site believes is the plain integer sum of the survivors."""
        for sums in self.outcome.sums.values():
            there = [self.hospitals[site] for site in sums.survivors]
            assert len(there) >= self.plan.quorum
            assert np.array_equal(sums.values, sum(one.values.astype(np.int64) for one in there))
            assert np.array_equal(sums.lanes, sum(one.lanes for one in there))

    def _begin(self) -> None:
        self.outcome = Outcome({index: [] for index in range(self.plan.n)})


def _bent(lies: dict[tuple[str, int | None], Lie], step: str, site: int, data: bytes) -> Any:
    for place in ((step, site), (step, None)):
        if place in lies:
            return lies[place](data)
    return data


@pytest.fixture
def federation() -> Callable[..., Federation]:
    """federation(n, values=5, lanes=1, folder=None, **plan): a new one, nothing played yet."""

    def build(
        n: int = 4, values: int = 5, lanes: int = 1, folder: Path | None = None, **plan: Any
    ) -> Federation:
        return Federation(n, values, lanes, folder, **plan)

    return build
