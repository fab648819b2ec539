"""Attacks 3, 6, 12, 18 and 19 against whole sites: with their store, their own state, their work.

The server is the project's own; what it sends is bent on the way, or its state is another.
"""

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import PAYLOAD, RECORD, make_app
from client.lineage import Lineage
from client.masked import KINDS, Participant
from client.site import Contribution
from privacy import keys, mac, secagg_setup
from privacy.errors import FedwardError, PrivacyError, ProtocolError
from privacy.roster import Member, Plan, Roster
from privacy.secagg_messages import AckSet, Result, RoundStart, RunHello, RunRoster, SurvivorAck
from privacy.secagg_server import Coordinator
from privacy.secagg_store import SiteStore
from privacy.wire import Counter, read, write
from server.masked import MaskedSum
from server.rounds import Order
from shared_models.lanes import evaluate_lanes
from shared_models.messages import Opening, directions, read_directions
from shared_models.steps import after_sum
from shared_models.strategies import State, first_state, state_bytes, state_hash
from shared_models.study import parse_study

N, P = 4, 6  # sites, of which t = 3 must answer and one may collude; parameters
NAMES = tuple(f"site-{index}" for index in range(N))
STUDY = parse_study(
    {
        "name": "s",
        "task": "tabular",
        "rounds": 9,
        "data": {
            "target": "ill",
            "columns": {
                "ill": {"kind": "category", "values": ["no", "yes"]},
                "age": {"kind": "number", "low": 0, "high": 1},
            },
        },
        "model": {"name": "mlp"},
        "training": {"learning_rate": 0.1, "local_steps": 1},
        "privacy": {"mode": "none"},
        "aggregation": {"strategy": "fedadam"},
        "evaluation": {"every": 9},
    }
)
FIRST_STATE = first_state(STUDY.aggregation, np.linspace(-1, 1, P, dtype=np.float32))
FIRST_MODEL = state_hash(state_bytes(FIRST_STATE))
IDENTITIES = [keys.identity(bytes([1 + site]) * 32) for site in range(N)]
BOSS = keys.identity(bytes([255]) * 32)
MEMBERS = tuple(Member(name, one.public) for name, one in zip(NAMES, IDENTITIES, strict=True))
ROSTER = Roster(MEMBERS, BOSS.public)
PLAN = Plan(
    bytes([1]) * 32, N, P, train_lanes=3, evaluate_lanes=len(evaluate_lanes(STUDY)), min_sites=3
)


class Work:
    """Stands for records and training: fresh draws at each call, which are counted as debits."""

    def __init__(self, index: int) -> None:
        self.draw = np.random.default_rng(index)
        self.debits: list[tuple[int, int]] = []
        self.allowed = 99

    def ledger_head(self) -> bytes:
        return bytes(32)

    def contribute(self, kind: str, state: State, number: int, attempt: int) -> Contribution:
        if len(self.debits) == self.allowed:
            raise PrivacyError("expected room in the budget, got none; no record was read")
        self.debits.append((number, attempt))
        if kind == "evaluate":
            cells = self.draw.integers(0, 9, len(evaluate_lanes(STUDY)))
            return Contribution(np.empty(0, np.int32), cells)
        values = self.draw.integers(-(2**20), 2**20, P).astype(np.int32)
        return Contribution(values, np.array([1 << 16, 5, 7], np.int64))


class Headlong(MaskedSum):
    """A server that asks sites to go on from its state, whatever they say they computed."""

    def _check_vouched(self, *arguments: object) -> None:
        pass


