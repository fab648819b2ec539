"""A site that missed sums of its run follows them by what the others signed, by nothing less."""

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from privacy import keys, secagg_server, secagg_setup, secagg_site
from privacy.errors import ProtocolError
from privacy.roster import Kind, Member, Plan, Roster
from privacy.secagg_messages import (
    NO_RESULT,
    AckSet,
    Result,
    RoundStart,
    SurvivorAck,
    result_hash,
)
from privacy.secagg_replay import replay
from privacy.secagg_server import Coordinator, RunningSum
from privacy.secagg_setup import Grouped, Site
from privacy.secagg_site import Expected
from privacy.wire import SERVER, Counter, read, write

N, ABSENT = 5, 4  # t = 4, so that the sum opens without one
FIRST = Counter(1, 0)
MODEL, NEXT = bytes([7]) * 32, bytes([8]) * 32
IDENTITIES = [keys.identity(bytes([1 + site]) * 32) for site in range(N)]
BOSS = keys.identity(bytes([255]) * 32)
MEMBERS = tuple(Member(f"site-{i}", one.public) for i, one in enumerate(IDENTITIES))
ROSTER = Roster(MEMBERS, BOSS.public)
PLAN = Plan(bytes([1]) * 32, N, 5, train_lanes=2, evaluate_lanes=3)


def vector(site: int, shape: Any) -> Any:
    draw = np.random.default_rng(site)
    return (
        draw.integers(-1000, 1000, shape.values).astype(np.int32),
        draw.integers(-1000, 1000, shape.lanes),
    )


class Team:
    """Sites in one run, and their server."""

    def __init__(self, run: bytes = bytes(16)) -> None:
        self.server = Coordinator(BOSS, PLAN, ROSTER)
        agree = keys.SharedAgreements()
        greeted, hellos = {}, []
        for index, one in enumerate(IDENTITIES):
            site = Site(
                one, index, PLAN, ROSTER, random.Random(run + bytes([index])).randbytes, agree
            )
            greeted[index], data = secagg_setup.hello(site, run, Counter(0, 0))
            hellos.append((index, data))
        gathered, roster = secagg_server.gather(self.server, run, hellos)
        joined, parts = {}, []
        for index, phase in greeted.items():
            joined[index], data = secagg_setup.join(phase, roster)
            parts.append((index, data))
        self.run, boxes = secagg_server.relay(gathered, parts)
        self.grouped = {i: secagg_setup.group(phase, boxes[i]) for i, phase in joined.items()}

    def opening(
        self,
        counter: Counter = FIRST,
        kind: Kind = Kind.TRAIN,
        model: bytes = MODEL,
        result: bytes = NO_RESULT,
        next_model: bytes = NEXT,
    ) -> "Opening":
        """A sum that the last site took no part in."""
        started, start = secagg_server.start_round(self.run, counter, kind, model, result)
        expected = Expected(kind, model, result)
        there = [index for index in self.grouped if index != ABSENT]
        ready = {
            i: secagg_site.start(self.grouped[i], start, expected, Counter(0, 0)) for i in there
        }
        formed = secagg_server.form_cohort(started, [(i, one[1]) for i, one in ready.items()])
        running = RunningSum(formed)
        masked = {}
        for i in there:
            shared = secagg_site.admit(ready[i][0], formed.message(i))
            masked[i], data = secagg_site.mask(shared, *vector(i, started.shape))
            running.add(i, data)
        closed, told = secagg_server.close(running)
        acks = {i: secagg_site.acknowledge(masked[i], told) for i in there}
        agreed, ack_set = secagg_server.agree_survivors(
            closed, [(i, a[1]) for i, a in acks.items()]
        )
        answers = [(i, secagg_site.reveal(acks[i][0], ack_set)[1]) for i in there]
        opened = secagg_server.open_sum(agreed, answers)
        return Opening(start, ack_set, secagg_server.write_result(opened, next_model), expected)


@dataclass(frozen=True)
class Opening:
    start: bytes
    acks: bytes
    result: bytes
    expected: Expected

    @property
    def result_hash(self) -> bytes:
        return result_hash(read(Result, self.result))


