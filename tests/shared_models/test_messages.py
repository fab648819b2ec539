"""The call to a run and a round's directions: what is written is read, and nothing else is."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import ProtocolError
from shared_models.messages import (
    TRAIL_MAX,
    Opening,
    call_to_run,
    directions,
    read_call,
    read_directions,
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
    trail = [Opening(b"", b"", b"")] * (TRAIL_MAX + 1)
    with pytest.raises(ProtocolError, match="expected an order with its state"):
        read_directions(directions(b"order", trail, b""))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1])
def test_an_absurd_length_is_refused_before_anything_is_made_of_it(length: int) -> None:
    data = struct.pack("<HQQ", 2, length, 0) + b"order"
    with pytest.raises(ProtocolError, match="expected an order with its state"):
        read_directions(data)


def test_lengths_that_wrap_to_the_right_sum_are_refused() -> None:
    data = struct.pack("<HQQ", 2, 2**64 - 3, 8) + b"order"
    with pytest.raises(ProtocolError, match="expected an order with its state"):
        read_directions(data)
