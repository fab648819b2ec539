"""An open attempt as bytes: a restarted server finishes it, and takes nothing else for one."""

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from privacy import keys, secagg_server, secagg_setup, secagg_site
from privacy.errors import ProtocolError
from privacy.roster import Kind, Member, Plan, Roster
from privacy.secagg_messages import AckSet, Cohort, Masked, RoundStart, SurvivorAck
from privacy.secagg_server import Coordinator, RunningSum
from privacy.secagg_suspend import Resumed, resume, suspend
from privacy.wire import Counter, read, write

N, DROPPED = 4, 3  # t = 3
MODEL, START = bytes([7]) * 32, Counter(0, 0)
IDENTITIES = [keys.identity(bytes([1 + site]) * 32) for site in range(N)]
BOSS = keys.identity(bytes([255]) * 32)
MEMBERS = tuple(Member(f"site-{i}", one.public) for i, one in enumerate(IDENTITIES))
ROSTER = Roster(MEMBERS, BOSS.public)
PLAN = Plan(bytes([1]) * 32, N, 5, train_lanes=1)
SERVER = Coordinator(BOSS, PLAN, ROSTER)


@dataclass(frozen=True)
class Attempt:
    """An attempt whose shares are about to be asked for."""

    agreed: secagg_server.Agreed
    start: bytes
    ack_set: bytes
    answers: list[tuple[int, bytes]]
    late: bytes  # the vector of the site that dropped

    @property
    def parts(self) -> list[bytes]:
        """What is written: RoundStart, Cohort, AckSet and the sum."""
        running = self.agreed.running
        words = running.total.words.tobytes()
        return [self.start, running.formed.signed, self.ack_set, words]


def attempt() -> Attempt:
    run, draw = bytes(16), random.Random(1).randbytes
    sites = [secagg_setup.Site(IDENTITIES[i], i, PLAN, ROSTER, draw) for i in range(N)]
    greeted = [secagg_setup.hello(site, run, START) for site in sites]
    gathered, roster = secagg_server.gather(SERVER, run, [(i, g[1]) for i, g in enumerate(greeted)])
    joined = [secagg_setup.join(phase, roster) for phase, _ in greeted]
    ready, boxes = secagg_server.relay(gathered, [(i, j[1]) for i, j in enumerate(joined)])
    grouped = [secagg_setup.group(phase, boxes[i]) for i, (phase, _) in enumerate(joined)]
    started, start = secagg_server.start_round(ready, Counter(2, 1), Kind.TRAIN, MODEL)
    expected = secagg_site.Expected(Kind.TRAIN, MODEL)
    readies = [secagg_site.start(one, start, expected, START) for one in grouped]
    formed = secagg_server.form_cohort(started, [(i, r[1]) for i, r in enumerate(readies)])
    running = RunningSum(formed)
    values = [np.full(5, 10 + i, np.int32) for i in range(N)]
    masked = [
        secagg_site.mask(
            secagg_site.admit(one, formed.message(i)), values[i], np.array([i], np.int64)
        )
        for i, (one, _) in enumerate(readies)
    ]
    there = [i for i in range(N) if i != DROPPED]
    for i in there:
        assert running.add(i, masked[i][1])
    closed, told = secagg_server.close(running)
    acks = {i: secagg_site.acknowledge(masked[i][0], told) for i in there}
    agreed, ack_set = secagg_server.agree_survivors(closed, [(i, a[1]) for i, a in acks.items()])
    answers = [(i, secagg_site.reveal(acks[i][0], ack_set)[1]) for i in there]
    return Attempt(agreed, start, ack_set, answers, masked[DROPPED][1])


@pytest.fixture(scope="module")
def made() -> Attempt:
    return attempt()


def packed(parts: list[bytes], opened: bool = False) -> tuple[bytes, bytes]:
    """Head and sum that `resume` finds whole, whatever is in them."""
    *others, words = parts
    lengths = b"".join(len(part).to_bytes(8, "little") for part in others)
    body = bytes([opened]) + hashlib.sha256(words).digest() + lengths + b"".join(others)
    return hashlib.sha256(body).digest() + body, words


def resumed(head: bytes, words: bytes) -> Resumed:
    """What comes of them, the sum in two pieces."""
    return resume(SERVER, head, [words[:7], words[7:]])


def test_a_resumed_attempt_opens_the_sum(made: Attempt) -> None:
    head, words = suspend(made.agreed, made.start, made.ack_set)
    agreed, start, ack_set, opened = resumed(head, bytes(words))
    assert (start, ack_set, opened) == (made.start, made.ack_set, None)
    opened = secagg_server.open_sum(agreed, made.answers)
    assert opened.survivors == (0, 1, 2)
    assert opened.values.tolist() == [33] * 5
    assert opened.lanes.tolist() == [3]


