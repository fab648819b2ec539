"""The masked sum at the server: runs, what sites are sent, the end, and what a restart picks up."""

import random
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.lineage import Lineage
from client.masked import Participant
from client.site import Contribution
from privacy import keys, secagg_setup
from privacy.encoding import RingBits
from privacy.errors import AbsentError, ProtocolError
from privacy.roster import Kind, Member, Plan, Roster
from privacy.secagg_messages import NO_RESULT, Result, RoundStart, result_hash
from privacy.secagg_server import Coordinator, Formed
from privacy.secagg_store import SiteStore
from privacy.wire import Counter, read, read_header
from server import masked
from server.masked import MaskedSum
from server.rounds import Opened, Order, UnvouchedError
from server.store import ServerStore
from shared_models.lanes import evaluate_lanes
from shared_models.messages import greeting, place, read_directions, read_greeting
from shared_models.steps import after_sum
from shared_models.strategies import State, first_state, state_bytes, state_hash
from shared_models.study import Study, parse_study

N = 4  # t = 3
NAMES = tuple(f"site-{index}" for index in range(N))
BOSS = keys.identity(bytes([255]) * 32)
STUDY = parse_study(
    {
        "name": "s",
        "task": "tabular",
        "rounds": 6,
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
        "evaluation": {"every": 1},
    }
)
LANES = len(evaluate_lanes(STUDY))


class Work:
    """Stands for the site's work; remembers what it gave."""

    def __init__(self, index: int, values: int, bound: int) -> None:
        self.draw, self.values, self.bound = np.random.default_rng(index), values, bound
        self.given: list[Contribution] = []

    def ledger_head(self) -> bytes:
        return bytes(32)

    def contribute(self, kind: str, state: State, number: int, attempt: int) -> Contribution:
        train = kind == "train"
        values = self.draw.integers(-self.bound, self.bound, self.values if train else 0)
        lanes = [1 << 16, 5, 7] if train else [number] * LANES
        self.given.append(Contribution(values.astype(np.int32), np.array(lanes, np.int64)))
        return self.given[-1]


