"""A participant walks the protocol in order, remembers what it must, and knows its state itself."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.lineage import Lineage
from client.masked import Participant
from client.site import Contribution
from privacy import keys, secagg_setup
from privacy.errors import AbsentError, PrivacyError, ProtocolError
from privacy.heads import EMPTY, Head, Heads
from privacy.roster import Kind, Member, Roster
from privacy.secagg_messages import (
    NO_RESULT,
    AckSet,
    Ready,
    Result,
    RoundStart,
    SurvivorAck,
    result_hash,
)
from privacy.secagg_server import Coordinator, RunningSum
from privacy.secagg_store import SiteStore
from privacy.wire import Counter, read, write
from server.checkpoint import Checkpoint
from server.masked import MaskedSum
from server.rounds import Order, run_rounds
from shared_models.lanes import evaluate_lanes
from shared_models.messages import (
    Opening,
    call_to_run,
    directions,
    place,
    read_directions,
    read_greeting,
)
from shared_models.plan import make_plan
from shared_models.steps import after_sum
from shared_models.strategies import State, first_state, state_bytes, state_hash
from shared_models.study import parse_study

N, P = 4, 3  # t = 3 of them must answer, two must vouch for a state that is told
NAMES = tuple(f"site-{index}" for index in range(N))
STUDY = parse_study(
    {
        "name": "s",
        "task": "tabular",
        "rounds": 4,
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
        "aggregation": {"spare_attempts": 5},
        "evaluation": {"every": 2},
        "simulation": {"sites": N},
    }
)
FIRST = first_state(STUDY.aggregation, np.zeros(P, dtype=np.float32))
FIRST_MODEL = state_hash(state_bytes(FIRST))
IDENTITIES = [keys.identity(bytes([1 + site]) * 32) for site in range(N)]
BOSS = keys.identity(bytes([255]) * 32)
MEMBERS = tuple(Member(name, one.public) for name, one in zip(NAMES, IDENTITIES, strict=True))
ROSTER = Roster(MEMBERS, BOSS.public)
PLAN = make_plan(STUDY, ROSTER, P, FIRST_MODEL)


class Work:
    """Stands for the site's work: fresh integers each time, or a refusal."""

    def __init__(self, index: int) -> None:
        self.draw, self.given = random.Random(index), list[list[int]]()
        self.refuses, self.head = False, EMPTY

    def ledger_head(self) -> bytes:
        return self.head.wire()

    def contribute(self, kind: str, state: State, number: int, attempt: int) -> Contribution:
        if self.refuses:
            raise PrivacyError("expected room in the budget, got none; no record was read")
        values = [self.draw.randrange(1 << 20) for _ in range(P if kind == "train" else 0)]
        lanes = [1 << 16, 5, 7] if kind == "train" else [9] * len(evaluate_lanes(STUDY))
        self.given.append(values)
        return Contribution(np.array(values, np.int32), np.array(lanes, np.int64))


Told = Callable[[str, int, bytes], bytes | None]