class Study:
    """Four hospitals with stores on disk, and a server that keeps the study's state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores: dict[int, SiteStore] = {}
        self.work = [Work(index) for index in range(N)]
        self.sites = [self.participant(index) for index in range(N)]
        self.restart_server()
        self.state = FIRST_STATE
        self.lies: dict[tuple[str, int | None], Callable[[bytes], bytes | None]] = {}
        self.lost: set[tuple[str, int]] = set()  # answers that never arrive
        self.said: list[tuple[str, int, bytes]] = []
        self.told: list[tuple[str, int, bytes]] = []
        self.refusals: dict[int, FedwardError] = {}

    def participant(self, index: int) -> Participant:
        """A site after a start of its computer."""
        place = secagg_setup.Site(
            IDENTITIES[index], index, PLAN, ROSTER, random.Random(index).randbytes
        )
        lineage = Lineage(STUDY, P, FIRST_MODEL)
        if index in self.stores:
            self.stores[index].close()
        self.stores[index] = SiteStore(self.folder / f"{index}.db")
        return Participant(self.work[index], lambda _: place, lineage, self.stores[index])  # type: ignore[arg-type]

    def restart_server(self) -> None:
        self.server = Headlong(lambda _: Coordinator(BOSS, PLAN, ROSTER), lambda _: (), 1.0)

    def sum(self, number: int, attempt: int = 0, kind: Any = "train") -> None:
        """One attempt on the server's state, which takes the strategy's step when it is opened."""
        self.said, self.told, self.refusals = [], [], {}
        order = Order(kind, number, attempt, NAMES, state_bytes(self.state))
        opened = self.server(self.exchange, order)
        if kind == "train":
            self.state = after_sum(
                STUDY, self.state, opened.values, opened.lanes, opened.sites, N, N
            )

    def exchange(
        self, kind: str, messages: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        for name, message in messages.items():
            index = NAMES.index(name)
            bend = self.lies.get((kind, index), self.lies.get((kind, None), lambda data: data))
            told = bend(message)
            if told is None or index in self.refusals:
                continue
            self.told.append((kind, index, told))
            try:
                reply = self.sites[index].answer(kind, told)
            except FedwardError as error:
                self.refusals[index] = error
                continue
            self.said.append((kind, index, reply))
            if (kind, index) not in self.lost:
                yield name, reply

    def assert_refused(self, site: int, step: str, match: str) -> None:
        """The site refused this step by name, in this attempt, and said nothing afterwards."""
        with pytest.raises(FedwardError, match=match):
            raise self.refusals[site]
        assert (
            self.told[max(at for at, (_, one, _) in enumerate(self.told) if one == site)][0] == step
        )
        assert not any((kind, one) == (step, site) for kind, one, _ in self.said)

    def fails(self, number: int, attempt: int = 0) -> None:
        """An attempt that ends without a sum."""
        with pytest.raises(FedwardError):
            self.sum(number, attempt)

    def message_to(self, step: str, site: int) -> bytes:
        return next(data for kind, one, data in self.told if (kind, one) == (step, site))

    def said_by(self, step: str, site: int) -> bytes:
        return next(data for kind, one, data in self.said if (kind, one) == (step, site))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_without_a_lie_rounds_follow_each_other_and_sites_know_the_state(study: Study) -> None:
    for number in (1, 2, 3):
        study.sum(number)
    study.server.finish(study.exchange, NAMES, state_bytes(study.state))
    for site in study.sites:
        assert site.known is not None
        assert site.known.digest == state_hash(state_bytes(study.state))


# --- 3 and 11: a second Unmask ------------------------------------------------------------------


def other_ack_set(study: Study) -> bytes:
    """The same attempt's AckSet from other signers: sites 1, 2 and 3."""
    honest = read(AckSet, study.message_to("unmask", 0)).message
    acks = tuple(read(SurvivorAck, study.said_by("survivors", site)) for site in (1, 2, 3))
    return write(AckSet(honest.header, acks), BOSS)


@pytest.mark.parametrize("restart", [False, True])
def test_attack_03_a_second_unmask_is_the_same_bytes_or_nothing(
    study: Study, restart: bool
) -> None:
    study.sum(1)
    asked, given, other = (
        study.message_to("unmask", 0),
        study.said_by("unmask", 0),
        other_ack_set(study),
    )
    site = study.participant(0) if restart else study.sites[0]
    assert site.answer("unmask", asked) == given
    with pytest.raises(ProtocolError, match="message 10: expected the set that was answered"):
        site.answer("unmask", other)


@pytest.mark.parametrize("restart", [False, True])
def test_attack_03_an_ack_set_held_back_until_the_next_attempt(study: Study, restart: bool) -> None:
    study.lies["unmask", None] = lambda _: None
    study.fails(1)
    acks = tuple(read(SurvivorAck, study.said_by("survivors", site)) for site in (0, 1, 2))
    header = acks[0].message.header
    server = type(header)(AckSet.NUMBER, header.run, header.counter, 0xFFFF)
    held = write(AckSet(server, acks), BOSS)
    if restart:
        study.sites[0] = study.participant(0)
    study.lies["unmask", None] = lambda _: held
    study.fails(1, 1)
    study.assert_refused(0, "unmask", "message 10: ")
    assert not any(kind == "unmask" for kind, _, _ in study.said)


def test_attack_03_no_answer_after_a_restart_in_the_middle_of_an_attempt(study: Study) -> None:
    def restart(data: bytes) -> bytes:
        study.sites[0] = study.participant(0)  # its shares are gone with its memory
        return data

    study.lies["unmask", 0] = restart
    study.sum(1)  # the other three are enough
    study.assert_refused(0, "unmask", "expected another message than unmask now")


# --- 6 and 12: a state that is not the strategy's own step ---------------------------------------


def wrong(state: State) -> State:
    model = state.model.copy()
    model[0] = np.nextafter(model[0], 2)
    return State(state.round, model, state.moments)