class Team:
    """Real sites behind a network on which messages and answers may be lost."""

    def __init__(
        self,
        store: ServerStore | None = None,
        values: int = 3,
        study: Study = STUDY,
        n: int = N,
        ring_bits: RingBits = 32,
    ) -> None:
        self.study, self.values, self.store = study, values, store
        self.names = tuple(f"site-{index}" for index in range(n))
        self.state = first_state(study.aggregation, np.zeros(values, dtype=np.float32))
        first = state_hash(state_bytes(self.state))
        plan = Plan(bytes([1]) * 32, n, values, ring_bits, train_lanes=3, evaluate_lanes=LANES)
        identities = [keys.identity(bytes([1 + index]) * 32) for index in range(n)]
        pinned = zip(self.names, identities, strict=True)
        roster = Roster(tuple(Member(name, one.public) for name, one in pinned), BOSS.public)
        self.coordinator = Coordinator(BOSS, plan, roster)
        self.work = [Work(index, values, 1 << (ring_bits - 12)) for index in range(n)]
        self.sites: list[Participant] = []
        for index, one in enumerate(self.work):
            draw = random.Random(index).randbytes
            place = secagg_setup.Site(identities[index], index, plan, roster, draw)
            lineage = Lineage(study, values, first)
            self.sites.append(
                Participant(one, lambda _, p=place: p, lineage, SiteStore(None))  # type: ignore[arg-type,misc]
            )
        self.lost: set[tuple[str, int]] = set()  # messages
        self.mute: set[tuple[str, int]] = set()  # answers
        self.told: list[tuple[str, int, bytes]] = []
        self.refused: list[tuple[str, int, str]] = []
        self.restart()

    def restart(self) -> None:
        """Another process of the server, on its store."""
        self.sum = MaskedSum(lambda _: self.coordinator, lambda _: (), 1.0, store=self.store)

    def exchange(
        self, kind: str, messages: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        for name, message in messages.items():
            index = self.names.index(name)
            if (kind, index) in self.lost:
                continue
            self.told.append((kind, index, message))
            try:
                reply = self.sites[index].answer(kind, message)
            except ProtocolError as error:
                self.refused.append((kind, index, str(error)))
                continue
            if (kind, index) not in self.mute:
                yield name, reply

    def order(self, kind: Any = "train", attempt: int = 0) -> Order:
        number = self.state.round + (kind == "train")
        return Order(kind, number, attempt, self.names, state_bytes(self.state))

    def open(self, kind: Any = "train", attempt: int = 0) -> Opened:
        """One attempt, and the step."""
        opened = self.sum(self.exchange, self.order(kind, attempt))
        if kind == "train":
            self.state = self.after(opened)
        return opened

    def after(self, opened: Opened) -> State:
        n, names = len(self.names), opened.sites
        return after_sum(self.study, self.state, opened.values, opened.lanes, names, n, n)

    def fails(self, match: str, kind: Any = "train", attempt: int = 0) -> None:
        with pytest.raises((ProtocolError, AbsentError), match=match):
            self.sum(self.exchange, self.order(kind, attempt))

    def kinds(self) -> list[str]:
        """The exchanges so far, each once."""
        found = [kind for kind, _, _ in self.told]
        return [one for at, one in enumerate(found) if at == 0 or found[at - 1] != one]

    def directions(self, index: int) -> Any:
        last = next(m for k, i, m in reversed(self.told) if (k, i) == ("start", index))
        return read_directions(last)


@pytest.fixture
def team() -> Team:
    return Team()


@pytest.fixture
def stored(tmp_path: Path) -> Team:
    return Team(ServerStore(tmp_path / "server.db"))


SETUP, SUM = ["hello", "roster", "group"], ["start", "cohort", "survivors", "unmask"]


def assert_sum_of(team: Team, opened: Opened, sites: Sequence[int]) -> None:
    given = [team.work[index].given[-1] for index in sites]
    assert opened.sites == tuple(NAMES[index] for index in sites)
    assert np.array_equal(opened.values, sum(one.values.astype(np.int64) for one in given))
    assert np.array_equal(opened.lanes, sum(one.lanes for one in given))


# Sums and runs


def test_the_sum_is_that_of_the_sites(team: Team) -> None:
    assert_sum_of(team, team.open(), range(N))
    assert_sum_of(team, team.open("evaluate", 1), range(N))


@pytest.mark.parametrize("ring_bits", [16, 32])
def test_values_are_those_that_sites_are_shown_and_lanes_a_copy(ring_bits: RingBits) -> None:
    team = Team(ring_bits=ring_bits)
    opened = team.open()
    assert_sum_of(team, opened, range(N))
    assert opened.values.dtype.itemsize == ring_bits // 8
    with pytest.raises(ValueError, match="read-only"):
        opened.values[0] += 1
    opened.lanes[0] += 1
    team.open("evaluate", 1)
    assert team.refused == []


def test_setup_takes_three_exchanges_and_a_sum_four(team: Team) -> None:
    team.open()
    assert team.kinds() == SETUP + SUM


def test_one_run_serves_many_sums(team: Team) -> None:
    for _ in range(3):
        team.open()
        team.open("evaluate", 1)
    assert team.kinds() == SETUP + 6 * SUM


@pytest.mark.parametrize("kind", ["start", "cohort", "survivors", "unmask"])
def test_a_site_that_drops_leaves_the_sum_exact(team: Team, kind: str) -> None:
    steps = SUM[SUM.index(kind) :]
    team.lost = {(step, 1) for step in steps}
    gone = kind in {"start", "cohort"}
    assert_sum_of(team, team.open(), [0, 2, 3] if gone else range(N))


def test_a_member_that_was_not_ready_ends_the_run(team: Team) -> None:
    team.mute = {("start", 1)}
    team.open()
    team.mute = set()
    team.open()
    assert team.kinds() == 2 * (SETUP + SUM)


@pytest.mark.parametrize("kind", ["cohort", "survivors", "unmask"])
def test_a_member_that_dropped_later_does_not(team: Team, kind: str) -> None:
    team.mute = {(kind, 1)}
    team.open()
    team.mute = set()
    team.open()
    assert team.kinds() == SETUP + 2 * SUM


def test_a_site_that_did_not_greet_is_no_member(team: Team) -> None:
    team.lost = {("hello", 1)}
    assert_sum_of(team, team.open(), [0, 2, 3])
    team.lost = set()
    assert_sum_of(team, team.open(), range(N))
    assert team.kinds() == 2 * (SETUP + SUM)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("hello", "expected at least 3 sites for a run of 4, got 2"),
        ("roster", "message 3: expected parts of all 4 sites"),
        ("group", "message 3: expected all members to go on, site-1, site-2 did not"),
        ("start", "expected at least 3 sites in the cohort"),
        ("cohort", "expected at least 3 masked vectors"),
        ("survivors", "expected at least 3 acknowledgements"),
        ("unmask", "expected at least 3 right unmasking answers"),
    ],
)
def test_too_few_answers_end_the_attempt_and_the_run(team: Team, kind: str, match: str) -> None:
    team.mute = {(kind, 1), (kind, 2)}
    team.fails(match)
    team.mute, team.told = set(), []
    assert_sum_of(team, team.open(attempt=2), range(N))
    assert team.kinds() == SETUP + SUM


