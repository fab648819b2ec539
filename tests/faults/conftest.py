"""A federation in memory on a network that fails: real participants, stores, sums and rounds.

It knows every contribution and checks after each answer what must always hold. Which fault happens
when is drawn elsewhere; nothing here decides whether a run should have succeeded.
"""

import random
import re
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from client.lineage import Lineage
from client.masked import Participant
from client.site import Contribution, Site
from privacy import keys
from privacy.encoding import ring_bound
from privacy.errors import AbsentError, ProtocolError
from privacy.roster import Kind, Member, Roster
from privacy.secagg_server import Coordinator
from privacy.secagg_setup import Site as Place
from privacy.secagg_store import SiteStore
from privacy.wire import Counter, read_header
from server.checkpoint import Checkpoint
from server.masked import MaskedSum
from server.rounds import Exchange, Opened, Order, run_rounds
from server.store import ServerStore
from shared_models.lanes import evaluate_lanes
from shared_models.plan import make_plan
from shared_models.steps import after_sum
from shared_models.strategies import State, first_state, read_state, state_bytes, state_hash
from shared_models.study import Study, parse_study

P = 5  # parameters of a network that nobody trains
LIVES = 5  # of a server; in the last one it does not crash
SIGNED_MASKED = 32 + 72 + 64  # of Masked: header, body and signature; its payload follows

Work = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]


class Crash(Exception):
    """A process ends here; only its store is left."""


class ServerCrash(Crash):
    pass


class SiteCrash(Crash):
    pass


@dataclass(frozen=True)
class Setting:
    """What is fixed before the first message.

    Attributes:
        sites: n.
        rounds: of the study.
        every: evaluations; more than the rounds: only after the last one.
        strategy: of the server.
        ring_bits: of the plan.
        min_sites: of the plan.
        spare: attempts that may fail.
        folder: where the stores lie; None keeps them in memory.
    """

    sites: int = 4
    rounds: int = 3
    every: int = 2
    strategy: str = "fedavg"
    ring_bits: int = 32
    min_sites: int = 3
    spare: int = 8
    folder: Path | None = None


@lru_cache(maxsize=256)
def study_of(setting: Setting) -> Study:
    return parse_study(
        {
            "name": "faults",
            "task": "tabular",
            "rounds": setting.rounds,
            "data": {
                "target": "stay",
                "columns": {
                    "stay": {"kind": "number", "low": 0, "high": 1},
                    "age": {"kind": "number", "low": 0, "high": 1},
                },
            },
            "model": {"name": "mlp", "hidden": []},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": {"mode": "none"},
            "aggregation": {
                "strategy": setting.strategy,
                "ring_bits": setting.ring_bits,
                "min_sites": setting.min_sites,
                "spare_attempts": setting.spare,
            },
            "evaluation": {"every": setting.every},
            "simulation": {"sites": setting.sites},
        }
    )


class Planted(Site):
    """A site whose contribution is drawn, not trained: fresh integers each time it is asked."""

    def __init__(self, study: Study, bound: int, draw: random.Random) -> None:
        self.study, self.bound, self.draw = study, bound, draw

    def ledger_head(self) -> bytes:
        return bytes(32)

    def contribute(self, kind: str, state: State, number: int, attempt: int) -> Contribution:
        if kind == "evaluate":
            lanes = [self.draw.randrange(1, 1 << 40) for _ in evaluate_lanes(self.study)]
            return Contribution(np.empty(0, dtype=np.int32), np.array(lanes, dtype=np.int64))
        values = [self.draw.randint(-self.bound, self.bound) for _ in range(P)]
        if self.draw.random() < 0.1:
            values = [self.bound] * P  # all at the edge of the ring
        lanes = [1 << 16, self.draw.randrange(1, 1 << 20), self.draw.randrange(1 << 40)]
        return Contribution(np.array(values, dtype=np.int32), np.array(lanes, dtype=np.int64))