def test_attack_12_a_next_model_that_is_not_the_strategys_step(study: Study) -> None:
    study.sum(1)
    study.state = wrong(study.state)  # by one bit
    study.fails(2)
    for site in range(N):
        study.assert_refused(
            site, "start", "message 12: expected the hash of the strategy's own step"
        )


def test_attack_12_moments_that_are_not_the_strategys(study: Study) -> None:
    study.sum(1)
    moments = dict(study.state.moments)
    moments["v"] = moments["v"] / 2  # the next step alone would show it
    study.state = State(study.state.round, study.state.model, moments)
    study.fails(2)
    study.assert_refused(0, "start", "message 12: expected the hash of the strategy's own step")


def in_trail(change: Callable[[Opening], Opening]) -> Callable[[bytes], bytes]:
    """A lie about the last opening inside an order."""

    def lie(data: bytes) -> bytes:
        order, trail, state = read_directions(data)
        return directions(order, [*trail[:-1], *(change(one) for one in trail[-1:])], state)

    return lie


@pytest.mark.parametrize("step", [1, 2**31, mac.PRIME])
def test_attack_12_a_forged_sum_is_not_stepped_on(study: Study, step: int) -> None:
    def forge(opening: Opening) -> Opening:
        signed = read(Result, opening.result)
        payload = np.frombuffer(signed.tail, np.uint8).copy()
        payload[8:16].view("<i8")[0] += step  # the lane of weights
        message = replace(signed.message, payload_hash=hashlib.sha256(payload).digest())
        return opening._replace(result=write(message, BOSS, payload.tobytes()))

    study.sum(1)
    study.lies["start", 0] = in_trail(forge)
    study.sum(2)
    study.assert_refused(0, "start", r"message 12: expected (a sum that its MAC|sums of lanes)")


def test_attack_06_another_model_for_a_site_that_knows_its_own(study: Study) -> None:
    study.sum(1)

    def lie(data: bytes) -> bytes:
        order, trail, _ = read_directions(data)
        return directions(other_start(order, wrong(study.state)), trail, bytes_of_wrong)

    bytes_of_wrong = state_bytes(wrong(study.state))
    study.lies["start", 0] = lie
    study.sum(2)
    study.assert_refused(0, "start", "message 4: expected the hash of the own model and state")


class Carried:
    """A site behind its Flower app, as in a deployment: of a refusal only a code comes back."""

    def __init__(self, site: Participant) -> None:
        self.app = make_app(KINDS, lambda kind, _, message: site.answer(kind, message))

    def answer(self, kind: str, message: bytes) -> bytes:
        sent = Message(RecordDict({RECORD: ConfigRecord({PAYLOAD: message})}), 1, f"query.{kind}")
        sent.metadata.__dict__["_message_id"] = "1"
        reply = self.app(sent, Context(1, 1, {}, RecordDict(), {}))
        if reply.has_error():
            raise ProtocolError(f"code {reply.error.code}: {reply.error.reason}")
        return cast(bytes, reply.content[RECORD][PAYLOAD])


def another_plan(data: bytes) -> bytes:
    """The roster of a run in which site-1 approved another plan."""
    roster = read(RunRoster, data).message
    hellos = list(roster.hellos)
    other = write(replace(hellos[1].message, plan=bytes(32)), IDENTITIES[1])
    hellos[1] = read(RunHello, other)
    return write(replace(roster, hellos=tuple(hellos)), BOSS)


def another_model(data: bytes) -> bytes:
    lied = wrong(FIRST_STATE)
    order, trail, _ = read_directions(data)
    return directions(other_start(order, lied), trail, state_bytes(lied))


def a_forged_sum(opening: Opening) -> Opening:
    signed = read(Result, opening.result)
    payload = bytes(signed.tail[:-1]) + bytes([signed.tail[-1] ^ 1])
    message = replace(signed.message, payload_hash=hashlib.sha256(payload).digest())
    return opening._replace(result=write(message, BOSS, payload))


@pytest.mark.parametrize(
    ("step", "lie", "reason"),
    [
        ("roster", another_plan, "message 2: expected the approved plan at site-1"),
        ("start", another_model, "message 4: expected the hash of the own model and state"),
        ("start", "a forged sum", "message 12: expected a sum that its MAC confirms"),
    ],
)
def test_attack_06_12_the_reason_of_a_refusal_is_in_the_sites_log_alone(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
    lie: Any,
    reason: str,
) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    study.sites[0] = Carried(study.sites[0])  # type: ignore[call-overload]
    study.sum(1)
    study.lies[step, 0] = in_trail(a_forged_sum) if lie == "a forged sum" else lie
    if step == "roster":
        study.restart_server()
        study.state = FIRST_STATE
    with suppress(FedwardError):
        study.sum(study.state.round + 1, 1)
    assert str(study.refusals[0]) == "code 4: refused"
    told = [one.getMessage() for one in caplog.records if one.name == "fedward.site"]
    assert len(told) == 1
    assert told[0].startswith(f"{step} was refused: {reason}")