def test_a_run_that_too_few_go_on_in_is_begun_anew_in_the_same_attempt(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    team.open()

    def at_first(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        team.lost = {("start", 1), ("start", 2)} if team.kinds() == SETUP + SUM else set()
        return team.exchange(kind, messages, deadline_s)

    assert_sum_of(team, team.sum(at_first, team.order()), range(N))
    assert team.kinds() == SETUP + SUM + ["start"] + SETUP + SUM
    (told,) = [one.getMessage() for one in caplog.records]
    assert told.startswith("round 2: ")
    assert told.endswith("a new run begins")


@pytest.mark.parametrize("kind", SETUP + SUM)
def test_nobody_there_is_told_apart_from_too_few(team: Team, kind: str) -> None:
    team.lost = {(kind, index) for index in range(N)}
    with pytest.raises(AbsentError, match=f"{kind}: expected answers, none of 4 sites was there"):
        team.open()


def test_a_late_answer_does_not_confirm_the_setup(team: Team) -> None:
    def late(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        for name, reply in team.exchange(kind, messages, deadline_s):
            stray = kind == "group" and name == "site-1"
            yield name, b"its part, late" if stray else reply

    with pytest.raises(ProtocolError, match="expected all members to go on, site-1 did not"):
        team.sum(late, team.order())


# What sites are sent


def test_the_first_order_carries_the_state_and_no_past(team: Team) -> None:
    state = state_bytes(team.state)
    team.open()
    found = team.directions(0)
    begin = read(RoundStart, found.order).message
    assert (found.trail, found.state) == ((), state)
    assert (begin.kind, begin.header.counter) == (Kind.TRAIN, Counter(1, 0))
    assert (begin.model, begin.result) == (state_hash(state), NO_RESULT)


def test_later_orders_carry_the_last_sum_instead(team: Team) -> None:
    first = team.open()
    after = state_hash(state_bytes(team.state))
    team.open("evaluate", 1)
    found = team.directions(0)
    assert found.state == b""
    (opening,) = found.trail
    result = read(Result, opening.result)
    assert result.message.next_model == after
    assert result.message.survivors == (0, 1, 2, 3)
    assert len(first.sites) == 4
    begin = read(RoundStart, found.order).message
    assert (begin.kind, begin.model, begin.result) == (Kind.EVALUATE, after, result_hash(result))


def test_every_sum_is_told_once(team: Team) -> None:
    told = []
    for _ in range(3):
        team.open()
        told += team.directions(1).trail
    assert [read_header(one.result).counter for one in told] == [Counter(1, 0), Counter(2, 0)]


def test_a_member_that_missed_the_end_of_a_sum_is_sent_it(team: Team) -> None:
    team.lost = {(kind, 1) for kind in ("cohort", "survivors", "unmask")}
    team.open()
    team.lost = set()
    team.open()
    assert team.refused == []
    known = team.sites[1].known
    assert known is not None
    assert known.computed


def test_a_new_run_is_told_the_last_sum_and_the_state(team: Team) -> None:
    team.open()
    team.lost = {("start", 1)}
    team.open()
    team.lost = set()
    team.open()
    found = team.directions(1)
    assert state_hash(found.state) == read(RoundStart, found.order).message.model
    assert [read_header(one.result).counter for one in found.trail] == [Counter(2, 0)]
    assert team.refused == []


def test_after_a_failed_attempt_the_last_sum_is_still_the_last(team: Team) -> None:
    team.open()
    team.lost = {("start", index) for index in range(2)}
    team.fails("cohort")
    team.lost = set()
    team.open(attempt=2)
    assert team.refused == []
    assert all(site.known and site.known.computed for site in team.sites)


def test_a_member_that_missed_a_failed_attempt_is_still_told_the_sum_before(team: Team) -> None:
    team.open()
    team.lost = {("start", 1), *(("cohort", index) for index in range(N))}
    team.fails("cohort")
    team.lost = set()
    team.open(attempt=2)
    assert all(site.known and site.known.computed for site in team.sites)


def test_a_sum_that_all_have_followed_is_told_no_more(team: Team) -> None:
    team.open()
    team.lost = {("survivors", index) for index in range(N)}
    team.fails("survivors")
    assert len(team.directions(1).trail) == 1
    team.lost = set()
    team.open(attempt=2)
    assert team.directions(1).trail == ()


def test_a_message_is_made_for_who_is_sent_it_alone(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exchange may ask who is to be sent one: a cohort's are large, and none is kept."""
    made: list[int] = []
    real = Formed.message

    def message(formed: Formed, site: int) -> bytes:
        made.append(site)
        return real(formed, site)

    def asking(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        assert [name in messages for name in (*NAMES, "stranger")] == [True] * N + [False]
        return team.exchange(kind, messages, deadline_s)

    monkeypatch.setattr(Formed, "message", message)
    team.sum(asking, team.order())
    assert made == list(range(N))


# The end


def test_where_no_sum_was_opened_nobody_is_told_an_end(team: Team) -> None:
    team.sum.finish(team.exchange, NAMES, state_bytes(team.state))
    assert team.told == []


def test_the_last_sum_is_told_at_the_end(team: Team) -> None:
    team.open()
    team.sum.finish(team.exchange, NAMES, state_bytes(team.state))
    assert team.kinds()[-1] == "result"
    digest = state_hash(state_bytes(team.state))
    assert [site.known and site.known.digest for site in team.sites] == [digest] * N
    assert team.refused == []


@pytest.mark.parametrize("silent", [1, 2])
def test_some_sites_that_are_not_there_at_the_end_hold_nobody_up(team: Team, silent: int) -> None:
    team.open()
    team.lost = {("result", index) for index in range(silent)}
    team.sum.finish(team.exchange, NAMES, state_bytes(team.state))


@pytest.mark.parametrize("silent", [3, N])
def test_a_last_sum_that_too_few_checked_is_not_believed(team: Team, silent: int) -> None:
    team.open()
    team.lost = {("result", index) for index in range(silent)}
    with pytest.raises((AbsentError, ProtocolError)):
        team.sum.finish(team.exchange, NAMES, state_bytes(team.state))
    team.lost = set()
    team.sum.finish(team.exchange, NAMES, state_bytes(team.state))


def test_the_last_sum_is_told_in_a_new_run_when_the_old_one_has_ended(team: Team) -> None:
    team.lost = {("start", 1)}
    team.open()
    team.sum.finish(team.exchange, NAMES, state_bytes(team.state))
    assert team.kinds() == SETUP + SUM + SETUP + ["result"]
    assert not team.refused or {kind for kind, _, _ in team.refused} == {"result"}


def spoiling(team: Team) -> Any:
    """An exchange on which a vector changes; it is not hashed on arrival at first."""

    def exchange(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        for name, reply in team.exchange(kind, messages, deadline_s):
            spoilt = kind == "cohort" and name == "site-1"
            yield name, reply[:-1] + bytes([reply[-1] ^ 1]) if spoilt else reply

    return exchange


@pytest.mark.parametrize("restart", [False, True])
def test_a_last_sum_that_every_site_refuses_is_taken_back(stored: Team, restart: bool) -> None:
    stored.open()
    before = state_hash(state_bytes(stored.state))
    stored.state = stored.after(stored.sum(spoiling(stored), stored.order()))
    if restart:
        stored.restart()
    with pytest.raises(UnvouchedError, match="it is taken back") as found:
        stored.sum.finish(stored.exchange, NAMES, state_bytes(stored.state))
    assert (found.value.model, found.value.kind) == (before, "train")


@pytest.mark.parametrize("restart", [False, True])
def test_a_sum_that_was_taken_back_is_forgotten(stored: Team, restart: bool) -> None:
    before = stored.state
    stored.state = stored.after(stored.sum(spoiling(stored), stored.order()))
    with pytest.raises(UnvouchedError):
        stored.sum.finish(stored.exchange, NAMES, state_bytes(stored.state))
    stored.state = before
    if restart:
        stored.restart()
    assert_sum_of(stored, stored.sum(stored.exchange, stored.order(attempt=1)), range(N))
    assert [len(one.given) for one in stored.work] == [2] * N


def test_of_two_sums_on_one_model_the_last_is_taken_back(team: Team) -> None:
    team.open()
    model = state_hash(state_bytes(team.state))
    team.sum(spoiling(team), team.order("evaluate", 1))
    team.fails("none of 4 sites was there", attempt=2)  # all have refused it
    with pytest.raises(UnvouchedError, match="it is taken back") as found:
        team.open(attempt=3)
    assert (found.value.model, found.value.kind) == (model, "evaluate")


def naming(team: Team, names: Sequence[bytes], sites: Sequence[str] = NAMES) -> Any:
    """An exchange on which these sites say that they can go on from these places, others none."""

    def exchange(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        for name, reply in team.exchange(kind, messages, deadline_s):
            said = names if name in sites else ()
            yield name, greeting(read_greeting(reply)[0], said) if kind == "hello" else reply

    return exchange


@pytest.mark.parametrize("sites", [1, 2])
def test_a_sum_starts_where_two_of_four_have_computed_the_state(team: Team, sites: int) -> None:
    first = place(state_hash(state_bytes(team.state)), NO_RESULT)
    exchange = naming(team, [first], NAMES[:sites])
    if sites == 2:
        assert_sum_of(team, team.sum(exchange, team.order()), range(N))
    else:
        with pytest.raises(ProtocolError, match="expected 2 sites that computed the state"):
            team.sum(exchange, team.order())


def test_no_sum_before_the_last_is_taken_back(team: Team) -> None:
    states = [team.state]
    for _ in range(2):
        team.lost = {("start", 3)}  # which ends the run
        team.open()
        states.append(team.state)
    first = place(state_hash(state_bytes(states[0])), NO_RESULT)
    last = state_bytes(states[-1])
    with pytest.raises(ProtocolError, match="the state or the one before it, got fewer") as found:
        team.sum.finish(naming(team, [first]), NAMES, last)
    assert not isinstance(found.value, UnvouchedError)
    team.lost = set()
    team.sum.finish(team.exchange, NAMES, last)  # nothing was forgotten meanwhile


def test_a_cohorts_run_is_over_with_its_sum() -> None:
    team = Team()
    team.sum = MaskedSum(lambda _: team.coordinator, lambda _: (), 1.0, once=True)
    team.sites = [
        Participant(one._site, one._member, one._lineage, SiteStore(None), once=True)
        for one in team.sites
    ]
    team.open()
    team.open()
    team.sum.finish(team.exchange, NAMES, state_bytes(team.state))
    assert team.kinds() == 2 * (SETUP + SUM)
    assert team.directions(0).trail == ()


# A restart


def test_an_attempt_number_is_never_used_twice(stored: Team) -> None:
    stored.mute = {("start", 1), ("start", 2)}
    stored.fails("cohort")
    stored.restart()
    stored.mute = set()
    stored.open()  # for which the rounds gave the same number
    assert stored.refused == []
    assert read(RoundStart, stored.directions(0).order).message.header.counter == Counter(1, 1)


def test_a_sum_whose_shares_were_asked_for_is_finished(stored: Team) -> None:
    stored.mute = {("unmask", 1), ("unmask", 2)}
    stored.fails("right unmasking answers")
    stored.mute = set()
    stored.restart()
    before = len(stored.told)
    opened = stored.sum(stored.exchange, stored.order())
    assert {kind for kind, _, _ in stored.told[before:]} == {"unmask"}
    assert_sum_of(stored, opened, range(N))
    assert [len(one.given) for one in stored.work] == [1] * N


def test_without_a_restart_another_attempt_is_made(stored: Team) -> None:
    stored.open()
    stored.mute = {("unmask", 1), ("unmask", 2)}
    stored.fails("right unmasking answers")
    stored.mute, stored.told = set(), []
    assert_sum_of(stored, stored.open(attempt=2), range(N))
    assert stored.kinds() == SETUP + SUM


@pytest.mark.parametrize("opened", [False, True])
def test_a_sum_for_something_else_is_not_taken_for_the_one_that_is_wanted(
    stored: Team, opened: bool
) -> None:
    stored.open()
    if opened:
        stored.open("evaluate", 1)
    else:
        stored.mute = {("unmask", 1), ("unmask", 2)}
        stored.fails("right unmasking answers", "evaluate", 1)
        stored.mute = set()
    stored.restart()
    stored.told = []
    assert_sum_of(stored, stored.open(attempt=2), range(N))
    assert stored.kinds() == SETUP + SUM  # and the other is not opened


def test_an_opened_sum_is_not_asked_for_again(stored: Team) -> None:
    opened = stored.sum(stored.exchange, stored.order())
    stored.restart()
    before = len(stored.told)
    again = stored.sum(stored.exchange, stored.order())
    assert len(stored.told) == before
    assert np.array_equal(again.values, opened.values)
    assert np.array_equal(again.lanes, opened.lanes)
    assert again.sites == opened.sites


def test_sites_follow_a_server_that_restarted_after_its_sum(stored: Team) -> None:
    stored.open()
    stored.restart()
    stored.open()
    assert stored.refused == []
    assert all(site.known and site.known.computed for site in stored.sites)


def test_sites_follow_a_server_that_restarted_before_its_step(stored: Team) -> None:
    stored.open()
    stored.sum(stored.exchange, stored.order())  # whose step was never taken
    stored.restart()
    stored.open()
    stored.open()
    assert stored.refused == []
    assert stored.state.round == 3
    assert all(site.known and site.known.computed for site in stored.sites)


def test_an_attempt_that_cannot_be_finished_is_followed_by_another(stored: Team) -> None:
    stored.open()
    stored.lost = {("unmask", index) for index in range(2)}
    stored.fails("right unmasking answers")
    stored.restart()
    stored.fails("right unmasking answers")
    stored.lost = set()
    stored.open(attempt=4)
    assert stored.refused == []


def test_a_damaged_store_ends_the_attempt_by_name(stored: Team, tmp_path: Path) -> None:
    stored.open()
    stored.store._connection.execute("UPDATE attempt SET head = x'00'")  # type: ignore[union-attr]
    stored.restart()
    stored.fails("expected a suspended attempt, got damaged bytes")


# Memory


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("n", "ring_bits"), [(4, 32), (12, 32), (4, 16)])
def test_the_server_holds_two_vectors_whatever_the_number_of_sites(
    n: int, ring_bits: RingBits, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rounds are recorded and played again, so that only the server is measured.

    What SQLite takes is not seen here: see test_store.
    """
    values = 500_000
    vector = 4 * values
    study = parse_study({**STUDY.document(), "evaluation": {"every": 6}})
    monkeypatch.setattr(masked.os, "urandom", lambda count: bytes(range(count)))
    team = Team(None, values, study, n, ring_bits)
    replies = list[list[tuple[str, bytes]]]()

    def recording(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        replies.append(list(team.exchange(kind, messages, deadline_s)))
        return iter(replies[-1])

    def playing(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        for name, reply in replies.pop(0):
            assert messages[name]
            yield name, memoryview(reply).tobytes()  # it arrives

    orders = []
    for _ in range(3):
        orders.append(team.order())
        team.state = team.after(team.sum(recording, orders[-1]))
    team.store = ServerStore(tmp_path / "server.db") if keep else None
    team.restart()
    tracemalloc.start()
    try:
        for order in orders:
            team.sum(playing, order)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The running sum and the vector that is folded into it; or the last sum, as Result and in the
    # orders; or the state in the first order. Beside them the masks of one chunk, a piece for the
    # store, what n sites said.
    assert peak < 2.5 * vector, f"{peak / vector:.2f} vectors"


def test_a_server_that_picks_its_sum_up_holds_one_vector(tmp_path: Path) -> None:
    values = 500_000
    stored = Team(ServerStore(tmp_path / "server.db"), values)
    stored.open()
    opened = stored.sum(stored.exchange, order := stored.order())
    stored.restart()
    tracemalloc.start()
    try:
        again = stored.sum(stored.exchange, order)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(again.values, opened.values)
    assert peak < 1.5 * 4 * values, f"{peak / values / 4:.2f} vectors"