class Disk:
    """A store that may end its process before or after any call; it notes what was masked."""

    def __init__(self, open_store: Callable[[], Any], crash: type[Crash], lasting: bool) -> None:
        self._open, self._crash, self._lasting = open_store, crash, lasting
        self.store = open_store()
        self.fuse: int | None = None  # calls and ends of calls until the crash
        self.work_used: Work | None = None
        self.answered = False

    def tick(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise self._crash

    def restart(self) -> None:
        """Forget all but the file, or, when there is none, all but the store."""
        self.fuse = None
        if self._lasting:
            self.store.close()
            self.store = self._open()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.tick()
            result = method(*arguments, **options)
            if name == "keep_work":
                self.work_used = arguments[2:]
            elif name == "work" and result is not None:
                self.work_used = result
            elif name == "keep_answer":
                self.answered = True
            self.tick()
            return result

        return call


class Hospital:
    """One participant and what must hold of it, whatever it is told."""

    def __init__(self, world: "World", index: int) -> None:
        self.world, self.index = world, index
        folder = world.setting.folder
        path = folder / f"site-{index}.db" if folder else None
        self.disk = Disk(lambda: SiteStore(path), SiteCrash, lasting=path is not None)
        bound = ring_bound(world.plan.ring_bits, world.plan.n)
        self.site = Planted(world.study, bound, random.Random(world.seed * 1000 + index))
        self.counters: Mapping[int, Counter] = {}
        self.answers: dict[Counter, bytes] = {}
        self.masked: dict[tuple[Kind, bytes], Work] = {}  # until Unmask was stored
        self.opened: list[Work] = []  # what Unmask was stored for
        self.start()

    def start(self) -> None:
        """Begin a process on what the store holds."""
        world = self.world
        self.participant = Participant(
            self.site,
            lambda members: world.place(self.index, members),
            Lineage(world.study, P, world.first_model),
            self.disk,
        )

    def answer(self, kind: str, message: bytes) -> bytes | None:
        """Return the answer, or None for a refusal by name; anything else is a bug.

        Raises:
            SiteCrash: the process ended; `start` has begun another.
        """
        self.disk.work_used, self.disk.answered = None, False
        try:
            reply = self.participant.answer(kind, message)
        except (ProtocolError, AbsentError) as error:
            self.world.note_refusal(str(error))
            reply = None
        except SiteCrash:
            self._check_stored()
            self.disk.restart()
            self.start()
            raise
        finally:
            self.disk.fuse, fuse = None, self.disk.fuse
        self._check_stored()
        if reply is not None:
            self._check_reply(kind, message, reply)
        if fuse is not None:  # it was to end a little later
            self.disk.restart()
            self.start()
            raise SiteCrash
        return reply

    def _check_stored(self) -> None:
        now = self.disk.store.counters()
        for site, before in self.counters.items():
            assert now[site] >= before, f"site {self.index}: the counter of {site} fell"
        self.counters = now
        known = self.participant.known
        if known is not None and known.computed:
            assert known.digest in self.world.states, f"site {self.index} holds a state of nobody"
        if self.disk.answered:
            self.opened.extend(self.masked.values())
            self.masked.clear()

    def _check_reply(self, kind: str, message: bytes, reply: bytes) -> None:
        if kind == "unmask":
            header = read_header(reply)
            given = self.answers.setdefault(header.counter, reply)
            assert given == reply, f"site {self.index}: two answers in {header.counter}"
        if kind == "cohort":
            self._check_masked(reply)

    def _check_masked(self, reply: bytes) -> None:
        used, known = self.disk.work_used, self.participant.known
        assert used is not None
        assert known is not None
        key = (Kind.TRAIN if len(used[0]) else Kind.EVALUATE, known.digest)
        before = self.masked.get(key)
        if before is not None:
            assert equal(before, used), f"site {self.index}: other integers before Unmask"
        # The store forgets a round's work when the next one begins: should the server go back to
        # it, its draws are fresh, and debited.
        self.opened += [other for one, other in self.masked.items() if one != key]
        self.masked = {key: used}
        again = any(equal(other, used) for other in self.opened)
        assert not again, f"site {self.index}: opened integers masked again"
        header = read_header(reply)
        self.world.contributions[header.run, header.counter][self.index] = used


def equal(left: Work, right: Work) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@dataclass
class Report:
    """What came of a run.

    Attributes:
        opened: sums, and of how many sites each.
        aborted: attempts by the reason of the server.
        refused: messages by the reason of a site.
        end: why the study ended early; empty when it was finished.
        lives: of the server.
        faults: how many happened, by kind.
    """

    opened: list[int] = field(default_factory=list)
    aborted: Tally[str] = field(default_factory=Tally)
    refused: Tally[str] = field(default_factory=Tally)
    end: str = ""
    lives: int = 0
    faults: Tally[str] = field(default_factory=Tally)


class Wire(Protocol):
    """The network, with its faults."""

    kinds: Sequence[str]  # of faults that happen

    def __call__(
        self, kind: str, outgoing: Mapping[str, bytes], world: "World"
    ) -> Iterator[tuple[str, bytes]]: ...


class World:
    """One study: its sites, its server through all of its lives, and the truth about its sums."""

    def __init__(self, setting: Setting, seed: int, wire: Wire) -> None:
        self.setting, self.seed, self.wire = setting, seed, wire
        self.study = study_of(setting)
        self.names = tuple(f"site-{index}" for index in range(setting.sites))
        start = np.linspace(-0.5, 0.5, P, dtype=np.float32)
        self.first = first_state(self.study.aggregation, start)
        self.first_model = state_hash(state_bytes(self.first))
        self.identities = [identity_of(index) for index in range(setting.sites)]
        members = tuple(
            Member(name, one.public) for name, one in zip(self.names, self.identities, strict=True)
        )
        self.roster = Roster(members, identity_of(250).public)
        self.plan = make_plan(self.study, self.roster, P, self.first_model)
        self.agree = keys.SharedAgreements()
        self.entropy = random.Random(seed).randbytes
        self.states = {self.first_model}  # that a server held after some opened sum
        self.contributions: defaultdict[tuple[bytes, Counter], dict[int, Work]] = defaultdict(dict)
        self.report = Report()
        self.asked: tuple[bytes, Counter] = (b"", Counter(0, 0))  # whose shares were asked for
        self.spoilt: set[tuple[bytes, Counter]] = set()  # attempts in which a vector changed
        path = setting.folder / "server.db" if setting.folder else None
        self.disk = Disk(lambda: ServerStore(path), ServerCrash, lasting=path is not None)
        self.kept = Checkpoint(self.study.digest(), self.first, ())
        self.hospitals = [Hospital(self, index) for index in range(setting.sites)]

    def place(self, index: int, members: tuple[int, ...]) -> Place:
        if members:
            raise ProtocolError("expected a run of all sites, got a cohort; nothing was sent")
        return Place(
            self.identities[index], index, self.plan, self.roster, self.entropy, self.agree
        )

    def note_refusal(self, reason: str) -> None:
        self.report.refused[named(reason)] += 1

    def run(self) -> Report:
        """Run the study through the lives of its server, to its end or to its last attempt."""
        for life in range(LIVES):
            self.report.lives = life + 1
            try:
                self._live()
            except ServerCrash:
                self.disk.restart()
                continue
            except (ProtocolError, AbsentError) as error:
                self.report.end = named(str(error))
            break
        if self.report.end:
            self._clear_up()
        known = [one.participant.known for one in self.hospitals]
        assert {one.digest for one in known if one and one.computed} <= self.states
        return self.report

    def _clear_up(self) -> None:
        """What bad weather has stopped goes on when it is over: nothing was lost for good."""
        self.wire.kinds, self.report.refused = (), Tally()
        self.disk.fuse = None
        self.kept = replace(self.kept, spent_attempts=0)
        try:
            self._live()
        except (ProtocolError, AbsentError) as error:
            raise AssertionError(
                f"stuck in fair weather: {error}; refusals: {dict(self.report.refused)}"
            ) from error

    @property
    def last_life(self) -> bool:
        return self.report.lives == LIVES

    def _live(self) -> None:
        summation = Watched(self)
        study, names = self.study, self.names

        def keep(checkpoint: Checkpoint) -> None:
            self.disk.tick()
            self.kept = checkpoint
            self.disk.tick()

        for _ in run_rounds(
            study, self.kept, self.exchange, summation, lambda _: names, len(names), keep
        ):
            pass

    def exchange(
        self, kind: str, outgoing: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        if kind == "unmask":
            header = read_header(next(iter(outgoing.values())))
            self.asked = (header.run, header.counter)
        for site, reply in self.wire(kind, outgoing, self):
            self.disk.tick()
            yield site, reply

    def check_opened(self, order: Order, opened: Opened) -> None:
        """A sum is the plain one of what its survivors masked, and of enough of them."""
        names, plan = opened.sites, self.plan
        assert len(set(names)) == len(names) >= max(3, plan.t, plan.min_sites, plan.quorum)
        put_in = self.contributions[self.asked]
        works = [put_in[self.names.index(name)] for name in names]
        true = np.array_equal(opened.values, sum(one.astype(np.int64) for one, _ in works))
        true = true and np.array_equal(opened.lanes, sum(lane for _, lane in works))
        assert true or self.asked in self.spoilt
        self.report.opened.append(len(names))
        if not true:
            return  # no site may hold the state that follows from it
        if order.kind == "train":
            before, n = read_state(order.state, P), len(self.names)
            state = after_sum(self.study, before, opened.values, opened.lanes, names, n, n)
            self.states.add(state_hash(state_bytes(state)))


class Watched:
    """A masked sum whose every outcome is checked and counted."""

    def __init__(self, world: World) -> None:
        server = Coordinator(identity_of(250), world.plan, world.roster)
        self.world = world
        self.sum = MaskedSum(lambda _: server, lambda _: (), 1.0, store=world.disk)

    def __call__(self, exchange: Exchange, order: Order) -> Opened:
        try:
            opened = self.sum(exchange, order)
        except (ProtocolError, AbsentError) as error:
            self.world.report.aborted[named(str(error))] += 1
            raise
        self.world.check_opened(order, opened)
        return opened

    def finish(self, exchange: Exchange, sites: tuple[str, ...], state: bytes) -> None:
        self.sum.finish(exchange, sites, state)


def named(reason: str) -> str:
    """A reason without the numbers, names and details that differ from run to run."""
    reason = re.sub(r" \(site \d+: .*\)", "", reason)
    return re.sub(r"site-\d+(, )?|\d+", "#", reason)


@lru_cache(maxsize=512)
def identity_of(index: int) -> keys.Identity:
    return keys.identity(bytes([1 + index]) * 32)


class Weather:
    """A network whose faults are drawn from a seed."""

    def __init__(self, draw: random.Random, rate: float, kinds: Sequence[str]) -> None:
        """Begin a schedule.

        Args:
            draw: decides everything.
            rate: of faults, a message and direction.
            kinds: the faults that happen at all, of `FAULTS`.
        """
        self.draw, self.rate, self.kinds = draw, rate, tuple(kinds)
        self.sent: list[tuple[str, str, bytes]] = []  # (site, kind, message), some of them
        self.replied: list[tuple[str, bytes]] = []
        self.held: list[tuple[str, str, bytes]] = []  # late messages to sites
        self.late: list[tuple[str, bytes]] = []  # late answers
        self.away: dict[str, int] = {}  # exchanges that a site still misses

    def __call__(
        self, kind: str, outgoing: Mapping[str, bytes], world: World
    ) -> Iterator[tuple[str, bytes]]:
        self._may_end(world)
        asked = list(outgoing)
        self.draw.shuffle(asked)
        arrivals: list[tuple[str, bytes]] = []
        for site in asked:
            if self.away.get(site, 0) > 0:
                self.away[site] -= 1
                continue
            for own_kind, message in self._to(site, kind, outgoing[site], world):
                reply = self._deliver(site, own_kind, message, world)
                if reply is not None:
                    arrivals += self._from(site, own_kind, reply, world)
        arrivals += [one for one in self.late if self.draw.random() < 0.5]
        self.late = [one for one in self.late if one not in arrivals]
        self.draw.shuffle(arrivals)
        for site, reply in arrivals:
            if site in outgoing:  # as the adapter of the transport does
                yield site, reply

    def _fault(self, world: World, kinds: Sequence[str]) -> str:
        possible = [kind for kind in kinds if kind in self.kinds]
        if not possible or self.draw.random() >= self.rate:
            return ""
        fault = self.draw.choice(possible)
        world.report.faults[fault] += 1
        return fault

    def _may_end(self, world: World) -> None:
        """Let the server end some steps from now."""
        if not world.last_life and self._fault(world, ("server ends",)):
            world.disk.fuse = self.draw.randrange(10)

    def _to(self, site: str, kind: str, message: bytes, world: World) -> list[tuple[str, bytes]]:
        """Return what reaches a site in this exchange, in order."""
        fault = self._fault(world, TO_SITES)
        now = [(held[1], held[2]) for held in self.held if held[0] == site]
        self.held = [held for held in self.held if held[0] != site]
        if fault == "site stays away":
            self.away[site] = self.draw.randrange(6)
            return []
        if fault == "message lost":
            return now
        if fault == "message late":
            self.held.append((site, kind, message))
            return now
        if fault == "message replayed" and self.sent:
            other = self.draw.choice(self.sent)
            now.insert(self.draw.randrange(len(now) + 1), other[1:])
        if fault == "message flipped":
            message = self._flipped(message, len(message))
        if fault == "site ends":
            index = world.names.index(site)
            world.hospitals[index].disk.fuse = self.draw.randrange(8)
        now.append((kind, message))
        if fault == "message twice":
            now.append((kind, message))
        if self.draw.random() < 0.3:
            self.sent.append((site, kind, message))
        return now

    def _deliver(self, site: str, kind: str, message: bytes, world: World) -> bytes | None:
        try:
            return world.hospitals[world.names.index(site)].answer(kind, message)
        except SiteCrash:
            return None

    def _from(self, site: str, kind: str, reply: bytes, world: World) -> list[tuple[str, bytes]]:
        """Return what reaches the server in this exchange."""
        fault = self._fault(world, TO_SERVER)
        if fault == "answer lost":
            return []
        if fault == "answer late":
            self.late.append((site, reply))
            return []
        if fault == "answer flipped":
            reply = self._flipped(reply, SIGNED_MASKED if kind == "cohort" else len(reply))
        if fault == "vector flipped" and kind == "cohort":
            # It is not hashed on arrival at first: the MAC finds it, once the sum is open.
            head = read_header(reply)
            world.spoilt.add((head.run, head.counter))
            tail = self._flipped(reply[SIGNED_MASKED:], len(reply))
            reply = reply[:SIGNED_MASKED] + tail
        now = [(site, reply)]
        if fault == "answer twice":
            now.append((site, reply))
        if fault == "answer replayed" and self.replied:
            other, old = self.draw.choice(self.replied)
            now.append((self.draw.choice((site, other)), old))
        if self.draw.random() < 0.3:
            self.replied.append((site, reply))
        return now

    def _flipped(self, message: bytes, end: int) -> bytes:
        if not message:
            return message
        changed = bytearray(message)
        for _ in range(self.draw.randint(1, 3)):
            changed[self.draw.randrange(min(end, len(message)))] ^= self.draw.randint(1, 255)
        return bytes(changed)


TO_SITES = (
    "message lost",
    "message late",
    "message twice",
    "message flipped",
    "message replayed",
    "site ends",
    "site stays away",
)
TO_SERVER = (
    "answer lost",
    "answer late",
    "answer twice",
    "answer flipped",
    "answer replayed",
    "vector flipped",
)
FAULTS = (*TO_SITES, *TO_SERVER, "server ends")


def schedule(seed: int, folder: Path) -> Report:
    """Play the schedule of one seed; every assertion names what did not hold."""
    draw = random.Random(seed)
    sites = draw.choices((3, 4, 5, 6, 7, 9, 12), weights=(24, 32, 20, 12, 6, 4, 2))[0]
    rounds = draw.randint(2, 4 if sites < 5 else 2)
    setting = Setting(
        sites=sites,
        rounds=rounds,
        every=draw.randint(1, rounds + 1),
        strategy=draw.choice(("fedavg", "fedavg", "fedadam")),
        ring_bits=draw.choice((16, 32)),
        min_sites=draw.choice((3, 3, 3, sites)),
        folder=folder / str(seed) if draw.random() < 0.05 else None,
    )
    if setting.folder is not None:
        setting.folder.mkdir()
    rate = draw.choice((0.005, 0.01, 0.02, 0.04)) * (1 if sites > 3 else 0.6)
    kinds = draw.sample(FAULTS, draw.randint(2, len(FAULTS)))
    return World(setting, seed, Weather(draw, rate, kinds)).run()


@pytest.fixture(scope="session")
def play() -> Callable[[int, Path], Report]:
    """play(seed, folder): run the schedule of a seed and return its report."""
    return schedule
