"""The codec: what is written is read back, and nothing else is read."""

import hashlib
import json
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import keys
from privacy import secagg_messages as messages
from privacy.errors import ProtocolError
from privacy.roster import Kind
from privacy.wire import (
    Counter,
    Draft,
    Header,
    bitmap,
    read,
    read_bitmap,
    read_header,
    read_records,
    records,
    write,
)

KNOWN = json.loads((Path(__file__).parents[1] / "vectors" / "fsa1.json").read_text())
ONE = keys.identity(bytes(32))
HASH = st.binary(min_size=32, max_size=32)
SITES = st.sets(st.integers(0, 99), min_size=1, max_size=12)
COUNTERS = st.builds(Counter, st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1))


@st.composite
def any_message(draw: Any) -> tuple[Any, bytes]:
    """A message of any kind with a tail of the length that it says."""
    number = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))
    return draw(message_of(number))


@st.composite
def message_of(draw: Any, number: int, sender: int | None = None) -> tuple[Any, bytes]:
    who = draw(st.integers(0, 99)) if sender is None else sender
    header = Header(number, draw(st.binary(min_size=16, max_size=16)), draw(COUNTERS), who)
    sites = sorted(draw(SITES))

    def parts(of: int) -> tuple[Any, ...]:
        every = (draw(message_of(of, site)) for site in sites)
        return tuple(read(kind_of(of), write(one, ONE, tail)) for one, tail in every)

    def entries(width: int) -> Any:
        fill = draw(st.integers(0, 255))
        return records({site: bytes([fill]) * width for site in sites}, width)

    hashes = [draw(HASH) for _ in range(5)]
    tail = b""
    if number == 1:
        last = draw(COUNTERS)
        message: Any = messages.RunHello(header, *hashes[:3], last, hashes[3], hashes[4])
    elif number == 2:
        message = messages.RunRoster(header, parts(1))
    elif number == 3:
        message = messages.GroupPart(header, entries(messages.PART_BOX))
    elif number == 4:
        kind = draw(st.sampled_from(Kind))
        message = messages.RoundStart(header, kind, *hashes[:2], tuple(sites))
    elif number == 5:
        shares = entries(64)
        tail = bytes((len(sites) - 1) * (2 + messages.SHARES_BOX))
        tag = hashes[1][:16]
        message = messages.Ready(header, hashes[0], tag, hashes[2], hashes[3], shares)
    elif number == 6:
        message = messages.Cohort(header, parts(5))
        tail = bytes((len(sites) - 1) * (2 + messages.SHARES_BOX))
    elif number == 7:
        tail = draw(st.binary(max_size=40))
        message = messages.Masked(header, hashes[0], len(tail), hashes[1])
    elif number in (8, 9):
        message = kind_of(number)(header, hashes[0], tuple(sites))
    elif number == 10:
        message = messages.AckSet(header, parts(9))
    elif number == 11:
        message = messages.Unmask(header, entries(32))
    else:
        tail = draw(st.binary(max_size=40))
        message = messages.Result(header, tuple(sites), hashes[0], len(tail), hashes[1])
    return message, tail


def kind_of(number: int) -> Any:
    kinds = (
        messages.RunHello, messages.RunRoster, messages.GroupPart, messages.RoundStart,
        messages.Ready, messages.Cohort, messages.Masked, messages.Survivors,
        messages.SurvivorAck, messages.AckSet, messages.Unmask, messages.Result,
    )  # fmt: skip
    return kinds[number - 1]


@settings(max_examples=150, deadline=None)
@given(any_message())
def test_what_is_written_is_read_back(drawn: tuple[Any, bytes]) -> None:
    message, tail = drawn
    signed = read(type(message), write(message, ONE, tail))
    assert signed.message.body() == message.body()
    assert signed.message.header == message.header
    assert bytes(signed.tail) == tail
    assert signed.is_by(ONE.public)