@pytest.fixture(scope="module")
def team() -> Team:
    return Team()


@pytest.fixture(scope="module")
def opening(team: Team) -> Opening:
    return team.opening()


def follow(team: Team, one: Opening) -> secagg_site.Sums:
    return replay(team.grouped[ABSENT], one.start, one.acks, one.result, one.expected)


def edited(kind: Any, data: bytes, identity: Any = BOSS, **changes: Any) -> bytes:
    """The message with other fields (``head``: of its header), signed anew."""
    signed = read(kind, data)
    header = replace(signed.message.header, **changes.pop("head", {}))
    return write(replace(signed.message, header=header, **changes), identity, signed.tail)


# What holds


def test_a_missed_sum_is_followed(team: Team, opening: Opening) -> None:
    sums = follow(team, opening)
    works = [vector(i, PLAN.shape(Kind.TRAIN)) for i in range(N) if i != ABSENT]
    assert np.array_equal(sums.values, sum(values for values, _ in works))
    assert np.array_equal(sums.lanes, sum(lanes for _, lanes in works))
    assert sums.survivors == (0, 1, 2, 3)
    assert (sums.next_model, sums.result_hash) == (NEXT, opening.result_hash)


def test_several_missed_sums_are_followed_one_by_one(team: Team) -> None:
    first = team.opening(Counter(1, 0))
    second = team.opening(Counter(1, 1), Kind.EVALUATE, NEXT, first.result_hash, NEXT)
    third = team.opening(Counter(2, 0), Kind.TRAIN, NEXT, second.result_hash, MODEL)
    result = NO_RESULT
    for one in (first, second, third):
        assert one.expected.result == result
        result = follow(team, one).result_hash


def test_a_site_that_was_there_may_follow_too(team: Team, opening: Opening) -> None:
    sums = replay(team.grouped[0], opening.start, opening.acks, opening.result, opening.expected)
    assert sums.next_model == NEXT


# What does not


def refused(team: Team, one: Opening, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        follow(team, one)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": Kind.EVALUATE}, "message 4: expected a round to evaluate, got train"),
        ({"model": NEXT}, "message 4: expected a missed round that starts from the own state"),
        ({"result": NEXT}, "message 4: expected the hash of the last result"),
    ],
)
def test_a_sum_that_does_not_follow_the_own_state_is_refused(
    team: Team, opening: Opening, changes: Any, match: str
) -> None:
    refused(team, replace(opening, expected=replace(opening.expected, **changes)), match)


@pytest.mark.parametrize("part", ["start", "acks", "result"])
def test_a_part_of_another_attempt_is_refused(team: Team, opening: Opening, part: str) -> None:
    other = team.opening(Counter(1, 2))
    refused(team, replace(opening, **{part: getattr(other, part)}), "expected")


@pytest.mark.parametrize("part", ["start", "acks", "result"])
def test_a_part_of_another_run_is_refused(team: Team, opening: Opening, part: str) -> None:
    other = Team(bytes([3]) * 16).opening()
    refused(
        team, replace(opening, **{part: getattr(other, part)}), "the server's message of this run"
    )


def test_a_whole_sum_of_another_run_is_refused(team: Team) -> None:
    refused(team, Team(bytes([3]) * 16).opening(), "the server's message of this run")


@pytest.mark.parametrize(
    ("part", "kind"), [("start", RoundStart), ("acks", AckSet), ("result", Result)]
)
def test_a_part_that_the_pinned_server_did_not_sign_is_refused(
    team: Team, opening: Opening, part: str, kind: Any
) -> None:
    forged = edited(kind, getattr(opening, part), IDENTITIES[0])
    refused(team, replace(opening, **{part: forged}), "the pinned server's signature")


def test_other_members_are_refused(team: Team, opening: Opening) -> None:
    start = edited(RoundStart, opening.start, members=(0, 1, 2, 3))
    refused(team, replace(opening, start=start), "message 4: expected all 5 sites of the run")


def acknowledgements(opening: Opening) -> list[Any]:
    return list(read(AckSet, opening.acks).message.acks)


