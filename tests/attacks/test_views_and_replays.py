"""Attacks 6, 7 and 19: another view for one site, old messages, a model opened twice."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy.errors import ProtocolError
from privacy.roster import Kind
from privacy.secagg_messages import (
    PART_BOX,
    SHARES_BOX,
    AckSet,
    Cohort,
    GroupPart,
    Ready,
    Result,
    RoundStart,
    RunHello,
    RunRoster,
    SurvivorAck,
    Survivors,
    read_group_parts,
    write_group_parts,
)
from privacy.secagg_site import Expected
from privacy.secagg_store import SiteStore
from privacy.wire import Counter, read, read_records, records, write

RUN, FIRST, ALL = bytes(range(16)), Counter(1, 0), (0, 1, 2, 3, 4)
OTHER = bytes([9]) * 32
KINDS: dict[str, Any] = {
    "roster": RunRoster,
    "start": RoundStart,
    "cohort": Cohort,
    "survivors": Survivors,
    "unmask": AckSet,
    "result": Result,
}
TO_SITES = ("start", "cohort", "survivors", "unmask", "result")


@pytest.fixture
def five(federation: Any) -> Any:
    return federation(5)  # t = 4


# --- 6: another view for one site --------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": OTHER}, Expected(Kind.TRAIN, OTHER)),
        ({"result": OTHER}, Expected(Kind.TRAIN, bytes([7]) * 32, OTHER)),
    ],
    ids=["model", "last result"],
)
def test_attack_06_another_model_or_past_that_the_site_cannot_check(
    five: Any, changes: Any, expected: Expected
) -> None:
    five.lies["start", 0] = five.edit(RoundStart, **changes)
    five.hospitals[0].expected = expected  # a newcomer takes the server's word for it
    five.play()
    for site in ALL:  # but no two views meet in one cohort
        five.assert_refused(site, "cohort", "message 6: expected the own ctx from site-")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": OTHER}, "the hash of the own model and state"),
        ({"result": OTHER}, "the hash of the last result"),
        ({"kind": Kind.EVALUATE}, "a round to train, got evaluate"),
    ],
    ids=["model", "last result", "kind"],
)
def test_attack_06_another_model_past_or_kind_than_the_sites_own(
    five: Any, changes: Any, what: str
) -> None:
    five.lies["start", 0] = five.edit(RoundStart, **changes)
    five.play()
    five.assert_refused(0, "start", f"message 4: expected {what}")


def test_attack_06_another_plan_for_one_site(five: Any) -> None:
    odd = five.hospitals[0]  # n, thresholds, d and lane lists are all under the plan's digest
    odd.site = replace(odd.site, plan=replace(five.plan, digest=OTHER, train_lanes=2))

    def lie(data: bytes) -> bytes:
        hellos = read(RunRoster, data).message.hellos
        hello = read(RunHello, five.said(0, "hello"))
        return five.edit(RunRoster, hellos=(hello, *hellos))(data)

    five.lies["roster", None] = lie  # the honest server had left it out
    five.play()
    for site in ALL[1:]:
        five.assert_refused(site, "roster", "message 2: expected the approved plan at site-0")
    five.tell("roster", 0, next(data for _, step, _, data in five.outcome.wire if step == "roster"))
    five.assert_refused(0, "roster", "message 2: expected the approved plan at site-1")


def test_attack_06_a_ready_of_another_group(five: Any) -> None:
    five.set_up()
    grouped = five.hospitals[0].grouped
    five.hospitals[0].grouped = replace(grouped, kappa=OTHER)
    five.attempt()
    for site in ALL:
        five.assert_refused(site, "cohort", "message 6: expected the own group tag from site-")


# --- 7: replays ---------------------------------------------------------------------------------


def pasts(setup: tuple[str, ...], steps: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every step with every past; a run is set up once, so only another run has those steps."""
    return [(step, "another run") for step in setup] + [
        (step, f"another {past}") for step in steps for past in ("run", "round", "attempt")
    ]