@settings(max_examples=150, deadline=None)
@given(any_message(), st.data())
def test_a_flipped_bit_is_refused_or_breaks_the_signature(
    drawn: tuple[Any, bytes], data: st.DataObject
) -> None:
    message, tail = drawn
    wire = bytearray(write(message, ONE, tail))
    place = data.draw(st.integers(0, len(wire) - len(tail) - 1))
    wire[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        signed = read(type(message), bytes(wire))
    except ProtocolError:
        return
    assert not signed.is_by(ONE.public)


@settings(max_examples=100, deadline=None)
@given(any_message(), st.data())
def test_a_cut_or_lengthened_message_is_refused(
    drawn: tuple[Any, bytes], data: st.DataObject
) -> None:
    message, tail = drawn
    wire = write(message, ONE, tail)
    cut = data.draw(st.integers(0, len(wire) - 1))
    for wrong in (wire[:cut], wire + b"\0"):
        with pytest.raises(ProtocolError, match="discarded"):
            read(type(message), wrong)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(number: int, tail: bytes) -> None:
    head = Header(number, bytes(16), Counter(1, 0), 3).encode()
    for data in (tail, head + tail):
        with suppress(ProtocolError):  # any other error fails the test
            read(kind_of(number), data)


def test_a_known_header_is_read_and_written() -> None:
    known = bytes.fromhex(KNOWN["signature"]["header"])
    header = read_header(known)
    assert (header.number, header.counter, header.sender) == (8, Counter(7, 2), 3)
    assert header.encode() == known


@pytest.mark.parametrize(("place", "byte"), [(0, 0), (5, 2), (5, 0)])
def test_another_protocol_or_version_is_refused(place: int, byte: int) -> None:
    data = bytearray(Header(8, bytes(16), Counter(1, 0), 3).encode())
    data[place] = byte
    with pytest.raises(ProtocolError, match="another protocol or version"):
        read_header(bytes(data))


def survivors(**header: int) -> bytes:
    head = replace(Header(8, bytes(16), Counter(1, 0), 3), **header)  # type: ignore[arg-type]
    return write(messages.Survivors(head, bytes(32), (1, 2)), ONE)


@pytest.mark.parametrize("header", [{"flags": 1}, {"flags": 1 << 15}, {"number": 9}])
def test_unknown_flags_and_other_messages_are_refused(header: dict[str, int]) -> None:
    with pytest.raises(ProtocolError, match="unknown flags"):
        read(messages.Survivors, survivors(**header))


@pytest.mark.parametrize(
    "sites", [[3, 2], [2, 2], [0, 100], [0, 256], [1, 257]], ids=lambda sites: str(sites)
)
def test_unsorted_repeated_and_high_ids_are_refused(sites: list[int]) -> None:
    block = b"".join(struct.pack("<H", site) + bytes(32) for site in sites)
    with pytest.raises(ProtocolError, match="ascending"):
        read_records(block, 32)


def test_a_piece_of_an_entry_is_refused() -> None:
    with pytest.raises(ProtocolError, match="a piece of one"):
        read_records(bytes([1, 0]) + bytes(31), 32)


@pytest.mark.parametrize("number", [2, 3, 6, 10, 11])
@pytest.mark.parametrize("count", [0, 101, 0xFFFF])
def test_a_count_above_its_ceiling_is_refused_before_its_bytes(number: int, count: int) -> None:
    head = Header(number, bytes(16), Counter(1, 0), 3).encode()
    with pytest.raises(ProtocolError, match=r"count in 1\.\.100"):
        read(kind_of(number), head + struct.pack("<H", count) + bytes(64))


@pytest.mark.parametrize(
    ("kind", "data", "missing"),
    [
        (messages.Survivors, survivors()[:-1], r"160 bytes of message 8, got 159"),
        (messages.Unmask, Header(11, bytes(16), Counter(1, 0), 3).encode() + b"\1", "a count"),
        (messages.Unmask, Header(11, bytes(16), Counter(1, 0), 3).encode() + b"\1\0", "132 bytes"),
    ],
    ids=["signature", "count", "entries"],
)
def test_what_is_missing_of_a_message_is_named(kind: Any, data: bytes, missing: str) -> None:
    with pytest.raises(ProtocolError, match=f"expected {missing}"):
        read(kind, data)


HUNDRED = tuple(range(100))


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6, 8, 10, 11])
def test_a_hundred_sites_are_written_and_read(number: int) -> None:
    def entries(width: int) -> Any:
        return records({site: bytes(width) for site in HUNDRED}, width)

    def head(of: int, sender: int = 0xFFFF) -> Header:
        return Header(of, bytes(16), Counter(1, 0), sender)

    def every(of: int, tail: bytes = b"") -> Any:
        kind = kind_of(of)
        fields = {1: (*(bytes(32),) * 3, Counter(0, 0), bytes(32), bytes(32))}
        fields[5] = (bytes(32), bytes(16), bytes(32), bytes(32), entries(64))
        fields[9] = (bytes(32), HUNDRED)
        return tuple(
            read(kind, write(kind(head(of, site), *fields[of]), ONE, tail)) for site in HUNDRED
        )

    boxes = bytes(99 * (2 + messages.SHARES_BOX))
    message = {
        2: lambda: messages.RunRoster(head(2), every(1)),
        3: lambda: messages.GroupPart(head(3), entries(messages.PART_BOX)),
        4: lambda: messages.RoundStart(head(4), Kind.TRAIN, bytes(32), bytes(32), HUNDRED),
        5: lambda: every(5, boxes)[99].message,
        6: lambda: messages.Cohort(head(6), every(5, boxes)),
        8: lambda: messages.Survivors(head(8), bytes(32), HUNDRED),
        10: lambda: messages.AckSet(head(10), every(9)),
        11: lambda: messages.Unmask(head(11), entries(32)),
    }[number]()
    tail = boxes if number in (5, 6) else b""
    assert read(kind_of(number), write(message, ONE, tail)).body == message.body()