def with_acks(opening: Opening, acks: list[Any]) -> Opening:
    header = replace(acks[0].message.header, number=AckSet.NUMBER, sender=SERVER)
    header = replace(header, counter=read(AckSet, opening.acks).message.header.counter)
    header = replace(header, run=read(AckSet, opening.acks).message.header.run)
    return replace(opening, acks=write(AckSet(header, tuple(acks)), BOSS))


def changed_ack(opening: Opening, place: int, by: int | None = None, **changes: Any) -> Opening:
    acks = acknowledgements(opening)
    identity = IDENTITIES[place if by is None else by]
    data = edited(SurvivorAck, acks[place].signed, identity, **changes)
    acks[place] = read(SurvivorAck, data)
    return with_acks(opening, acks)


def test_fewer_acknowledgements_than_t_are_refused(team: Team, opening: Opening) -> None:
    less = with_acks(opening, acknowledgements(opening)[:3])
    refused(team, less, "message 10: expected at least 4 acknowledgements, got 3")


def test_a_forged_acknowledgement_is_refused(team: Team, opening: Opening) -> None:
    refused(team, changed_ack(opening, 2, by=0), "message 10: expected the signature of site-2")


@pytest.mark.parametrize("changes", [{"survivors": (0, 1, 2, 3, 4)}, {"cohort_hash": bytes(32)}])
def test_two_sets_of_survivors_are_refused(team: Team, opening: Opening, changes: Any) -> None:
    refused(team, changed_ack(opening, 3, **changes), "message 10: expected one set of survivors")


@pytest.mark.parametrize("head", [{"counter": Counter(1, 9)}, {"run": bytes([5]) * 16}])
def test_an_acknowledgement_of_another_attempt_is_refused(
    team: Team, opening: Opening, head: Any
) -> None:
    refused(team, changed_ack(opening, 1, head=head), "site-1 to acknowledge that attempt")


def lied(opening: Opening, survivors: tuple[int, ...]) -> Opening:
    """All acknowledge another set, which only t colluders could sign."""
    for place in range(4):
        opening = changed_ack(opening, place, survivors=survivors)
    return opening


@pytest.mark.parametrize("survivors", [(0, 1, 2), (0, 1, 2, 3, 17)])
def test_survivors_below_the_quorum_or_outside_the_run_are_refused(
    team: Team, opening: Opening, survivors: tuple[int, ...]
) -> None:
    refused(team, lied(opening, survivors), "message 8: expected at least 4 survivors of the run")


def test_an_acknowledgement_of_a_site_outside_the_set_is_refused(
    team: Team, opening: Opening
) -> None:
    refused(team, lied(opening, (0, 1, 2, 4)), "acknowledgements of survivors, got one of site-3")


def test_the_sum_of_other_survivors_is_refused(team: Team, opening: Opening) -> None:
    refused(team, lied(opening, (0, 1, 2, 3, 4)), "message 12: expected the sum of the agreed")


@pytest.mark.parametrize("place", [0, 8, 16, 24, 40])
def test_a_changed_sum_is_refused(team: Team, opening: Opening, place: int) -> None:
    signed = read(Result, opening.result)
    payload = bytearray(signed.tail)
    payload[place] ^= 1  # of tau, each lane, a value
    message = replace(signed.message, payload_hash=hashlib.sha256(payload).digest())
    forged = write(message, BOSS, bytes(payload))
    refused(team, replace(opening, result=forged), "message 12: expected a sum that its MAC")


@pytest.mark.parametrize("part", ["start", "acks", "result"])
def test_every_flipped_byte_is_refused(team: Team, opening: Opening, part: str) -> None:
    data = getattr(opening, part)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x55
        with pytest.raises(ProtocolError):
            follow(team, replace(opening, **{part: bytes(flipped)}))


def test_a_run_that_the_site_is_not_in_cannot_be_followed(team: Team, opening: Opening) -> None:
    other: Grouped = Team(bytes([3]) * 16).grouped[ABSENT]
    stolen = replace(other, run=team.run.run)  # its keys and transcript are of the other run
    with pytest.raises(ProtocolError, match="message 12: expected a sum that its MAC confirms"):
        replay(stolen, opening.start, opening.acks, opening.result, opening.expected)