@pytest.mark.parametrize(("step", "past"), pasts(("roster", "group"), TO_SITES))
def test_attack_07_a_message_to_a_site_replayed(five: Any, step: str, past: str) -> None:
    first = five.play(RUN, FIRST)
    old = next(data for way, one, site, data in first.wire if (way, one, site) == ("to", step, 0))
    five.lies[step, 0] = lambda _: old
    if past == "another run":
        five.play(bytes(16), Counter(2, 0))
    else:
        five.attempt(Counter(2, 0) if past == "another round" else Counter(1, 1), keep=False)
    number = 3 if step == "group" else KINDS[step].NUMBER
    five.assert_refused(0, step, f"message {number}: ")
    five.assert_only_true_sums()


@pytest.mark.parametrize(
    ("step", "past"), pasts(("hello", "roster"), ("start", "cohort", "survivors", "unmask"))
)
def test_attack_07_a_message_of_a_site_replayed(five: Any, step: str, past: str) -> None:
    five.play(RUN, FIRST)
    old = five.said(4, step)
    five.forgeries[step, 4] = lambda _: old
    if past == "another run":
        outcome = five.play(bytes(16), Counter(2, 0))
    else:
        outcome = five.attempt(
            Counter(2, 0) if past == "another round" else Counter(1, 1), keep=False
        )
    if step == "roster":  # a run needs every member's part
        assert "site-4" in outcome.ended
        return
    five.assert_only_true_sums()
    assert set(outcome.sums) >= {0, 1, 2, 3}  # it is left out, and the others go on
    assert outcome.opened.survivors == (ALL if step in ("survivors", "unmask") else ALL[:4])


@pytest.mark.parametrize("head", [{"run": bytes(16)}, {"sender": 1}], ids=["run", "sender"])
@pytest.mark.parametrize("step", KINDS)
def test_attack_07_a_message_for_another_run_or_of_another_sender_never_seen_before(
    five: Any, step: str, head: dict[str, Any]
) -> None:
    five.lies[step, 0] = five.edit(KINDS[step], head=head)
    five.play()
    number = KINDS[step].NUMBER
    five.assert_refused(0, step, f"message {number}: expected the server's message of this run")


def test_attack_07_a_hello_of_another_run_inside_the_roster(five: Any) -> None:
    five.play(RUN, FIRST)
    old = read(RunHello, five.said(3, "hello"))

    def lie(data: bytes) -> bytes:
        hellos = list(read(RunRoster, data).message.hellos)
        hellos[3] = old
        return five.edit(RunRoster, hellos=tuple(hellos))(data)

    five.lies["roster", 0] = lie
    five.play(bytes(16), Counter(2, 0))
    five.assert_refused(0, "roster", "message 2: expected a RunHello of this run from site-3")


def test_attack_07_a_ready_of_another_attempt_inside_the_cohort(five: Any) -> None:
    five.play(RUN, FIRST)
    old = read(Ready, five.said(3, "start"))

    def lie(data: bytes) -> bytes:
        readies = list(read(Cohort, data).message.readies)
        readies[3] = old
        return five.edit(Cohort, readies=tuple(readies))(data)

    five.lies["cohort", 0] = lie
    five.attempt(Counter(1, 1), keep=False)
    five.assert_refused(0, "cohort", "message 6: expected the Ready of this attempt from site-3")


@pytest.mark.parametrize("counter", [Counter(1, 1), Counter(2, 0)])
def test_attack_07_acknowledgements_of_another_attempt(five: Any, counter: Counter) -> None:
    five.play(RUN, FIRST)
    acks = [five.said(site, "survivors") for site in ALL]
    five.lies["unmask", 0] = lambda data: five.edit(
        AckSet, acks=tuple(read(SurvivorAck, one) for one in acks)
    )(data)
    five.attempt(counter, keep=False)
    five.assert_refused(0, "unmask", "message 10: expected site-0 to acknowledge this attempt")