def test_no_entries_are_read_as_none() -> None:
    assert read_records(b"", 32).sites == ()


def test_a_payload_length_beyond_the_message_is_refused() -> None:
    header = Header(7, bytes(16), Counter(1, 0), 3)
    message = messages.Masked(header, bytes(32), 2**63, bytes(32))
    with pytest.raises(ProtocolError, match="after the signature"):
        read(messages.Masked, write(message, ONE, b""))


@pytest.mark.parametrize("number", [2, 6, 10])
@pytest.mark.parametrize("senders", [(3, 3), (3, 2), (2, 100)], ids=["twice", "back", "too high"])
def test_senders_that_do_not_ascend_below_a_hundred_are_refused(
    number: int, senders: tuple[int, int]
) -> None:
    """What a server puts together: RunRoster, Cohort, AckSet."""
    inner = {2: 1, 6: 5, 10: 9}[number]
    shares = records({2: bytes(64), 3: bytes(64)}, 64)
    fields: dict[int, tuple[Any, ...]] = {
        1: (bytes(32), bytes(32), bytes(32), Counter(0, 0), bytes(32), bytes(32)),
        5: (bytes(32), bytes(16), bytes(32), bytes(32), shares),
        9: (bytes(32), (1,)),
    }
    boxes = bytes(2 + messages.SHARES_BOX)
    every = []
    for sender in senders:
        header = Header(inner, bytes(16), Counter(1, 0), sender)
        one = kind_of(inner)(header, *fields[inner])
        every.append(read(kind_of(inner), write(one, ONE, boxes if inner == 5 else b"")))
    message = kind_of(number)(Header(number, bytes(16), Counter(1, 0), 0xFFFF), tuple(every))
    with pytest.raises(ProtocolError, match="ascending senders"):
        read(kind_of(number), write(message, ONE, boxes if number == 6 else b""))


def test_the_result_hash_is_that_of_header_and_body_alone() -> None:
    header = Header(12, bytes(16), Counter(1, 0), 0xFFFF)
    message = messages.Result(header, (0, 1, 2), bytes(32), 3, bytes([7]) * 32)
    one, same = (
        read(messages.Result, write(message, who, b"sum"))
        for who in (ONE, keys.identity(bytes([1]) * 32))
    )
    known = hashlib.sha256(header.encode() + message.body()).digest()
    assert messages.result_hash(one) == messages.result_hash(same) == known
    for other in (
        replace(message, header=replace(header, counter=Counter(1, 1))),
        replace(message, next_model=bytes([1]) * 32),
    ):
        changed = read(messages.Result, write(other, ONE, b"sum"))
        assert messages.result_hash(changed) != known


@given(st.sets(st.integers(0, 99)))
def test_bitmaps_are_read_back(sites: set[int]) -> None:
    assert read_bitmap(bitmap(sites)) == tuple(sorted(sites))


@pytest.mark.parametrize("site", [100, 255])
def test_a_bit_above_the_ceiling_is_refused(site: int) -> None:
    with pytest.raises(ProtocolError, match="below 100"):
        read_bitmap(bitmap([site]))


@pytest.mark.parametrize("kind", [0, 3])
def test_an_unknown_kind_of_round_is_refused(kind: int) -> None:
    head = Header(4, bytes(16), Counter(1, 0), 3).encode()
    with pytest.raises(ProtocolError, match="train"):
        read(messages.RoundStart, head + bytes([kind]) + bytes(96 + 64))


def test_the_cohort_hash_is_the_known_one() -> None:
    mask_keys = {i: bytes.fromhex(key) for i, key in enumerate(KNOWN["mask_public"])}
    assert messages.cohort_hash(mask_keys).hex() == KNOWN["cohort_hash"]


@settings(max_examples=40, deadline=None)
@given(message_of(7))
def test_a_draft_becomes_the_bytes_that_write_would_give(one: tuple[Any, bytes]) -> None:
    message, tail = one
    draft = Draft(kind_of(7), len(tail))
    draft.tail[:] = tail
    assert draft.sign(message, ONE) == write(message, ONE, tail)


def test_a_draft_is_not_signed_while_its_tail_can_still_change() -> None:
    header = Header(7, bytes(16), Counter(1, 0), 3)
    draft = Draft(kind_of(7), 8)
    held = memoryview(draft.tail)
    with pytest.raises(BufferError):
        draft.sign(messages.Masked(header, bytes(32), 8, bytes(32)), ONE)
    held.release()
