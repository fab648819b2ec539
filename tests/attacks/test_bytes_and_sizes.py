"""Attacks 9 and 20: flipped bytes, and counts and lengths that nobody could hold."""

import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

KIB = 1024
TO = ("hello", "roster", "group", "start", "cohort", "survivors", "unmask", "result")
FROM = ("hello", "roster", "start", "cohort", "survivors", "unmask")
MESSAGES = [("to", step) for step in TO] + [("from", step) for step in FROM]
SAMPLE = 20  # bytes of each message in a usual run


def flip(place: int, bit: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def length_of(play: Any, way: str, step: str) -> int:
    wire = play.play().wire
    return next(len(data) for one, at, site, data in wire if (one, at, site) == (way, step, 1))


def assert_refused_or_the_same(play: Any, way: str, step: str, place: int, bit: int) -> None:
    """One play in which one bit of one message of site 1 is flipped."""
    (play.lies if way == "to" else play.forgeries)[step, 1] = flip(place, bit)
    outcome = play.play()
    play.assert_only_true_sums()
    left_out = outcome.opened is not None and (
        outcome.opened.refused or len(outcome.opened.survivors) < play.plan.n
    )
    assert outcome.refusals or outcome.ended or left_out or len(outcome.sums) == play.plan.n


@pytest.mark.parametrize(("way", "step"), MESSAGES)
def test_attack_09_flipped_bytes_end_in_a_refusal_or_the_same_sum(
    federation: Any, way: str, step: str
) -> None:
    draw = random.Random(f"{way} {step}")
    length = length_of(federation(), way, step)
    for place in {0, length - 1, *draw.sample(range(length), min(SAMPLE, length))}:
        assert_refused_or_the_same(federation(), way, step, place, draw.randrange(8))


@pytest.mark.soak
@pytest.mark.parametrize(("way", "step"), MESSAGES)
def test_attack_09_every_flipped_byte_ends_in_a_refusal_or_the_same_sum(
    federation: Any, way: str, step: str
) -> None:
    draw = random.Random(f"{way} {step} soak")
    for place in range(length_of(federation(), way, step)):
        assert_refused_or_the_same(federation(), way, step, place, draw.randrange(8))


def put(place: int, number: int, size: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + number.to_bytes(size, "little") + data[place + size :]


HEADER, READY_COUNT = 32, 112  # bytes before a body, before the count of a Ready's body
COUNTS_TO_SITES = [
    ("roster", HEADER),
    ("group", HEADER),
    ("cohort", HEADER),
    ("cohort", HEADER + 2 + HEADER + READY_COUNT),  # of the first Ready inside
    ("unmask", HEADER),
]
COUNTS_TO_SERVER = [("roster", HEADER), ("start", HEADER + READY_COUNT), ("unmask", HEADER)]
COUNTS = [0, 100, 101, 2**16 - 1]
LENGTHS = [0, 2**31, 2**40, 2**63, 2**64 - 1]


def peak_kib(work: Callable[[], object]) -> float:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / KIB


def assert_refused_within(play: Any, step: str, change: Callable[[bytes], bytes]) -> None:
    """Site 0 refuses a message that was changed, in less memory than the honest one takes."""
    held: list[bytes] = []
    play.lies[step, 0] = held.append
    play.play()
    bloated = change(held[0])
    assert peak_kib(lambda: play.tell(step, 0, bloated)) < 128
    play.assert_refused(0, step, "expected .*, got .*(discarded|nothing was sent)")


@pytest.mark.parametrize(("step", "place"), COUNTS_TO_SITES)
@pytest.mark.parametrize("count", COUNTS)
def test_attack_20_an_oversized_count_at_a_site(
    federation: Any, step: str, place: int, count: int
) -> None:
    assert_refused_within(federation(), step, put(place, count, 2))


@pytest.mark.parametrize("length", LENGTHS)
def test_attack_20_an_oversized_length_at_a_site(federation: Any, length: int) -> None:
    assert_refused_within(federation(), "result", put(HEADER + 64, length, 8))


@pytest.mark.parametrize("step", TO[1:])
def test_attack_20_megabytes_after_a_message_to_a_site(federation: Any, step: str) -> None:
    assert_refused_within(federation(), step, lambda data: data + bytes(1 << 24))


def assert_left_out_within(play: Any, step: str, change: Callable[[bytes], bytes]) -> None:
    play.forgeries[step, 1] = change
    assert peak_kib(play.play) < 1024
    play.assert_only_true_sums()
    opened = play.outcome.opened
    assert "site-1" in play.outcome.ended or 1 in opened.refused or 1 not in opened.survivors


@pytest.mark.parametrize(("step", "place"), COUNTS_TO_SERVER)
@pytest.mark.parametrize("count", COUNTS)
def test_attack_20_an_oversized_count_at_the_server(
    federation: Any, step: str, place: int, count: int
) -> None:
    assert_left_out_within(federation(), step, put(place, count, 2))


@pytest.mark.parametrize("length", LENGTHS)
def test_attack_20_an_oversized_length_at_the_server(federation: Any, length: int) -> None:
    assert_left_out_within(federation(), "cohort", put(HEADER + 32, length, 8))