def other_start(order: bytes, state: State) -> bytes:
    message = read(RoundStart, order).message
    return write(replace(message, model=state_hash(state_bytes(state))), BOSS)


def test_attack_06_another_model_for_a_newcomer(study: Study) -> None:
    study.lies["hello", 3] = lambda _: None
    study.sum(1)
    study.lies.clear()
    study.restart_server()
    lied = wrong(study.state)
    study.lies["start", 3] = lambda data: directions(
        other_start(read_directions(data).order, lied), (), state_bytes(lied)
    )
    study.fails(2)
    for site in range(N):  # the newcomer cannot know, but nobody is in a cohort with it
        study.assert_refused(site, "cohort", "message 6: expected the own ctx from site-")


def test_attack_06_a_model_that_nobody_computed(study: Study) -> None:
    study.sum(1)
    for index in range(N):
        study.stores[index].close()
        (study.folder / f"{index}.db").unlink()
        study.sites[index] = study.participant(index)  # all lost their memory
    study.restart_server()
    study.state = wrong(study.state)
    study.fails(2)
    for site in range(N):
        study.assert_refused(site, "cohort", "message 6: expected 2 sites that computed this state")


def test_attack_06_a_round_out_of_turn(study: Study) -> None:
    study.sum(1)
    study.fails(1, 1)  # the round once more, though its sum is known to all
    for site in range(N):
        study.assert_refused(site, "start", "message (4|12): ")


def test_attack_07_a_refused_order_changes_nothing(study: Study) -> None:
    """An order under no valid signature, of a later round: the site must not believe its past."""
    study.sum(1)
    site = study.sites[0]
    order, _, _ = read_directions(study.message_to("start", 0))
    later = read(RoundStart, order).message
    header = replace(later.header, counter=Counter(7, 0))
    state = State(6, study.state.model, study.state.moments)
    fake = replace(
        later, header=header, result=bytes([9]) * 32, model=state_hash(state_bytes(state))
    )
    with pytest.raises(ProtocolError, match="message 4: expected the pinned server's signature"):
        site.answer("start", directions(write(fake, IDENTITIES[1]), (), state_bytes(state)))
    study.sum(2)
    assert not study.refusals


# --- 18: restored from an older copy -------------------------------------------------------------


def test_attack_18_a_site_restored_from_an_older_copy(study: Study, tmp_path: Path) -> None:
    study.sum(1)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("3.db*"):
        shutil.copy(file, copy)
    study.sum(2)
    study.stores[3].close()
    for file in tmp_path.glob("3.db*"):
        file.unlink()
    for file in copy.iterdir():
        shutil.copy(file, tmp_path)
    study.sites[3] = study.participant(3)
    study.restart_server()
    study.fails(3)
    for site in range(3):
        study.assert_refused(
            site, "roster", r"message 2: expected site-3 at .*: it was rolled back"
        )


# --- 19: one model opened twice -------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_attack_19_before_unmask_another_attempt_masks_the_same_integers(
    study: Study, restart: bool
) -> None:
    study.lies["unmask", None] = lambda _: None
    study.fails(1)
    if restart:
        study.sites = [study.participant(index) for index in range(N)]
    study.lies.clear()
    study.lost.add(("cohort", 3))  # and with other survivors: the sums differ by a whole vector,
    study.sum(1, 1)  # but the first one was never opened
    assert [work.debits for work in study.work] == [[(1, 0)]] * N


@pytest.mark.parametrize("restart", [False, True])
def test_attack_19_after_unmask_the_same_model_is_fresh_draws_and_a_debit(
    study: Study, restart: bool
) -> None:
    first = study.state
    study.sum(1)
    study.state = first  # the server forgets the sum that it has opened
    study.restart_server()
    if restart:
        study.sites = [study.participant(index) for index in range(N)]
    study.lost.add(("cohort", 3))
    study.sum(1, 1)
    assert [work.debits for work in study.work] == [[(1, 0), (1, 1)]] * N


def test_attack_19_after_unmask_without_a_budget_there_is_nothing(study: Study) -> None:
    for work in study.work:
        work.allowed = 1
    first = study.state
    study.sum(1)
    study.state = first
    study.restart_server()
    study.fails(1, 1)
    for site in range(N):
        study.assert_refused(site, "cohort", "expected room in the budget")
