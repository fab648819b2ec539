"""Attacks 4, 5, 8, 14 and 18: other keys, other sites, other thresholds than the approved ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privacy import keys
from privacy.errors import ProtocolError, StudyError
from privacy.roster import Plan
from privacy.secagg_messages import (
    PART_BOX,
    Cohort,
    GroupPart,
    Ready,
    RoundStart,
    RunHello,
    RunRoster,
)
from privacy.secagg_store import SiteStore
from privacy.wire import Counter, Header, read, read_records, records, write

RUN = bytes(range(16))
OWN_KEY = keys.agreement_key(bytes([77]) * 32)  # of the liar, who would like to be in the middle
LOW_ORDER = [  # RFC 7748, section 6.1; https://cr.yp.to/ecdh.html#validate
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.fixture
def five(federation: Any) -> Any:
    return federation(5)  # t = 4


def in_roster(play: Any, site: int, change: Any) -> Any:
    """A lie about one RunHello inside RunRoster."""

    def lie(data: bytes) -> bytes:
        hellos = list(read(RunRoster, data).message.hellos)
        hellos[site] = read(RunHello, change(hellos[site].signed))
        return play.edit(RunRoster, hellos=tuple(hellos))(data)

    return lie


def in_cohort(play: Any, site: int, change: Any) -> Any:
    """A lie about one Ready inside Cohort; the boxes stay."""

    def lie(data: bytes) -> bytes:
        readies = list(read(Cohort, data).message.readies)
        tail = bytes((len(readies) - 1) * (2 + 80))
        readies[site] = read(Ready, change(readies[site].signed + tail))
        return play.edit(Cohort, readies=tuple(readies))(data)

    return lie


# --- 4: replaced keys --------------------------------------------------------------------------


def test_attack_04_a_replaced_channel_key(five: Any) -> None:
    change = five.edit(
        RunHello, channel_key=OWN_KEY.public
    )  # the server signs: it has no other key
    five.lies["roster", 0] = in_roster(five, 3, change)
    five.play()
    five.assert_refused(0, "roster", "message 2: expected the signature of site-3")


def test_attack_04_a_replaced_channel_key_with_the_old_signature(five: Any) -> None:
    def change(data: bytes) -> bytes:
        return data[:32] + OWN_KEY.public + data[64:]

    five.lies["roster", 0] = in_roster(five, 3, change)
    five.play()
    five.assert_refused(0, "roster", "message 2: expected the signature of site-3")


def test_attack_04_the_own_channel_key_replaced(five: Any) -> None:
    stolen = five.edit(RunHello, 0, channel_key=OWN_KEY.public)  # even with the site's own key
    five.lies["roster", 0] = in_roster(five, 0, stolen)
    five.play()
    five.assert_refused(0, "roster", "message 2: expected own RunHello unchanged")


def test_attack_04_two_channel_keys_of_one_site_for_two_halves(five: Any) -> None:
    other = five.edit(RunHello, 4, channel_key=OWN_KEY.public)  # site 4 works for the server
    for site in (0, 1):
        five.lies["roster", site] = in_roster(five, 4, other)
    five.play()
    for site in range(5):  # each pair has another T, so no box of the other half opens
        five.assert_refused(site, "group", r"message 3: expected a box of site-. that opens")


def test_attack_04_a_replaced_mask_key(five: Any) -> None:
    change = five.edit(Ready, mask_key=OWN_KEY.public)
    five.lies["cohort", 0] = in_cohort(five, 3, change)
    five.play()
    five.assert_refused(0, "cohort", "message 6: expected the signature of site-3")


def test_attack_04_the_own_ready_replaced(five: Any) -> None:
    stolen = five.edit(Ready, 0, mask_key=OWN_KEY.public)
    five.lies["cohort", 0] = in_cohort(five, 0, stolen)
    five.play()
    five.assert_refused(0, "cohort", "message 6: expected own Ready unchanged")


def test_attack_04_the_box_of_another_ready(five: Any) -> None:
    other = five.edit(Ready, 4, mask_key=OWN_KEY.public)  # a colluder's, but its boxes are bound
    five.lies["cohort", 0] = in_cohort(five, 4, other)
    five.play()
    five.assert_refused(0, "cohort", "message 6: expected a box of site-4 that opens")


# --- 5: lower thresholds -----------------------------------------------------------------------


class Greedy(Plan):
    """A plan of a server that would open anything."""

    t = quorum = 1  # type: ignore[assignment]


def greedy(play: Any) -> None:
    plan = play.plan
    lowered = Greedy(plan.digest, plan.n, plan.values, train_lanes=plan.train_lanes)
    play.server = replace(play.server, plan=lowered)


@pytest.mark.parametrize("n", [3, 5, 7, 10])
def test_attack_05_a_run_of_one_victim_and_colluders_below_t(federation: Any, n: int) -> None:
    play = federation(n)
    greedy(play)
    for site in range(play.plan.t - 1, n):
        play.forgeries["hello", site] = lambda _: None
    play.play()
    play.assert_refused(0, "roster", f"message 2: expected at least {play.plan.t} sites, got")


def test_attack_05_a_cohort_below_t(five: Any) -> None:
    greedy(five)
    for site in (3, 4):
        five.forgeries["start", site] = lambda _: None
    five.play()
    five.assert_refused(0, "cohort", "message 6: expected at least 4 sites, got 3")


@pytest.mark.parametrize(
    ("numbers", "least"), [({}, 4), ({"min_sites": 5}, 5), ({"answers_min": 5}, 5)]
)
def test_attack_05_survivors_below_t_or_min_sites_or_t_n(
    federation: Any, numbers: dict[str, int], least: int
) -> None:
    five = federation(5, **numbers)
    greedy(five)
    for site in range(least - 1, 5):
        five.forgeries["cohort", site] = lambda _: None
    five.play()
    five.assert_refused(0, "survivors", f"message 8: expected at least {least} survivors, got")


def test_attack_05_a_part_of_the_run_as_cohort(five: Any) -> None:
    five.lies["start", None] = five.edit(RoundStart, members=(0, 1, 2, 3))
    five.play()
    five.assert_refused(0, "start", "message 4: expected all 5 sites of the run, got 4")


@pytest.mark.parametrize("n", [1, 2])
def test_attack_05_two_sites(n: int) -> None:
    with pytest.raises(StudyError, match=r"expected sites in 3\.\.100"):
        Plan(bytes(32), n, 5)


def test_attack_05_two_min_sites() -> None:
    with pytest.raises(StudyError, match=r"expected min_sites in 3\.\.5, got 2"):
        Plan(bytes(32), 5, 5, min_sites=2)


# --- 8: keys that give a secret away -----------------------------------------------------------


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_attack_08_a_low_order_channel_key(five: Any, point: bytes) -> None:
    five.forgeries["hello", 4] = five.edit(RunHello, 4, channel_key=point)
    five.play()
    for site in range(4):
        five.assert_refused(site, "roster", "message 2: expected a key of full order from site-4")


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_attack_08_a_low_order_mask_key(five: Any, point: bytes) -> None:
    five.forgeries["start", 4] = resealed(five, 4, mask_key=point)
    five.play()
    for site in range(4):
        five.assert_refused(site, "cohort", "message 6: expected a key of full order from site-4")


def resealed(play: Any, site: int, **changes: Any) -> Any:
    """A Ready of a colluder with other fields, whose boxes are bound to them."""

    def lie(data: bytes) -> bytes:
        signed = read(Ready, play.edit(Ready, site, **changes)(data))
        message, channels = signed.message, play.hospitals[site].grouped.channels
        old = read(Ready, data).message
        nonce = keys.box_nonce(*message.header.counter, Ready.NUMBER)
        boxes, new = read_records(signed.tail, 80), {}
        for peer in boxes.sites:
            bound = [
                one.header.encode() + one.ctx + one.mask_key + one.self_commitment + keys.u16(peer)
                for one in (old, message)
            ]
            plain = keys.unseal(channels[peer].outward, nonce, boxes[peer], bound[0])
            new[peer] = keys.seal(channels[peer].outward, nonce, plain, bound[1])
        return signed.signed + records(new, 80).block

    return lie


def test_attack_08_a_peers_channel_key_repeated(five: Any) -> None:
    def copy(data: bytes) -> bytes:
        key = read(RunHello, five.said(0, "hello")).message.channel_key
        return five.edit(RunHello, 4, channel_key=key)(data)

    five.forgeries["hello", 4] = copy
    five.play()
    for site in range(4):
        five.assert_refused(site, "roster", "message 2: expected a channel key of its own")


def test_attack_08_a_peers_mask_key_repeated(five: Any) -> None:
    def copy(data: bytes) -> bytes:
        key = read(Ready, five.said(0, "start")).message.mask_key
        return resealed(five, 4, mask_key=key)(data)

    five.forgeries["start", 4] = copy
    five.play()
    for site in range(4):
        five.assert_refused(site, "cohort", "message 6: expected a mask key of its own")


# --- 14: sites that do not belong, a group key that somebody chose -------------------------------


def test_attack_14_a_site_outside_the_roster(five: Any) -> None:
    stranger = keys.identity(bytes([99]) * 32)

    def lie(data: bytes) -> bytes:
        hellos = read(RunRoster, data).message.hellos
        header = replace(hellos[0].message.header, sender=5)
        extra = read(RunHello, write(replace(hellos[0].message, header=header), stranger))
        return five.edit(RunRoster, hellos=(*hellos, extra))(data)

    five.lies["roster", None] = lie
    five.play()
    five.assert_refused(0, "roster", r"message 2: expected sites of the roster .*, got number 5")


def test_attack_14_a_stranger_in_the_place_of_a_site(five: Any) -> None:
    stranger = keys.identity(bytes([99]) * 32)

    def lie(data: bytes) -> bytes:
        return write(read(RunHello, data).message, stranger)

    five.lies["roster", None] = in_roster(five, 3, lie)
    five.play()
    five.assert_refused(0, "roster", "message 2: expected the signature of site-3")


def test_attack_14_a_revoked_site(five: Any) -> None:
    members = list(five.roster.sites)
    members[3] = replace(members[3], revoked=True)
    newer = replace(five.roster, sites=tuple(members))
    five.hospitals[0].site = replace(five.hospitals[0].site, roster=newer)
    five.play()  # with a server that holds the older roster
    five.assert_refused(0, "roster", r"message 2: expected .* not revoked, got site-3")


def test_attack_14_a_group_key_steered_by_the_last_part(five: Any) -> None:
    def steer(data: bytes) -> bytes:  # site 4 has seen all other parts and changes its own
        header = Header(GroupPart.NUMBER, RUN, Counter(0, 0), 4)
        nonce = keys.box_nonce(0, 0, GroupPart.NUMBER)
        channels = five.hospitals[4].phase.channels
        boxes = {
            peer: keys.seal(one.outward, nonce, bytes(32), header.encode() + keys.u16(peer))
            for peer, one in channels.items()
        }
        return write(GroupPart(header, records(boxes, PART_BOX)), five.identities[4])

    five.forgeries["roster", 4] = steer
    five.play()
    for site in range(4):
        five.assert_refused(site, "group", "message 3: expected the committed part of site-4")


def test_attack_14_a_group_part_replaced_by_the_server(five: Any) -> None:
    def lie(data: bytes) -> bytes:
        return data[:-PART_BOX] + bytes(PART_BOX)

    five.lies["group", 0] = lie
    five.play()
    five.assert_refused(0, "group", "message 3: expected a box of site-4 that opens")


# --- 18: a site restored from an older copy ----------------------------------------------------


def test_attack_18_a_site_restored_from_an_older_copy(federation: Any, tmp_path: Path) -> None:
    five = federation(5, folder=tmp_path)
    five.play()
    five.attempt(Counter(2, 0), keep=False)
    five.play(bytes(16), Counter(3, 0))  # a new run: every peer sees every counter
    assert set(five.outcome.sums) == set(range(5))
    five.hospitals[3].store.close()
    for file in tmp_path.glob("3.db*"):
        file.unlink()
    five.hospitals[3] = five.hospital(3)  # a copy from before the first round
    five.play(bytes([1]) * 16, Counter(4, 0))
    for site in (0, 1, 2, 4):
        five.assert_refused(site, "roster", r"message 2: expected site-3 at .*: it was rolled back")


def test_attack_18_the_highest_counter_seen_of_a_peer_survives_a_restart(tmp_path: Path) -> None:
    with SiteStore(tmp_path / "0.db") as store:
        store.raise_counters({3: Counter(2, 1)})
    with SiteStore(tmp_path / "0.db") as store:
        store.raise_counters({3: Counter(1, 9)})
        assert store.counters()[3] == Counter(2, 1)


def test_attack_18_an_own_counter_is_taken_once(tmp_path: Path) -> None:
    with SiteStore(tmp_path / "0.db") as store:
        store.advance(0, Counter(2, 1))
    for counter in (Counter(2, 1), Counter(2, 0), Counter(1, 9)):
        with (
            SiteStore(tmp_path / "0.db") as store,
            pytest.raises(ProtocolError, match="message 4: expected a counter above"),
        ):
            store.advance(0, counter)