def test_attack_07_acknowledgements_of_another_cohort_hash(five: Any) -> None:
    five.lies["unmask", None] = lambda _: None
    five.play()
    acks = [five.said(site, "survivors") for site in ALL]
    acks[3] = five.edit(SurvivorAck, 3, cohort_hash=OTHER)(acks[3])  # site 3 saw another cohort
    five.tell("unmask", 0, five.ack_set(acks))
    five.assert_refused(0, "unmask", "message 10: expected the own cohort hash from site-3")


def test_attack_07_survivors_of_another_cohort_hash(five: Any) -> None:
    five.lies["survivors", 0] = five.edit(Survivors, cohort_hash=OTHER)
    five.play()
    five.assert_refused(0, "survivors", "message 8: expected the cohort hash of this attempt")


def test_attack_07_a_box_of_a_group_part_reflected_to_its_sender(five: Any) -> None:
    def reflect(data: bytes) -> bytes:
        header, boxes = read_group_parts(data)
        own = read(GroupPart, five.said(0, "roster")).message.boxes
        entries = {peer: boxes[peer] for peer in boxes.sites} | {3: own[3]}
        return write_group_parts(header, records(entries, PART_BOX))

    five.lies["group", 0] = reflect
    five.play()
    five.assert_refused(0, "group", "message 3: expected a box of site-3 that opens")


def test_attack_07_a_box_of_shares_reflected_to_its_sender(five: Any) -> None:
    def reflect(data: bytes) -> bytes:
        signed = read(Cohort, data)
        own = read_records(read(Ready, five.said(0, "start")).tail, SHARES_BOX)
        boxes = read_records(signed.tail, SHARES_BOX)
        entries = {peer: boxes[peer] for peer in boxes.sites} | {3: own[3]}
        return write(signed.message, five.boss, records(entries, SHARES_BOX).block)

    five.lies["cohort", 0] = reflect
    five.play()
    five.assert_refused(0, "cohort", "message 6: expected a box of site-3 that opens")


def test_attack_07_each_direction_of_each_pair_has_its_own_box_key(five: Any) -> None:
    """Nonces are message numbers: under one key both directions would use each of them twice."""
    five.play(RUN, FIRST)
    channels = [hospital.grouped.channels for hospital in five.hospitals]
    outward = [channels[a][b].outward for a in ALL for b in ALL if a != b]
    assert outward == [channels[b][a].inward for a in ALL for b in ALL if a != b]
    assert len(set(outward)) == 5 * 4


def test_attack_07_a_repeated_run(five: Any) -> None:
    five.play(RUN, FIRST)
    five.play(RUN, Counter(2, 0))
    for site in ALL:
        five.assert_refused(site, "hello", "expected a new run, got a repeated id")


# --- 19: one model opened twice -----------------------------------------------------------------


def test_attack_19_the_integers_of_an_answered_model_are_gone() -> None:
    with SiteStore(None) as store:
        model, values, lanes = OTHER, np.arange(3, dtype=np.int32), np.zeros(1, np.int64)
        store.keep_work(Kind.TRAIN, model, values, lanes)
        again = store.work(Kind.TRAIN, model)
        assert again is not None
        assert again[0].tolist() == [0, 1, 2]  # before Unmask: the same integers once more
        store.keep_answer(RUN, FIRST, b"ack set", b"answer")
        assert store.work(Kind.TRAIN, model) is None  # after it: fresh draws and a new debit


def test_attack_19_the_same_round_again_with_other_survivors(five: Any) -> None:
    five.play()
    five.forgeries["cohort", 4] = lambda _: None  # the victim of the difference
    five.attempt(FIRST, keep=False)
    for site in ALL:
        five.assert_refused(site, "start", "message 4: expected a counter above")
    with pytest.raises(ProtocolError, match="message 4: expected a counter above"):
        five.hospitals[0].store.advance(0, FIRST)