def test_what_is_written_is_the_four_parts(made: Attempt) -> None:
    assert suspend(made.agreed, made.start, made.ack_set) == packed(made.parts)


def test_the_sum_is_not_copied(made: Attempt) -> None:
    _, words = suspend(made.agreed, made.start, made.ack_set)
    assert np.shares_memory(np.frombuffer(words, np.uint8), made.agreed.running.total.words)


def test_a_resumed_sum_takes_no_vector_any_more(made: Attempt) -> None:
    agreed = resumed(*packed(made.parts)).agreed
    before = agreed.running.total.words.copy()
    assert read(Masked, made.late)  # a right one, of a site that is not in the sum
    assert not agreed.running.add(DROPPED, made.late)
    assert (agreed.running.total.words == before).all()


def test_a_suspended_attempt_may_be_resumed_twice(made: Attempt) -> None:
    data = packed(made.parts)
    first, second = (resumed(*data).agreed for _ in range(2))
    sums = [secagg_server.open_sum(one, made.answers).values.tolist() for one in (first, second)]
    assert sums[0] == sums[1] == [33] * 5


@pytest.mark.parametrize("part", ["head", "sum"])
def test_every_flipped_byte_of_a_suspended_attempt_is_refused(made: Attempt, part: str) -> None:
    head, words = packed(made.parts)
    data = head if part == "head" else words
    for place in range(len(data)):
        wrong = bytearray(data)
        wrong[place] ^= 1 << (place % 8)
        with pytest.raises(ProtocolError, match="damaged bytes; nothing was opened"):
            resumed(*((bytes(wrong), words) if part == "head" else (head, bytes(wrong))))


@pytest.mark.parametrize("size", [0, 31, 32, 56, 57, 63, 64, 88, 89, 200])
def test_a_suspended_attempt_that_was_cut_is_refused(made: Attempt, size: int) -> None:
    head, words = packed(made.parts)
    with pytest.raises(ProtocolError):
        resumed(head[:size], words)
    body = head[32:][:size]  # its digest fits
    with pytest.raises(ProtocolError):
        resumed(hashlib.sha256(body).digest() + body, words)


def test_an_attempt_without_parts_is_none() -> None:
    with pytest.raises(ProtocolError, match="a header of 32 bytes, got 0"):
        resumed(*packed([b"", b"", b"", b""]))


def signed_by(identity: keys.Identity, kind: Any, data: bytes, **head: Any) -> bytes:
    tail = bytes(3 * 82) if kind is Cohort else b""  # the sites' boxes are not kept
    signed = read(kind, data + tail)
    message = replace(signed.message, header=replace(signed.message.header, **head))
    return write(message, identity)


@pytest.mark.parametrize(("part", "kind"), [(0, RoundStart), (1, Cohort), (2, AckSet)])
@pytest.mark.parametrize("case", ["key", "sender"])
def test_an_attempt_of_another_server_is_refused(
    made: Attempt, part: int, kind: Any, case: str
) -> None:
    parts = list(made.parts)
    parts[part] = (
        signed_by(IDENTITIES[0], kind, parts[part])
        if case == "key"
        else signed_by(BOSS, kind, parts[part], sender=1)
    )
    with pytest.raises(ProtocolError, match="an attempt of this server, got another's"):
        resumed(*packed(parts))


@pytest.mark.parametrize("change", [-4, 4])
def test_a_sum_of_another_plan_is_refused(made: Attempt, change: int) -> None:
    *parts, words = made.parts
    resized = words[:change] if change < 0 else words + bytes(change)
    with pytest.raises(ProtocolError, match="a sum of this plan, got another"):
        resumed(*packed([*parts, resized]))


def test_the_survivors_are_those_of_the_acknowledgements(made: Attempt) -> None:
    agreed = resumed(*packed(made.parts)).agreed
    acks = read(AckSet, made.ack_set).message.acks
    assert {one.message.survivors for one in acks} == {agreed.survivors}
    assert type(acks[0].message) is SurvivorAck


def test_an_opened_sum_comes_back_and_is_not_opened_again(made: Attempt) -> None:
    agreed = resumed(*packed(made.parts)).agreed
    opened = secagg_server.open_sum(agreed, made.answers)
    head, words = suspend(agreed, made.start, made.ack_set, opened)
    assert (head, words) == packed([*made.parts[:3], opened.payload.words.tobytes()], opened=True)
    again = resumed(head, bytes(words))
    assert again.opened is not None
    assert again.opened.values.tolist() == [33] * 5
    assert again.opened.survivors == (0, 1, 2)
    results = [secagg_server.write_result(one, MODEL) for one in (opened, again.opened)]
    assert results[0] == results[1]
    with pytest.raises(ValueError, match="not opened yet"):
        secagg_server.open_sum(again.agreed, made.answers)