class Study:
    """Four sites with stores on disk, a server, and a network on which a test may meddle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = [Work(index) for index in range(N)]
        self.stores = [SiteStore(folder / f"{index}.db") for index in range(N)]
        self.sites = [self.start(index) for index in range(N)]
        self.server = MaskedSum(lambda _: Coordinator(BOSS, PLAN, ROSTER), lambda _: (), 1.0)
        self.state, self.attempt = FIRST, 0
        self.silent: set[tuple[str, int]] = set()  # (kind, site): the message never arrives
        self.mute: set[tuple[str, int]] = set()  # (kind, site): the answer never arrives
        self.meddle: Callable[[str, int, bytes], None] = lambda kind, index, message: None
        self.told: list[tuple[str, int, bytes]] = []
        self.said: list[tuple[str, int, bytes]] = []
        self.refusals: list[tuple[str, int, str]] = []

    def start(self, index: int, once: bool = False) -> Participant:
        place = secagg_setup.Site(
            IDENTITIES[index], index, PLAN, ROSTER, random.Random(index).randbytes
        )
        lineage = Lineage(STUDY, P, FIRST_MODEL)
        return Participant(self.work[index], lambda _: place, lineage, self.stores[index], once)  # type: ignore[arg-type]

    def restart(self, index: int) -> None:
        """End a site and begin it again on what its store holds."""
        self.stores[index].close()
        self.stores[index] = SiteStore(self.folder / f"{index}.db")
        self.sites[index] = self.start(index)

    def forget(self, index: int) -> None:
        """Begin a site that has lost its computer."""
        self.stores[index].close()
        for file in self.folder.glob(f"{index}.db*"):
            file.unlink()
        self.restart(index)

    def exchange(
        self, kind: str, messages: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        for name, message in messages.items():
            index = NAMES.index(name)
            if (kind, index) in self.silent:
                continue
            self.meddle(kind, index, message)
            self.told.append((kind, index, message))
            try:
                reply = self.sites[index].answer(kind, message)
            except (ProtocolError, PrivacyError) as error:
                self.refusals.append((kind, index, str(error)))
                continue
            self.said.append((kind, index, reply))
            if (kind, index) not in self.mute:
                yield name, reply

    def sum(self, kind: Any = "train") -> tuple[str, ...]:
        """One attempt; the server takes the step when it opens."""
        self.attempt += 1
        number = self.state.round + (kind == "train")
        order = Order(kind, number, self.attempt, NAMES, state_bytes(self.state))
        opened = self.server(self.exchange, order)
        if kind == "train":
            self.state = after_sum(
                STUDY, self.state, opened.values, opened.lanes, opened.sites, N, N
            )
        return opened.sites

    def fails(self, kind: Any = "train") -> str:
        with pytest.raises((ProtocolError, AbsentError)) as caught:
            self.sum(kind)
        return str(caught.value)

    def run(self) -> None:
        """The whole study."""
        summation: Any = self.server
        start = Checkpoint(STUDY.digest(), FIRST, ())
        for now in run_rounds(
            STUDY, start, self.exchange, summation, lambda _: NAMES, N, lambda _: None
        ):
            self.state = now.state

    def last(self, kind: str, index: int) -> bytes:
        """The last message of a kind that a site was told."""
        return next(m for k, i, m in reversed(self.told) if (k, i) == (kind, index))

    def reply(self, kind: str, index: int) -> bytes:
        return next(m for k, i, m in reversed(self.said) if (k, i) == (kind, index))

    def digest(self) -> bytes:
        return state_hash(state_bytes(self.state))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def snapshot(study: Study, index: int) -> tuple[object, ...]:
    """All that a site remembers, in memory and on disk."""
    held = {k: v for k, v in vars(study.sites[index]).items() if k not in {"_site", "_lineage"}}
    return held, list(study.stores[index]._connection.iterdump())


# A calm study


def test_every_site_ends_with_the_servers_state(study: Study) -> None:
    study.run()
    assert study.refusals == []
    assert study.state.round == STUDY.rounds
    for site in study.sites:
        assert site.known is not None
        assert site.known.digest == study.digest()
        assert site.known.computed


def test_the_state_travels_once_a_run(study: Study) -> None:
    study.run()
    starts = [read_directions(m) for kind, index, m in study.told if (kind, index) == ("start", 2)]
    assert [len(one.state) > 0 for one in starts] == [True] + [False] * (len(starts) - 1)


def test_a_site_knows_no_state_before_it_was_told_one(study: Study) -> None:
    assert study.sites[0].known is None


# Order


def test_a_message_out_of_order_is_refused_and_changes_nothing(study: Study) -> None:
    """Before each message of two rounds, everything that the site was ever told comes again."""
    past: list[tuple[str, bytes]] = []
    tried = 0

    def again(kind: str, index: int, message: bytes) -> None:
        nonlocal tried
        if index != 2:
            return
        for old, data in past:
            if old == "unmask":
                continue  # has an answer of its own, below
            before = snapshot(study, 2)
            with pytest.raises(ProtocolError):
                study.sites[2].answer(old, data)
            assert snapshot(study, 2) == before, f"{old} before {kind}"
            tried += 1
        past.append((kind, message))

    study.meddle = again
    study.sum()
    study.sum()
    assert study.refusals == []
    assert tried > 40


@pytest.mark.parametrize(
    "kind", ["roster", "group", "start", "cohort", "survivors", "unmask", "result"]
)
def test_a_site_without_a_run_answers_a_call_alone(study: Study, kind: str) -> None:
    study.sum()
    message = study.last("start" if kind == "result" else kind, 1)
    study.forget(1)
    before = snapshot(study, 1)
    with pytest.raises(ProtocolError, match=f"expected another message than {kind} now"):
        study.sites[1].answer(kind, message)
    assert snapshot(study, 1) == before


def test_a_message_for_another_step_is_refused(study: Study) -> None:
    study.sum()
    survivors = study.last("survivors", 1)
    for kind in ("start", "cohort", "unmask", "roster", "group", "result"):
        with pytest.raises(ProtocolError):
            study.sites[1].answer(kind, survivors)


def test_a_site_whose_budget_refuses_sends_no_vector_and_may_go_on(study: Study) -> None:
    study.work[1].refuses = True
    assert study.sum() == ("site-0", "site-2", "site-3")
    assert [entry[:2] for entry in study.refusals] == [("cohort", 1)]
    study.work[1].refuses = False
    assert study.sum() == NAMES


# Runs


@pytest.mark.parametrize("restart", [False, True])
def test_a_repeated_run_is_refused(study: Study, restart: bool) -> None:
    study.sum()
    call = study.last("hello", 3)
    if restart:
        study.restart(3)
    with pytest.raises(ProtocolError, match="expected a new run, got a repeated id"):
        study.sites[3].answer("hello", call)


def test_a_call_ends_the_run_before(study: Study) -> None:
    study.sum()
    study.sites[3].answer("hello", call_to_run(bytes(16)))
    assert "site-3" not in study.sum()
    assert study.refusals[0][:2] == ("start", 3)


def test_a_peer_that_was_rolled_back_is_refused_by_name(study: Study) -> None:
    study.sum()
    study.forget(1)  # says that its last counter is (0, 0)
    assert study.sum() == ("site-0", "site-2", "site-3")  # in the run that it is no longer in
    study.fails("evaluate")
    texts = [text for kind, index, text in study.refusals if kind == "roster" and index != 1]
    assert len(texts) == 3
    assert all(text.startswith("message 2: expected site-1 at Counter") for text in texts)
    assert all("it was rolled back" in text for text in texts)


def test_a_peer_whose_ledger_went_back_is_refused_by_name(study: Study) -> None:
    for index in range(N):
        kept = Heads(study.folder / f"{index}.heads")
        study.sites[index]._heads = kept
    study.work[1].head = Head(5, "ab" * 32)
    study.sum()
    study.work[1].head = Head(4, "cd" * 32)
    study.restart(1)
    study.sum()  # in the run that site-1 is no longer in
    study.fails()
    texts = {text for kind, index, text in study.refusals if kind == "roster" and index != 1}
    assert len(texts) == 1
    assert "site-1" in texts.pop()


def test_counters_of_peers_are_remembered_over_a_restart(study: Study) -> None:
    study.sum()
    study.restart(0)
    assert study.stores[0].counters() == dict.fromkeys(range(N), Counter(1, 1))


# The one answer


@pytest.mark.parametrize("restart", [False, True])
def test_the_same_ack_set_gets_the_same_bytes(study: Study, restart: bool) -> None:
    study.sum()
    if restart:
        study.restart(1)
    assert study.sites[1].answer("unmask", study.last("unmask", 1)) == study.reply("unmask", 1)


def test_the_same_bytes_come_also_after_the_next_round(study: Study) -> None:
    study.sum()
    asked, answer = study.last("unmask", 1), study.reply("unmask", 1)
    study.sum()
    assert study.sites[1].answer("unmask", asked) == answer


@pytest.mark.parametrize("restart", [False, True])
def test_another_ack_set_gets_nothing(study: Study, restart: bool) -> None:
    study.sum()
    signed = read(AckSet, study.last("unmask", 1))
    acks = tuple(
        read(type(one.message), m)
        for k, _, m in study.said
        if k == "survivors"
        for one in [signed.message.acks[0]]
    )
    other = write(replace(signed.message, acks=acks), BOSS)  # four instead of three: also right
    assert other != study.last("unmask", 1)
    if restart:
        study.restart(1)
    with pytest.raises(ProtocolError, match="message 10: expected the set that was answered"):
        study.sites[1].answer("unmask", other)


def test_the_set_that_was_acknowledged_is_known_after_a_restart(study: Study) -> None:
    study.silent = {("unmask", index) for index in range(N)}
    study.fails()
    ack = read(SurvivorAck, study.reply("survivors", 1)).message
    study.restart(1)
    with pytest.raises(ProtocolError, match="expected the set of survivors that was acknowledged"):
        study.stores[1].acknowledge(
            ack.header.run, ack.header.counter, ack.cohort_hash, ack.survivors[:-1]
        )


def test_a_site_that_restarted_after_its_acknowledgement_gives_no_answer(study: Study) -> None:
    study.meddle = lambda kind, index, message: (
        study.restart(1) if (kind, index) == ("unmask", 1) else None
    )
    assert study.sum() == NAMES  # the others' shares are enough
    assert study.refusals == [
        ("unmask", 1, "expected another message than unmask now; nothing was sent")
    ]


# The integers of an open round


@pytest.mark.parametrize("restart", [False, True])
def test_until_unmask_a_new_attempt_masks_the_same_integers(study: Study, restart: bool) -> None:
    study.silent = {("survivors", index) for index in range(N)}
    study.fails()
    if restart:
        study.restart(1)
    study.silent = set()
    assert study.sum() == NAMES
    assert len(study.work[1].given) == 1


def test_after_unmask_a_new_attempt_masks_fresh_integers(study: Study) -> None:
    study.mute = {("unmask", index) for index in range(2)}
    study.fails()
    study.mute = set()
    study.sum()
    first, second = study.work[1].given
    assert first != second


def test_a_site_that_was_not_asked_to_unmask_masks_the_same_again(study: Study) -> None:
    study.mute = {("unmask", 0), ("unmask", 1)}
    study.silent = {("unmask", 2)}
    study.fails()
    study.mute = study.silent = set()
    study.sum()
    assert [len(one.given) for one in study.work] == [2, 2, 1, 2]


def test_integers_of_one_model_are_not_masked_on_the_next(study: Study) -> None:
    study.silent = {("survivors", 2), ("unmask", 2)}
    study.sum()
    study.silent = set()
    study.sum()
    assert len(study.work[2].given) == 2


# The state


def known(study: Study, index: int) -> tuple[int, bool]:
    one = study.sites[index].known
    assert one is not None
    return one.state.round, one.computed


@pytest.mark.parametrize("missed", ["cohort", "survivors", "unmask"])
def test_a_site_that_missed_the_end_of_a_sum_follows_it(study: Study, missed: str) -> None:
    steps = ["cohort", "survivors", "unmask"]
    study.silent = {(kind, 1) for kind in steps[steps.index(missed) :]}
    study.sum()
    study.silent = set()
    assert study.sum() == NAMES
    assert study.refusals == []
    assert known(study, 1) == (1, True)


def test_a_site_that_missed_a_whole_sum_takes_the_state_and_computes_the_next(
    study: Study,
) -> None:
    study.sum()
    study.silent = {(kind, 1) for kind in ("start", "cohort", "survivors", "unmask")}
    study.sum()
    study.silent = set()
    assert study.sum() == NAMES
    assert known(study, 1) == (2, False)
    study.sum()
    assert known(study, 1) == (3, True)


def test_a_site_that_missed_the_training_takes_part_in_its_evaluation(study: Study) -> None:
    study.sum()
    study.silent = {(kind, 1) for kind in ("start", "cohort", "survivors", "unmask")}
    study.sum()
    study.silent = set()
    assert study.sum("evaluate") == NAMES
    assert study.refusals == []


def test_a_site_that_missed_the_evaluation_takes_part_in_the_next_round(study: Study) -> None:
    for _ in range(2):
        study.sum()
    # Its run is over when the next round begins, and with it the way to check that sum.
    study.mute = {("start", 1)}
    study.silent = {(kind, 1) for kind in ("cohort", "survivors", "unmask")}
    study.sum("evaluate")
    assert known(study, 1) == (2, True)
    study.mute = study.silent = set()
    assert study.sum() == NAMES
    assert study.refusals == []
    assert known(study, 1) == (2, False)  # whose last result is the server's word


def test_the_sum_of_an_answer_is_checked_after_another_attempt_too(study: Study) -> None:
    study.mute = {("unmask", 0), ("unmask", 3)}
    study.fails()
    asked = {index: study.last("unmask", index) for index in range(N)}
    study.mute, study.silent = set(), {("cohort", index) for index in range(N)}
    study.fails()  # its order was taken by all
    assert all(site._revealed is not None for site in study.sites)
    assert all(study.sites[index].answer("unmask", message) for index, message in asked.items())


def test_a_restarted_site_vouches_for_what_it_computed(study: Study) -> None:
    study.sum()
    study.sum()
    study.restart(1)
    assert known(study, 1) == (1, True)
    assert study.sites[1].known.digest != study.digest()


def test_a_newcomer_takes_the_state_for_which_others_vouch(study: Study) -> None:
    study.sum()
    for store in study.stores:  # a newcomer has no counters that its peers could know
        store._connection.execute("DELETE FROM counters")
    study.forget(1)
    study.sum()
    assert study.sum() == NAMES
    assert known(study, 1) == (2, False)


def test_a_state_that_too_few_computed_is_refused(study: Study) -> None:
    study.sum()
    study.sum()
    for index in range(1, N):
        study.stores[index]._connection.execute("DELETE FROM states")
        study.restart(index)
    assert "expected 2 sites that computed the state or the one before it" in study.fails()
    assert not any(kind == "cohort" for kind, _, _ in study.told[-4 * N :])


def test_another_model_than_the_own_is_refused(study: Study) -> None:
    study.sum()
    study.state = replace(study.state, model=study.state.model + 1)
    study.fails()
    texts = {text for kind, _, text in study.refusals if kind == "start"}
    assert texts == {
        "message 12: expected the hash of the strategy's own step, got another; nothing was sent"
    }


def test_without_the_last_result_no_order_is_taken(study: Study) -> None:
    study.sum()

    def withheld(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        if kind == "start":
            messages = {
                name: directions(read_directions(message).order, (), b"")
                for name, message in messages.items()
            }
        return study.exchange(kind, messages, deadline_s)

    order = Order("train", 2, 9, NAMES, state_bytes(study.state))
    with pytest.raises(AbsentError):
        study.server(withheld, order)
    texts = {text for kind, _, text in study.refusals if kind == "start"}
    assert texts == {
        "message 4: expected the hash of the own model and state, got another; nothing was sent"
    }


def test_an_order_under_another_signature_changes_nothing(study: Study) -> None:
    study.sum()
    study.sum()
    seen = read_directions(study.last("start", 1))
    forged = replace(read(RoundStart, seen.order).message, result=bytes(32))
    forged = replace(forged, header=replace(forged.header, counter=Counter(3, 0)))
    message = directions(write(forged, IDENTITIES[0]), (), state_bytes(study.state))
    before = snapshot(study, 1)
    with pytest.raises(ProtocolError, match="the pinned server's signature"):
        study.sites[1].answer("start", message)
    assert snapshot(study, 1) == before


# A sum that is taken back


def spoil(study: Study, index: int, times: int) -> None:
    """Let a byte of a site's next vectors change on the way; the site signed another one."""
    carry = study.exchange

    def exchange(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        nonlocal times
        for name, reply in carry(kind, messages, deadline_s):
            if kind == "cohort" and name == NAMES[index] and times > 0:
                times -= 1
                reply = reply[:-1] + bytes([reply[-1] ^ 1])
            yield name, reply

    study.exchange = exchange  # type: ignore[method-assign]


def test_a_spoilt_sum_is_taken_back_and_the_study_ends_well(study: Study) -> None:
    spoil(study, 2, times=1)
    study.run()
    assert study.state.round == STUDY.rounds
    for site in study.sites:
        assert site.known is not None
        assert site.known.digest == study.digest()
    texts = {text for kind, _, text in study.refusals if kind == "start"}
    assert texts == {
        "message 12: expected a sum that its MAC confirms, got another; nothing was sent"
    }


def test_after_a_spoilt_sum_its_site_is_named_and_left_out(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(study, 2, times=2)
    study.run()
    told = [one.getMessage() for one in caplog.records if "was left out" in one.getMessage()]
    assert told == [
        "round 1: site-2 was left out: message 7: expected the vector that site-2 signed, "
        "got a spoilt one; it was left out"
    ]


def test_no_vector_is_hashed_before_a_sum_was_spoilt(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[bool] = []
    real = RunningSum.__init__

    def noting(self: RunningSum, formed: Any, *, hashing: bool = False) -> None:
        hashed.append(hashing)
        real(self, formed, hashing=hashing)

    monkeypatch.setattr(RunningSum, "__init__", noting)
    spoil(study, 2, times=1)
    study.run()
    assert hashed == [False] + [True] * (len(hashed) - 1)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_when_all_sites_end_after_their_answer_the_sum_is_taken_back(
    study: Study, number: int
) -> None:
    """Each one's key of the sum was in memory alone: nobody can check it any more."""
    asked = 0

    def power_cut(kind: str, index: int, message: bytes) -> None:
        nonlocal asked
        asked += (kind, index) == ("unmask", 0)
        if (kind, index) == ("start", 0) and asked == number:
            asked += 100
            for site in range(N):
                study.restart(site)

    study.meddle = power_cut
    study.run()
    assert asked > 100
    for site in study.sites:
        assert site.known is not None
        assert site.known.digest == study.digest()
        assert site.known.computed


def test_a_site_goes_back_no_further_than_one_sum(study: Study) -> None:
    study.sum()
    first, result = study.digest(), read(RoundStart, orders(study)[-1]).message.result
    for _ in range(2):
        study.sum()
    with pytest.raises(ProtocolError, match="expected the hash of the own model and state"):
        study.sites[0].answer("start", order_on(study, first, result, Counter(9, 0)))


def test_a_site_that_went_back_forgets_what_came_after(study: Study) -> None:
    study.run()
    site, store = study.sites[0], study.stores[0]
    before, after = store.states()[1], store.states()[0]
    assert site.known is not None
    digest = state_hash(before[0])
    study.sites[0]._phase = None
    message = order_on(study, digest, before[1], Counter(9, 0), kind=Kind.EVALUATE)
    study.sites[0].answer("start", message)
    assert site.known.digest == digest
    assert store.states() == [before]
    assert after not in store.states()


def greeted(study: Study, index: int) -> tuple[bytes, ...]:
    """The places that a site says it computed; its run ends with that."""
    return read_greeting(study.sites[index].answer("hello", call_to_run(bytes(16))))[1]


def places(study: Study, index: int) -> list[bytes]:
    """The same as its store has them."""
    return [place(state_hash(blob), result) for blob, result in study.stores[index].states()]


def test_an_order_on_the_present_place_leaves_the_one_before(study: Study) -> None:
    study.sum()
    study.sum()
    study.silent = {("cohort", index) for index in range(N)}
    study.fails()  # whose order was taken by all
    assert len(places(study, 1)) == 2
    assert list(greeted(study, 1)) == places(study, 1)


def test_a_site_that_took_the_servers_word_still_names_what_it_computed(study: Study) -> None:
    study.sum()
    study.sum()  # in which every site followed the first
    mine = places(study, 1)
    study.silent = {(kind, 1) for kind in ("start", "cohort", "survivors", "unmask")}
    study.sum()
    study.silent = {("cohort", index) for index in range(N)}
    study.fails()
    assert known(study, 1) == (3, False)
    assert places(study, 1) == mine
    assert greeted(study, 1)[0] == mine[0]


def test_a_site_that_went_back_names_no_place_after_it(study: Study) -> None:
    study.run()
    after, before = places(study, 0)
    blob, result = study.stores[0].states()[1]
    message = order_on(study, state_hash(blob), result, Counter(9, 0), kind=Kind.EVALUATE)
    study.sites[0].answer("start", message)
    named = greeted(study, 0)
    assert named[0] == before
    assert after not in named


# Sums that are not followed


def last_opening(study: Study, index: int) -> Opening:
    return read_directions(study.last("start", index)).trail[-1]


def new_opening(study: Study) -> Opening:
    """The last sum, as the server is about to tell it."""
    study.server._extend_trail(study.digest())
    return study.server._trail[-1]


def from_elsewhere(opening: Opening, head: Any = None, **changes: Any) -> Opening:
    """The same sum, said to start from another place or to be of another attempt."""
    begin = read(RoundStart, opening.start).message
    header = replace(begin.header, **(head or {}))
    return opening._replace(start=write(replace(begin, header=header, **changes), BOSS))


@pytest.mark.parametrize("change", ["nothing", "model", "result"])
def test_a_sum_from_another_place_is_passed_over(study: Study, change: str) -> None:
    """It may be one that the site has followed, or one of a past that it does not have."""
    study.sum()
    study.sum()
    opening, site = last_opening(study, 1), study.sites[1]
    assert site.known is not None
    own = {"model": site.known.digest, "result": site._result}
    if change != "nothing":
        opening = from_elsewhere(opening, **{**own, change: bytes(32)})
    order = read_directions(order_on(study, own["model"], own["result"], Counter(9, 0))).order
    site.answer("start", directions(order, [opening], b""))


def test_a_sum_of_another_run_is_passed_over_whatever_its_counter(study: Study) -> None:
    study.sum()
    opening, site = from_elsewhere(new_opening(study), head={"run": bytes(16)}), study.sites[1]
    order = read_directions(order_on(study, FIRST_MODEL, NO_RESULT, Counter(9, 0))).order
    site.answer("start", directions(order, [opening], b""))
    assert known(study, 1) == (0, True)


def test_a_site_confirms_no_end_that_it_does_not_follow(study: Study) -> None:
    study.sum()
    opening, site = new_opening(study), study.sites[1]
    for trail in ([], [from_elsewhere(opening, model=bytes(32))]):
        with pytest.raises(ProtocolError, match="message 12: expected a sum that follows the own"):
            site.answer("result", directions(b"", trail, b""))
    assert site.answer("result", directions(b"", [opening], b"")) == b""


def test_the_sum_of_a_round_that_the_plan_does_not_order_is_not_followed(study: Study) -> None:
    """Enough others work for the server: they evaluate a model before it is due."""
    study.sum()
    eager = parse_study({**STUDY.document(), "evaluation": {"every": 1}})
    for index in (0, 2, 3):
        study.sites[index]._lineage = Lineage(eager, P, FIRST_MODEL)
    study.sum("evaluate")
    assert [entry[:2] for entry in study.refusals] == [("start", 1)]
    opening = new_opening(study)
    result = result_hash(read(Result, opening.result))
    order = read_directions(order_on(study, study.digest(), result, Counter(9, 0))).order
    site, (trained,) = study.sites[1], read_directions(study.last("start", 1)).trail
    with pytest.raises(ProtocolError, match="expected round 2, or an evaluation that is due"):
        site.answer("start", directions(order, [trained, opening], b""))


@pytest.mark.parametrize("same_run", [False, True])
def test_a_sum_is_followed_while_an_older_answer_waits_for_its_own(
    study: Study, same_run: bool
) -> None:
    study.sum()
    run = study.server._run
    study.mute = {("unmask", 0), ("unmask", 3)}
    study.fails()  # site 1 has answered, and the sum was not opened
    if same_run:
        study.server._run = run
    study.mute, study.silent = set(), {(kind, 1) for kind in ("cohort", "survivors", "unmask")}
    study.sum()
    study.silent = set()
    assert study.sum() == NAMES
    assert study.refusals == []
    assert known(study, 1) == (2, True)


# States from the server


def newcomer(study: Study, kind: str = "train") -> None:
    """Site 1 loses its computer, joins a new run and takes the state that the others computed."""
    for store in study.stores:  # a newcomer has no counters that its peers could know
        store._connection.execute("DELETE FROM counters")
    study.forget(1)
    study.sum()
    assert study.sum(kind) == NAMES
    assert known(study, 1) == (2, False)


def test_a_state_that_was_told_is_never_kept_as_computed(study: Study) -> None:
    study.sum()
    newcomer(study, "evaluate")
    study.silent = {("cohort", index) for index in range(N)}
    study.fails()  # with its order the evaluation was followed, in the same run and without a state
    assert study.refusals == [("start", 1, study.refusals[0][2])]  # of the run before it came
    assert known(study, 1) == (2, False)
    assert study.stores[1].states() == []


def flags_of(study: Study, index: int, state: State, result: bytes) -> int:
    """What a site says of a state that it is told in an order of the run that goes on."""
    blob = state_bytes(state)
    order = read_directions(order_on(study, state_hash(blob), result, Counter(9, 0))).order
    answer = study.sites[index].answer("start", directions(order, (), blob))
    return read(Ready, answer).message.header.flags


@pytest.mark.parametrize(("sums", "kind"), [(2, Kind.TRAIN), (3, Kind.EVALUATE)])
def test_the_own_model_after_a_sum_that_cannot_have_been_opened_is_refused(
    study: Study, sums: int, kind: Kind
) -> None:
    """Between two trainings there was none: the first is not evaluated. Nor is any twice."""
    for _ in range(sums):
        study.sum()
    own = study.sites[1].known
    assert own is not None
    order = read_directions(order_on(study, own.digest, bytes(32), Counter(9, 0), kind)).order
    with pytest.raises(ProtocolError, match="message 4: expected the hash of the last result"):
        study.sites[1].answer("start", directions(order, (), own.blob))


@pytest.mark.parametrize("number", [1, 2])
def test_another_state_that_is_no_newer_than_the_own_is_refused(study: Study, number: int) -> None:
    for _ in range(3):
        study.sum()
    assert known(study, 1) == (2, True)
    other = replace(study.state, model=np.ones(P), round=number)
    with pytest.raises(ProtocolError, match="expected the hash of the own model and state"):
        flags_of(study, 1, other, bytes([9]) * 32)


def test_who_has_the_servers_word_alone_takes_another_word_of_it(study: Study) -> None:
    study.sum()
    newcomer(study)
    assert study.sites[1].known is not None
    other = replace(study.sites[1].known.state, model=np.ones(P))
    assert flags_of(study, 1, other, bytes([9]) * 32) == 0


def test_the_plans_first_state_after_a_result_is_the_servers_word(study: Study) -> None:
    study.sum()
    newcomer(study)
    assert flags_of(study, 1, FIRST, bytes([9]) * 32) == 0


def test_the_plans_first_state_is_taken_again_by_who_went_on(study: Study) -> None:
    study.sum()
    study.silent = {("start", index) for index in (1, 2, 3)}
    study.fails()  # site 0 alone has followed the sum
    for index in (1, 2, 3):
        study.restart(index)  # and these have lost its key
    study.silent = set()
    assert "it is taken back" in study.fails()
    study.state = FIRST
    assert study.sum() == NAMES
    assert study.refusals == []
    flags = [read(Ready, study.reply("start", index)).message.header.flags for index in range(N)]
    assert flags == [1] * N  # each has it from the plan


def test_an_order_without_a_state_is_refused_by_who_has_none(study: Study) -> None:
    def stateless(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        if kind == "start":
            order = read_directions(next(iter(messages.values()))).order
            messages = dict.fromkeys(messages, directions(order, (), b""))
        return study.exchange(kind, messages, deadline_s)

    with pytest.raises(AbsentError):
        study.server(stateless, Order("train", 1, 1, NAMES, state_bytes(FIRST)))
    texts = {text for kind, _, text in study.refusals if kind == "start"}
    assert texts == {"message 4: expected a state to start from, got none"}


# Counters


def test_peers_counters_are_kept_before_the_own_part_is_sent(study: Study) -> None:
    study.stores[0].advance(0, Counter(5, 0))  # a site that the others have not met for long
    study.silent = {("group", index) for index in range(N)}
    study.fails()
    assert [store.counters()[0] for store in study.stores] == [Counter(5, 0)] * N


def orders(study: Study) -> list[bytes]:
    return [
        read_directions(m).order for kind, index, m in study.told if (kind, index) == ("start", 0)
    ]


def order_on(
    study: Study, model: bytes, result: bytes, counter: Counter, kind: Kind = Kind.TRAIN
) -> bytes:
    """An order of the real server's key, in the run that goes on."""
    like = read(RoundStart, orders(study)[-1]).message
    header = replace(like.header, counter=counter)
    forged = replace(like, header=header, model=model, result=result, kind=kind)
    return directions(write(forged, BOSS), (), b"")


# Cohorts of a simulation


def test_a_cohorts_run_ends_with_its_sum(study: Study) -> None:
    study.sites = [study.start(index, once=True) for index in range(N)]
    study.server = MaskedSum(
        lambda _: Coordinator(BOSS, PLAN, ROSTER), lambda _: (), 1.0, once=True
    )
    study.sum()
    study.sum()
    assert study.refusals == []
    assert sum(kind == "hello" for kind, _, _ in study.told) == 2 * N
    with pytest.raises(ProtocolError, match="expected another message than start now"):
        study.sites[0].answer("start", study.last("start", 0))


def test_in_cohorts_counters_of_peers_are_neither_compared_nor_kept(study: Study) -> None:
    """A place in a cohort is another site's in the next."""
    study.stores[0].raise_counters({1: Counter(99, 0)})
    study.sites = [study.start(index, once=True) for index in range(N)]
    study.server = MaskedSum(
        lambda _: Coordinator(BOSS, PLAN, ROSTER), lambda _: (), 1.0, once=True
    )
    study.sum()
    study.sum()
    assert study.refusals == []
    assert [set(store.counters()) for store in study.stores] == [{0, 1}, {1}, {2}, {3}]
    assert study.stores[0].counters()[1] == Counter(99, 0)
