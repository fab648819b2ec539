"""Attacks 10 and 12: a wrong share, a forged sum."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy import keys, mac
from privacy.errors import ProtocolError
from privacy.secagg_messages import SHARES_BOX, Ready, Result, Unmask
from privacy.wire import read, read_records, records, write

ALL = (0, 1, 2, 3, 4)
TAU, LANE, VALUE = 0, 8, 16  # where they lie in a payload with one lane


@pytest.fixture
def five(federation: Any) -> Any:
    return federation(5)  # t = 4


# --- 10: one wrong share ------------------------------------------------------------------------


@pytest.mark.parametrize("dealer", ALL)
@pytest.mark.parametrize("dropped", [None, 4])
def test_attack_10_one_wrong_share_is_found_and_its_sender_named(
    federation: Any, dealer: int, dropped: int | None
) -> None:
    six = federation(6)  # t = 5
    six.forgeries["unmask", 2] = wrong_share(six, 2, dealer)
    if dropped is not None:
        six.forgeries["cohort", dropped] = lambda _: None
        assert "at least 5 right unmasking answers of 6, got 4" in six.play().ended
        assert f"share of site-{dealer} from site-2, got a wrong one" in six.outcome.ended
    else:
        reason = six.play().opened.refused[2]
        assert reason.startswith(f"message 11: expected the committed share of site-{dealer}")
    six.assert_only_true_sums()


def wrong_share(play: Any, liar: int, dealer: int) -> Callable[[bytes], bytes]:
    def lie(data: bytes) -> bytes:
        shares = read(Unmask, data).message.shares
        entries = {site: shares[site] for site in shares.sites}
        entries[dealer] = bytes([entries[dealer][0] ^ 1]) + entries[dealer][1:]
        return play.edit(Unmask, liar, shares=records(entries, 32))(data)

    return lie


def test_attack_10_a_share_that_was_dealt_wrong_is_found_and_its_dealer_named(five: Any) -> None:
    def misdeal(data: bytes) -> bytes:
        signed = read(Ready, data)
        one, channel = signed.message, five.hospitals[4].grouped.channels[0]
        bound = one.header.encode() + one.ctx + one.mask_key + one.self_commitment + keys.u16(0)
        boxes = read_records(signed.tail, SHARES_BOX)
        entries = {peer: boxes[peer] for peer in boxes.sites}
        nonce = keys.box_nonce(*one.header.counter, Ready.NUMBER)
        entries[0] = keys.seal(channel.outward, nonce, bytes(64), bound)
        return signed.signed + records(entries, SHARES_BOX).block

    five.forgeries["start", 4] = misdeal
    five.play()
    five.assert_refused(0, "cohort", "message 6: expected the committed shares of site-4")
    five.assert_only_true_sums()  # of the other four


# --- 12: a forged sum ---------------------------------------------------------------------------


def forged(play: Any, change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """A lie that changes the payload of Result, with right hash and signature."""

    def lie(data: bytes) -> bytes:
        signed = read(Result, data)
        payload = np.frombuffer(signed.tail, np.uint8).copy()
        change(payload)
        hashed = hashlib.sha256(payload).digest()
        return write(replace(signed.message, payload_hash=hashed), play.boss, payload.tobytes())

    return lie


def add(place: int, kind: str, step: int) -> Callable[[Any], None]:
    def change(payload: Any) -> None:
        word = payload[place : place + np.dtype(kind).itemsize].view(kind)
        word += np.array(step % 2 ** (8 * word.itemsize), kind)

    return change


@pytest.mark.parametrize("step", [1, -1, 2**31])
@pytest.mark.parametrize(("place", "kind"), [(TAU, "<u8"), (LANE, "<u8"), (VALUE, "<u4")])
def test_attack_12_a_forged_sum(five: Any, place: int, kind: str, step: int) -> None:
    five.lies["result", None] = forged(five, add(place, kind, step))
    five.play()
    for site in ALL:
        five.assert_refused(site, "result", "message 12: expected a sum that its MAC confirms")


@pytest.mark.parametrize("times", [-4, -1, 1, 4])
def test_attack_12_a_lane_moved_by_a_multiple_of_the_macs_prime(five: Any, times: int) -> None:
    five.lies["result", None] = forged(five, add(LANE, "<u8", times * mac.PRIME))
    five.play()
    for site in ALL:
        five.assert_refused(site, "result", "message 12: expected sums of lanes within")


@pytest.mark.parametrize("lane", [-1, 1])
def test_attack_12_honest_lanes_at_the_bound_are_summed(five: Any, lane: int) -> None:
    for hospital in five.hospitals:
        hospital.lanes[:] = lane * mac.lane_bound(5)
    assert set(five.play().sums) == set(ALL)
    five.assert_only_true_sums()


@pytest.mark.parametrize("lane", [-(2**63), -1, 1])
def test_attack_12_a_lane_beyond_the_bound_is_not_masked(five: Any, lane: int) -> None:
    beyond = lane if abs(lane) > 1 else lane * (mac.lane_bound(5) + 1)
    five.hospitals[0].lanes[:] = beyond
    five.play()
    five.assert_refused(0, "cohort", "message 7: expected lanes within")
    assert str(abs(beyond)) not in str(five.outcome.refusals[0])


def test_attack_12_the_sum_of_other_survivors(five: Any) -> None:
    five.lies["result", 0] = five.edit(Result, survivors=(0, 1, 2, 3))
    five.play()
    five.assert_refused(0, "result", "message 12: expected the sum of the agreed survivors")


def test_attack_12_a_sum_under_a_colluders_key(five: Any) -> None:
    five.lies["result", 0] = five.edit(Result, 4)
    five.play()
    five.assert_refused(0, "result", "message 12: expected the pinned server's signature")


def test_attack_12_a_masked_vector_forged_by_a_peer_is_no_sum_of_anybody(five: Any) -> None:
    def lie(data: bytes) -> bytes:  # the server does not see it; the sites do
        return data[:-1] + bytes([data[-1] ^ 1])

    five.forgeries["cohort", 4] = lie
    five.play()
    for site in ALL:
        with pytest.raises(ProtocolError, match="message 12: expected a sum that its MAC"):
            raise five.outcome.refusals[site]
