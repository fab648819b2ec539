"""Call, greeting and a round's directions: what is written is read, and nothing else is."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import ProtocolError
from shared_models.messages import (
    TRAIL_MAX,
    Opening,
    call_to_run,
    checkable,
    directions,
    greeting,
    place,
    read_call,
    read_directions,
    read_greeting,
)

RUN = bytes(range(16))
OPENINGS = st.builds(Opening, *[st.binary(max_size=40)] * 3)


@given(st.binary(min_size=16, max_size=16), st.sets(st.integers(0, 2**32 - 1), max_size=100))
def test_a_call_is_read_as_it_was_written(run: bytes, members: set[int]) -> None:
    places = tuple(sorted(members))
    assert read_call(call_to_run(run, places)) == (run, places)


def test_a_call_takes_eighteen_bytes_and_four_a_member() -> None:
    assert len(call_to_run(RUN)) == 18
    assert call_to_run(RUN, (1, 258)) == RUN + b"\2\0" + b"\1\0\0\0" + b"\2\1\0\0"


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_run_id_has_sixteen_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="expected a run id of 16 bytes"):
        call_to_run(bytes(length))


@pytest.mark.parametrize("end", range(26))
def test_a_call_that_is_cut_is_refused(end: int) -> None:
    with pytest.raises(ProtocolError, match="expected a call to a run"):
        read_call(call_to_run(RUN, (1, 2))[:end])


@pytest.mark.parametrize("extra", [1, 4])
def test_a_call_with_something_behind_it_is_refused(extra: int) -> None:
    with pytest.raises(ProtocolError, match="expected a call to a run"):
        read_call(call_to_run(RUN, (1, 2)) + bytes(extra))


@pytest.mark.parametrize("members", [(2, 1), (1, 1), (0, 5, 5)])
def test_members_that_are_unsorted_or_repeated_are_refused(members: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="expected members in ascending order"):
        read_call(call_to_run(RUN, members))


def test_more_than_a_hundred_members_are_refused() -> None:
    assert len(read_call(call_to_run(RUN, tuple(range(100))))[1]) == 100
    with pytest.raises(ProtocolError, match="expected a call to a run"):
        read_call(call_to_run(RUN, tuple(range(101))))


HASHES = [bytes([fill]) * 32 for fill in range(4)]


@given(st.lists(st.sampled_from(HASHES), max_size=3), st.binary(max_size=60))
def test_a_greeting_is_read_as_it_was_written(names: list[bytes], hello: bytes) -> None:
    assert read_greeting(greeting(hello, names)) == (hello, tuple(names))


def test_two_places_and_one_attempt_are_named_and_no_more() -> None:
    assert len(read_greeting(greeting(b"hello", HASHES[:3]))[1]) == 3
    with pytest.raises(ProtocolError, match="expected a greeting"):
        read_greeting(greeting(b"hello", HASHES))


@pytest.mark.parametrize("end", range(66))
def test_a_greeting_whose_names_are_cut_is_refused(end: int) -> None:
    with pytest.raises(ProtocolError, match="expected a greeting"):
        read_greeting(greeting(b"", HASHES[:2])[:end])


def test_the_name_of_a_place_is_the_known_one() -> None:
    found = place(bytes(range(32)), bytes(range(32, 64)))
    assert found.hex() == "765e791f04690612cea782a5449bc7d46b39e5e149eb531de71c887ed9abf004"


def test_the_name_of_an_attempt_is_the_known_one() -> None:
    assert (
        checkable(RUN, (1, 2)).hex()
        == "f0b88b0ac43c492a579ce181765d90a757a332f959d62dd04d8984df3de7efaf"
    )


def test_every_attempt_of_every_run_has_a_name_of_its_own() -> None:
    attempts = [(RUN, (1, 2)), (RUN, (2, 1)), (RUN, (1, 3)), (bytes(16), (1, 2))]
    assert len({checkable(*one) for one in attempts}) == len(attempts)


@given(st.binary(max_size=60), st.lists(OPENINGS, max_size=TRAIL_MAX), st.binary(max_size=60))
def test_directions_are_read_as_they_were_written(
    order: bytes, trail: list[Opening], state: bytes
) -> None:
    assert read_directions(directions(order, trail, state)) == (order, tuple(trail), state)


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_or_read_whole(data: bytes) -> None:
    try:
        found = read_directions(data)
    except ProtocolError:
        return
    assert directions(found.order, found.trail, found.state) == data


def test_directions_cut_or_lengthened_are_refused() -> None:
    whole = directions(b"order", [Opening(b"start", b"acks", b"result")], b"state")
    for end in range(len(whole)):
        with pytest.raises(ProtocolError, match="expected an order with its state"):
            read_directions(whole[:end])
    with pytest.raises(ProtocolError, match="expected an order with its state"):
        read_directions(whole + b"\0")


def test_a_longer_trail_than_the_ceiling_is_refused() -> None:
    trail = [Opening(b"", b"", b"")] * 17
    assert len(read_directions(directions(b"order", trail[:16], b"")).trail) == 16
    with pytest.raises(ProtocolError, match="expected an order with its state"):
        read_directions(directions(b"order", trail, b""))


@pytest.mark.parametrize("parts", [0, 1, 3, 4])
def test_parts_that_are_no_order_state_and_whole_openings_are_refused(parts: int) -> None:
    with pytest.raises(ProtocolError, match="expected an order with its state"):
        read_directions(struct.pack(f"<H{parts}Q", parts, *[0] * parts))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1])
def test_an_absurd_length_is_refused_before_anything_is_made_of_it(length: int) -> None:
    data = struct.pack("<HQQ", 2, length, 0) + b"order"
    with pytest.raises(ProtocolError, match="expected an order with its state"):
        read_directions(data)


def test_lengths_that_wrap_to_the_right_sum_are_refused() -> None:
    data = struct.pack("<HQQ", 2, 2**64 - 3, 8) + b"order"
    with pytest.raises(ProtocolError, match="expected an order with its state"):
        read_directions(data)
