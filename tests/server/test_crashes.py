"""A server, or a site, that ends between any two messages: the study goes on and its sums are true.

Every place is tried, one a study; random ones, and several at once, are for tests/faults.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.lineage import Lineage
from client.masked import Participant
from client.site import Contribution
from privacy import keys, secagg_setup
from privacy.errors import ProtocolError
from privacy.roster import Member, Roster
from privacy.secagg_server import Coordinator
from privacy.secagg_store import SiteStore
from server.checkpoint import Checkpoint
from server.masked import MaskedSum
from server.rounds import Opened, Order, run_rounds
from server.store import ServerStore
from shared_models.lanes import evaluate_lanes
from shared_models.plan import make_plan
from shared_models.strategies import State, first_state, state_bytes, state_hash
from shared_models.study import parse_study

P = 3
STUDY = parse_study(
    {
        "name": "s",
        "task": "tabular",
        "rounds": 2,
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
        "aggregation": {"spare_attempts": 2},
        "evaluation": {"every": 2},
    }
)
FIRST = first_state(STUDY.aggregation, np.zeros(P, dtype=np.float32))
FIRST_MODEL = state_hash(state_bytes(FIRST))
MESSAGES = 3 + 3 * 4 + 1  # to each site: of a setup, of two trainings and an evaluation, the end


class Crash(Exception):
    """The server's process ends here."""


class Work:
    """Stands for records and training: fresh integers at each call."""

    def __init__(self, index: int) -> None:
        self.draw, self.given = np.random.default_rng(index), list[Contribution]()

    def ledger_head(self) -> bytes:
        return bytes(32)

    def contribute(self, kind: str, state: State, number: int, attempt: int) -> Contribution:
        train = kind == "train"
        values = self.draw.integers(-(2**20), 2**20, P if train else 0).astype(np.int32)
        cells = self.draw.integers(0, 99, len(evaluate_lanes(STUDY)))
        lanes = np.array([1 << 16, 5, 7], np.int64) if train else cells
        self.given.append(Contribution(values, lanes))
        return self.given[-1]


class World:
    """n sites, a server with its store on disk, and a network that asks before each message."""

    def __init__(self, n: int, folder: Path, lasting: bool = False) -> None:
        self.n, self.folder, self.lasting = n, folder, lasting
        self.names = tuple(f"site-{index}" for index in range(n))
        self.identities = [keys.identity(bytes([1 + site]) * 32) for site in range(n)]
        boss = keys.identity(bytes([255]) * 32)
        pinned = zip(self.names, self.identities, strict=True)
        self.roster = Roster(tuple(Member(name, one.public) for name, one in pinned), boss.public)
        self.plan = make_plan(STUDY, self.roster, P, FIRST_MODEL)
        self.coordinator = Coordinator(boss, self.plan, self.roster)
        self.work = [Work(index) for index in range(n)]
        self.stores: dict[int, SiteStore] = {}
        self.sites = [self.site(index) for index in range(n)]
        self.kept = Checkpoint(STUDY.digest(), FIRST, ())
        self.opened: list[Opened] = []
        self.refusals: list[tuple[str, int]] = []
        self.before: Callable[[int], None] = lambda site: None  # called before each message

    def site(self, index: int) -> Participant:
        """A site's process, on what its store holds."""
        if index in self.stores:
            self.stores[index].close()
        self.stores[index] = SiteStore(self.folder / f"{index}.db" if self.lasting else None)
        draw = random.Random(index).randbytes
        place = secagg_setup.Site(self.identities[index], index, self.plan, self.roster, draw)
        lineage = Lineage(STUDY, P, FIRST_MODEL)
        return Participant(self.work[index], lambda _: place, lineage, self.stores[index])  # type: ignore[arg-type]

    def exchange(
        self, kind: str, messages: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        for name, message in messages.items():
            index = self.names.index(name)
            self.before(index)
            try:
                reply = self.sites[index].answer(kind, message)
            except ProtocolError:
                self.refusals.append((kind, index))
                continue
            yield name, reply

    def serve(self) -> None:
        """One process of the server: on its store and its last checkpoint, to the study's end."""
        store = ServerStore(self.folder / "server.db")
        masked = MaskedSum(lambda _: self.coordinator, lambda _: (), 1.0, store=store)
        summation = Checked(self, masked)
        try:
            for _ in run_rounds(
                STUDY, self.kept, self.exchange, summation, lambda _: self.names, self.n, self.keep
            ):
                pass
        finally:
            store.close()

    def keep(self, now: Checkpoint) -> None:
        self.kept = now


class Checked:
    """A masked sum, each compared with the plain one."""

    def __init__(self, world: World, masked: MaskedSum) -> None:
        self.world, self.masked = world, masked

    def __call__(self, exchange: Any, order: Order) -> Opened:
        opened = self.masked(exchange, order)
        given = [self.world.work[self.world.names.index(name)].given[-1] for name in opened.sites]
        assert np.array_equal(opened.values, sum(one.values.astype(np.int64) for one in given))
        assert np.array_equal(opened.lanes, sum(one.lanes for one in given))
        self.world.opened.append(opened)
        return opened

    def finish(self, exchange: Any, sites: tuple[str, ...], state: bytes) -> None:
        self.masked.finish(exchange, sites, state)


def at(place: int, act: Callable[[], None], only: int | None = None) -> Callable[[int], None]:
    """Act once: before message number ``place``, of all or of those to one site."""
    told = 0

    def before(site: int) -> None:
        nonlocal told
        if only in (None, site):
            told += 1
            if told == place + 1:
                act()

    return before


def test_without_a_crash_the_messages_are_so_many(tmp_path: Path) -> None:
    world, told = World(3, tmp_path), list[int]()
    world.before = told.append
    world.serve()
    assert told == [site for _ in range(MESSAGES) for site in range(3)]
    assert (world.kept.state.round, len(world.opened)) == (2, 3)


@pytest.mark.parametrize("place", range(3 * MESSAGES))
def test_a_server_that_ends_between_any_two_messages_goes_on(place: int, tmp_path: Path) -> None:
    world = World(3, tmp_path)  # all must answer: t = 3

    def crash() -> None:
        raise Crash

    world.before = at(place, crash)
    with pytest.raises(Crash):
        world.serve()
    world.serve()
    assert world.kept.state.round == STUDY.rounds
    assert world.kept.spent_attempts == 0
    assert all(opened.sites == world.names for opened in world.opened)
    assert world.refusals == []
    digest = state_hash(state_bytes(world.kept.state))
    assert [one.known and one.known.digest for one in world.sites] == [digest] * 3
    assert all(len(one.given) == 3 for one in world.work)  # nothing was drawn or debited twice


@pytest.mark.parametrize("place", range(MESSAGES))
def test_a_site_that_ends_between_any_two_messages_answers_in_the_next_run(
    place: int, tmp_path: Path
) -> None:
    world = World(4, tmp_path, lasting=True)  # one may be missing: t = 3

    def restart() -> None:
        world.sites[1] = world.site(1)

    world.before = at(place, restart, only=1)
    world.serve()
    assert world.kept.state.round == STUDY.rounds
    assert {site for _, site in world.refusals} <= {1}
    assert {name for opened in world.opened for name in opened.sites} == set(world.names)
    digest = state_hash(state_bytes(world.kept.state))
    others = [world.sites[index].known for index in (0, 2, 3)]
    assert [one and one.digest for one in others] == [digest] * 3
