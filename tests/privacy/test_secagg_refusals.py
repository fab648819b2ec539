"""What a site and the server refuse: each check of the message table, against one that deviates.

The scene is one run of four sites (t = 3), played up to the message under test; the server's own
key signs what a lying server would send.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from privacy import keys, secagg_server, secagg_setup, secagg_site, sharing
from privacy import secagg_messages as messages
from privacy.errors import ProtocolError, StudyError
from privacy.heads import EMPTY, Head
from privacy.roster import Kind, Member, Plan, Roster
from privacy.secagg_setup import Site
from privacy.secagg_site import Expected
from privacy.wire import Counter, Header, Signed, read, read_records, records, write

MODEL = bytes([7]) * 32
RUN = bytes(range(16))
START, FIRST = Counter(0, 0), Counter(1, 0)
TRAIN = Expected(Kind.TRAIN, MODEL)
N = 4
BOSS = keys.identity(bytes([200]) * 32)
PEOPLE = [keys.identity(bytes([100 + site]) * 32) for site in range(N)]
PLAN = Plan(bytes([1]) * 32, N, 5, train_lanes=1)
ROSTER = Roster(tuple(Member(f"site-{i}", one.public) for i, one in enumerate(PEOPLE)), BOSS.public)
SERVER = secagg_server.Coordinator(BOSS, PLAN, ROSTER)


def site(index: int) -> Site:
    return Site(PEOPLE[index], index, PLAN, ROSTER, random.Random(index).randbytes)


@dataclass
class Scene:
    """Every phase and every message of one whole attempt; the state machines share no state."""

    greeted: list[secagg_setup.Greeted]
    hellos: list[bytes]
    run_roster: bytes
    joined: list[secagg_setup.Joined]
    parts: list[bytes]
    group_parts: dict[int, bytes]
    grouped: list[secagg_setup.Grouped]
    begin: bytes
    advertised: list[secagg_site.Advertised]
    readies: list[bytes]
    formed: secagg_server.Formed
    masked: list[secagg_site.Masked]
    vectors: list[bytes]
    running: secagg_server.RunningSum
    closed: secagg_server.Closed
    survivors: bytes
    acknowledged: list[secagg_site.Acknowledged]
    acks: list[bytes]
    agreed: secagg_server.Agreed
    ack_set: bytes
    revealed: list[secagg_site.Revealed]
    answers: list[bytes]
    result: bytes


def play(dropped: tuple[int, ...] = ()) -> Scene:
    """One attempt; the sites of ``dropped`` never send Masked and are not heard of again."""
    greeted, hellos = split(secagg_setup.hello(site(i), RUN, START) for i in range(N))
    gathered, run_roster = secagg_server.gather(SERVER, RUN, enumerate(hellos))
    joined, parts = split(secagg_setup.join(phase, run_roster) for phase in greeted)
    run, group_parts = secagg_server.relay(gathered, enumerate(parts))
    grouped = [secagg_setup.group(phase, group_parts[i]) for i, phase in enumerate(joined)]
    started, begin = secagg_server.start_round(run, FIRST, Kind.TRAIN, MODEL)
    advertised, readies = split(secagg_site.start(one, begin, TRAIN, START) for one in grouped)
    formed = secagg_server.form_cohort(started, enumerate(readies))
    masked, vectors = split(
        secagg_site.mask(
            secagg_site.admit(one, formed.message(i)),
            np.full(5, 10 + i, np.int32),
            np.full(1, i, np.int64),
        )
        for i, one in enumerate(advertised)
    )
    running = secagg_server.RunningSum(formed)
    there = [i for i in range(N) if i not in dropped]
    for i in there:
        assert running.add(i, vectors[i])
    closed, survivors = secagg_server.close(running)
    acknowledged, acks = split(secagg_site.acknowledge(masked[i], survivors) for i in there)
    agreed, ack_set = secagg_server.agree_survivors(closed, zip(there, acks, strict=True))
    revealed, answers = split(secagg_site.reveal(one, ack_set) for one in acknowledged)
    twin = secagg_server.RunningSum(formed)  # so that the scene's own sum stays masked
    for i in there:
        twin.add(i, vectors[i])
    opened = secagg_server.open_sum(replace(agreed, running=twin), zip(there, answers, strict=True))
    result = bytes(secagg_server.write_result(opened, MODEL))
    return Scene(
        greeted, hellos, run_roster, joined, parts, group_parts, grouped, begin, advertised,
        readies, formed, masked, vectors, running, closed, survivors, acknowledged, acks, agreed,
        ack_set, revealed, answers, result,
    )  # fmt: skip


def split(pairs: Any) -> tuple[list[Any], list[bytes]]:
    pairs = list(pairs)
    return [one for one, _ in pairs], [data for _, data in pairs]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return play()


def forged(kind: type, data: bytes, identity: keys.Identity = BOSS, **changes: Any) -> bytes:
    """The message with these fields changed, signed anew."""
    signed = read(kind, data)
    return write(replace(signed.message, **changes), identity, signed.tail)


def moved(kind: type, data: bytes, identity: keys.Identity = BOSS, **changes: Any) -> bytes:
    """The message with these fields of its header changed, signed anew."""
    header = replace(read(kind, data).message.header, **changes)
    return forged(kind, data, identity, header=header)


OTHER_RUN = bytes(16)
HEADERS = pytest.mark.parametrize(
    "change",
    [{"run": OTHER_RUN}, {"counter": Counter(1, 1)}, {"counter": Counter(2, 0)}, {"sender": 1}],
)


# --- message 2: RunRoster ----------------------------------------------------------------------


def hellos_with(scene: Scene, index: int, data: bytes | None) -> bytes:
    """RunRoster with one RunHello replaced or left out."""
    all_of = [read(messages.RunHello, one) for one in scene.hellos]
    if data is None:
        del all_of[index]
    else:
        all_of[index] = read(messages.RunHello, data)
    return forged(messages.RunRoster, scene.run_roster, hellos=tuple(all_of))


@HEADERS
def test_a_run_roster_of_another_run_or_sender_is_refused(scene: Scene, change: Any) -> None:
    with pytest.raises(ProtocolError, match="message 2"):
        secagg_setup.join(scene.greeted[0], moved(messages.RunRoster, scene.run_roster, **change))


def test_a_run_roster_signed_by_another_key_is_refused(scene: Scene) -> None:
    data = forged(messages.RunRoster, scene.run_roster, PEOPLE[1])
    with pytest.raises(ProtocolError, match="pinned server's signature"):
        secagg_setup.join(scene.greeted[0], data)


def test_a_hello_signed_by_another_key_is_refused(scene: Scene) -> None:
    data = hellos_with(scene, 1, forged(messages.RunHello, scene.hellos[1], BOSS))
    with pytest.raises(ProtocolError, match="signature of site-1"):
        secagg_setup.join(scene.greeted[0], data)


@pytest.mark.parametrize("change", [{"run": OTHER_RUN}, {"counter": FIRST}])
def test_a_hello_of_another_run_or_moment_is_refused(scene: Scene, change: Any) -> None:
    stale = moved(messages.RunHello, scene.hellos[1], PEOPLE[1], **change)
    with pytest.raises(ProtocolError, match="RunHello of this run from site-1"):
        secagg_setup.join(scene.greeted[0], hellos_with(scene, 1, stale))


def test_a_peer_with_another_plan_is_refused(scene: Scene) -> None:
    other = forged(messages.RunHello, scene.hellos[1], PEOPLE[1], plan=bytes(32))
    with pytest.raises(ProtocolError, match="approved plan at site-1"):
        secagg_setup.join(scene.greeted[0], hellos_with(scene, 1, other))


def test_an_own_hello_that_was_changed_is_refused(scene: Scene) -> None:
    other = forged(messages.RunHello, scene.hellos[0], PEOPLE[0], nonce=bytes(32))
    for data in (hellos_with(scene, 0, other), hellos_with(scene, 0, None)):
        with pytest.raises(ProtocolError, match="own RunHello unchanged"):
            secagg_setup.join(scene.greeted[0], data)


def test_a_run_below_the_threshold_is_refused(scene: Scene) -> None:
    few = tuple(read(messages.RunHello, one) for one in scene.hellos[:2])
    with pytest.raises(ProtocolError, match="at least 3 sites, got 2"):
        secagg_setup.join(
            scene.greeted[0], forged(messages.RunRoster, scene.run_roster, hellos=few)
        )


def test_a_revoked_site_is_refused(scene: Scene) -> None:
    sites = list(ROSTER.sites)
    sites[3] = replace(sites[3], revoked=True)
    newer = replace(site(0), roster=replace(ROSTER, sites=tuple(sites)))
    with pytest.raises(ProtocolError, match="not revoked, got site-3"):
        secagg_setup.join(replace(scene.greeted[0], site=newer), scene.run_roster)


def test_a_site_outside_the_roster_is_refused(scene: Scene) -> None:
    stranger = keys.identity(bytes([50]) * 32)
    extra = moved(messages.RunHello, scene.hellos[3], stranger, sender=N)
    all_of = tuple(read(messages.RunHello, one) for one in [*scene.hellos, extra])
    with pytest.raises(ProtocolError, match="number 4"):
        secagg_setup.join(
            scene.greeted[0], forged(messages.RunRoster, scene.run_roster, hellos=all_of)
        )


def test_a_repeated_channel_key_is_refused(scene: Scene) -> None:
    key = read(messages.RunHello, scene.hellos[2]).message.channel_key
    twin = forged(messages.RunHello, scene.hellos[1], PEOPLE[1], channel_key=key)
    with pytest.raises(ProtocolError, match="channel key of its own"):
        secagg_setup.join(scene.greeted[0], hellos_with(scene, 1, twin))


def test_a_low_order_channel_key_is_refused(scene: Scene) -> None:
    weak = forged(messages.RunHello, scene.hellos[1], PEOPLE[1], channel_key=bytes(32))
    with pytest.raises(ProtocolError, match="full order from site-1"):
        secagg_setup.join(scene.greeted[0], hellos_with(scene, 1, weak))


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (Head(5, "ab" * 28), Head(4, "ab" * 28)),  # an older copy put back
        (Head(5, "ab" * 28), Head(5, "cd" * 28)),  # written anew
        (Head(5, "ab" * 28), EMPTY),  # removed
    ],
)
def test_a_peer_whose_ledger_was_rolled_back_is_named(seen: Head, told: Head) -> None:
    greeted, hellos = split(secagg_setup.hello(site(i), RUN, START) for i in range(N - 1))
    last = secagg_setup.hello(site(3), RUN, START, told.wire())[1]
    _, roster = secagg_server.gather(SERVER, RUN, enumerate([*hellos, last]))
    with pytest.raises(ProtocolError, match=r"the ledger of site-3 to go on from row 5, .* row"):
        secagg_setup.join(greeted[0], roster, heads={3: seen})


def test_the_heads_of_all_ledgers_come_out_of_the_setup() -> None:
    heads = {index: Head(index, f"{index:02x}" * 28) for index in range(N)}
    greeted, hellos = split(
        secagg_setup.hello(site(i), RUN, START, heads[i].wire()) for i in range(N)
    )
    _, roster = secagg_server.gather(SERVER, RUN, enumerate(hellos))
    joined, _ = secagg_setup.join(greeted[0], roster)
    assert dict(joined.heads) == heads
    again, _ = secagg_setup.join(greeted[0], roster, heads=joined.heads)  # the same is fine
    assert again.heads == joined.heads
    earlier = {3: Head(2, "ff" * 28)}
    assert secagg_setup.join(greeted[0], roster, heads=earlier)[0].heads == joined.heads


def test_a_peer_that_was_rolled_back_is_named(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match=r"site-2 at .* rolled back"):
        secagg_setup.join(scene.greeted[0], scene.run_roster, {2: Counter(0, 1)})


def test_the_highest_counters_seen_are_returned(scene: Scene) -> None:
    later = forged(messages.RunHello, scene.hellos[1], PEOPLE[1], last=Counter(5, 2))
    joined, _ = secagg_setup.join(
        scene.greeted[0], hellos_with(scene, 1, later), {1: Counter(4, 0)}
    )
    assert joined.highest[1] == Counter(5, 2)


# --- message 3: GroupParts ---------------------------------------------------------------------


def parts_with(scene: Scene, index: int, box: bytes | None) -> bytes:
    header, boxes = messages.read_group_parts(scene.group_parts[0])
    entries = {peer: boxes[peer] for peer in boxes.sites}
    if box is None:
        del entries[index]
    else:
        entries[index] = box
    return messages.write_group_parts(header, records(entries, messages.PART_BOX))


def test_a_missing_group_part_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="parts of 3 peers, got 2"):
        secagg_setup.group(scene.joined[0], parts_with(scene, 2, None))


def test_a_box_that_does_not_open_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="box of site-2 that opens"):
        secagg_setup.group(scene.joined[0], parts_with(scene, 2, bytes(messages.PART_BOX)))


def test_a_box_reflected_to_its_sender_does_not_open(scene: Scene) -> None:
    own = read(messages.GroupPart, scene.parts[0]).message.boxes[2]
    with pytest.raises(ProtocolError, match="box of site-2 that opens"):
        secagg_setup.group(scene.joined[0], parts_with(scene, 2, own))


def test_a_group_part_that_was_not_committed_is_refused(scene: Scene) -> None:
    liar = replace(scene.joined[2], part=bytes(32))
    data = secagg_setup._group_part(liar)
    box = read(messages.GroupPart, data).message.boxes[0]
    with pytest.raises(ProtocolError, match="committed part of site-2"):
        secagg_setup.group(scene.joined[0], parts_with(scene, 2, box))


def test_group_parts_of_another_run_are_refused(scene: Scene) -> None:
    header, boxes = messages.read_group_parts(scene.group_parts[0])
    for change in ({"run": OTHER_RUN}, {"sender": 2}, {"counter": FIRST}):
        data = messages.write_group_parts(replace(header, **change), boxes)
        with pytest.raises(ProtocolError, match="message 3"):
            secagg_setup.group(scene.joined[0], data)


# --- message 4: RoundStart ---------------------------------------------------------------------


def start(scene: Scene, data: bytes, expected: Expected = TRAIN, last: Counter = START) -> None:
    secagg_site.start(scene.grouped[0], data, expected, last)


@pytest.mark.parametrize("last", [Counter(1, 0), Counter(1, 1), Counter(2, 0)])
def test_a_counter_that_does_not_grow_is_refused(scene: Scene, last: Counter) -> None:
    with pytest.raises(ProtocolError, match="counter above"):
        start(scene, scene.begin, last=last)


def test_a_kind_that_the_plan_does_not_order_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="round to evaluate, got train"):
        start(scene, scene.begin, Expected(Kind.EVALUATE, MODEL))


def test_another_model_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="own model and state"):
        start(scene, scene.begin, Expected(Kind.TRAIN, bytes(32)))


def test_another_last_result_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="last result"):
        start(scene, scene.begin, Expected(Kind.TRAIN, MODEL, bytes([1]) * 32))


def test_a_part_of_the_run_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="all 4 sites of the run, got 3"):
        start(scene, forged(messages.RoundStart, scene.begin, members=(0, 1, 2)))


def test_a_round_start_of_another_run_or_key_is_refused(scene: Scene) -> None:
    for data in (
        moved(messages.RoundStart, scene.begin, run=OTHER_RUN),
        moved(messages.RoundStart, scene.begin, sender=1),
        forged(messages.RoundStart, scene.begin, PEOPLE[1]),
    ):
        with pytest.raises(ProtocolError, match="message 4"):
            start(scene, data)


# --- message 6: Cohort -------------------------------------------------------------------------


def cohort_with(scene: Scene, index: int, ready: bytes | None) -> bytes:
    """Site 0's Cohort with the Ready of one site replaced (its boxes too) or left out."""
    signed = read(messages.Cohort, scene.formed.message(0))
    all_of = {one.message.header.sender: one for one in signed.message.readies}
    boxes = {peer: read_boxes(scene.readies[peer])[0] for peer in range(1, N) if peer != index}
    if ready is None:
        del all_of[index]
    else:
        all_of[index] = read(messages.Ready, ready)
        if index:
            boxes[index] = read_boxes(ready)[0]
    message = replace(signed.message, readies=tuple(all_of.values()))
    return write(message, BOSS, records(boxes, messages.SHARES_BOX).block)


def read_boxes(ready: bytes) -> Any:
    return read_records(read(messages.Ready, ready).tail, messages.SHARES_BOX)


def admit(scene: Scene, data: bytes) -> secagg_site.Shared:
    return secagg_site.admit(scene.advertised[0], data)


@HEADERS
def test_a_cohort_of_another_attempt_is_refused(scene: Scene, change: Any) -> None:
    with pytest.raises(ProtocolError, match="message 6"):
        admit(scene, moved(messages.Cohort, scene.formed.message(0), **change))


def test_a_cohort_signed_by_another_key_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="pinned server's signature"):
        admit(scene, forged(messages.Cohort, scene.formed.message(0), PEOPLE[1]))


def test_a_cohort_below_the_threshold_is_refused(scene: Scene) -> None:
    signed = read(messages.Cohort, scene.formed.message(0))
    message = replace(signed.message, readies=signed.message.readies[:2])
    data = write(message, BOSS, bytes(signed.tail[: 2 + messages.SHARES_BOX]))
    with pytest.raises(ProtocolError, match="at least 3 sites, got 2"):
        admit(scene, data)


def test_an_own_ready_that_was_changed_is_refused(scene: Scene) -> None:
    other = forged(messages.Ready, scene.readies[0], PEOPLE[0], mask_key=bytes([9]) * 32)
    with pytest.raises(ProtocolError, match="own Ready unchanged"):
        admit(scene, cohort_with(scene, 0, other))
    three = read(messages.Cohort, scene.formed.message(0))
    without = replace(three.message, readies=three.message.readies[1:])
    with pytest.raises(ProtocolError, match="own Ready unchanged"):
        admit(scene, write(without, BOSS, bytes(three.tail[: 2 * (2 + messages.SHARES_BOX)])))


def test_a_ready_signed_by_another_key_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="signature of site-2"):
        admit(scene, cohort_with(scene, 2, forged(messages.Ready, scene.readies[2], BOSS)))


@pytest.mark.parametrize("change", [{"run": OTHER_RUN}, {"counter": Counter(1, 1)}])
def test_a_ready_of_another_attempt_is_refused(scene: Scene, change: Any) -> None:
    stale = moved(messages.Ready, scene.readies[2], PEOPLE[2], **change)
    with pytest.raises(ProtocolError, match="Ready of this attempt from site-2"):
        admit(scene, cohort_with(scene, 2, stale))


@pytest.mark.parametrize("field", ["ctx", "group_tag"])
def test_a_peer_in_another_context_is_refused(scene: Scene, field: str) -> None:
    size = 32 if field == "ctx" else 16
    other = forged(messages.Ready, scene.readies[2], PEOPLE[2], **{field: bytes(size)})
    with pytest.raises(ProtocolError, match="from site-2, got another"):
        admit(scene, cohort_with(scene, 2, other))


def test_a_ready_from_outside_the_run_is_refused(scene: Scene) -> None:
    stray = moved(messages.Ready, scene.readies[3], PEOPLE[3], sender=N)
    signed = read(messages.Cohort, scene.formed.message(0))
    readies = (*signed.message.readies, read(messages.Ready, stray))
    tail = bytes(signed.tail) + bytes([N, 0]) + bytes(messages.SHARES_BOX)
    with pytest.raises(ProtocolError, match="sites of the run, got number 4"):
        admit(scene, write(replace(signed.message, readies=readies), BOSS, tail))


def test_share_commitments_for_others_are_refused(scene: Scene) -> None:
    found = read(messages.Ready, scene.readies[2]).message.share_commitments
    fewer = records({i: found[i] for i in (0, 1, 2)}, 64)
    signed = read(messages.Ready, scene.readies[2])
    data = write(replace(signed.message, share_commitments=fewer), PEOPLE[2], signed.tail[: 2 * 82])
    with pytest.raises(ProtocolError, match="share commitments of site-2"):
        admit(scene, cohort_with(scene, 2, data))


def test_a_repeated_mask_key_is_refused(scene: Scene) -> None:
    key = read(messages.Ready, scene.readies[1]).message.mask_key
    twin = forged(messages.Ready, scene.readies[2], PEOPLE[2], mask_key=key)
    with pytest.raises(ProtocolError, match="mask key of its own"):
        admit(scene, cohort_with(scene, 2, twin))


def test_a_low_order_mask_key_is_refused(scene: Scene) -> None:
    weak = lying_ready(scene, mask_key=bytes(32))
    with pytest.raises(ProtocolError, match="full order from site-2"):
        admit(scene, cohort_with(scene, 2, weak))


def lying_ready(scene: Scene, plain: bytes | None = None, **changes: Any) -> bytes:
    """Site 2's Ready with fields changed and its box for site 0 made to match them."""
    signed = read(messages.Ready, scene.readies[2])
    message = replace(signed.message, **changes)
    nonce = keys.box_nonce(*FIRST, 5)
    shares = plain
    if shares is None:
        bound = secagg_site._shares_bound(signed.message) + keys.u16(0)
        box = read_boxes(scene.readies[2])[0]
        shares = keys.unseal(scene.grouped[0].channels[2].inward, nonce, box, bound)
        assert shares is not None
    bound = secagg_site._shares_bound(message) + keys.u16(0)
    boxes = {i: bytes(messages.SHARES_BOX) for i in (1, 3)}
    boxes[0] = keys.seal(scene.grouped[2].channels[0].outward, nonce, shares, bound)
    return write(message, PEOPLE[2], records(boxes, messages.SHARES_BOX).block)


def test_the_lying_ready_is_accepted_when_it_does_not_lie(scene: Scene) -> None:
    admit(scene, cohort_with(scene, 2, lying_ready(scene)))


@pytest.mark.parametrize("place", [0, 32])
def test_a_share_that_breaks_its_commitment_is_refused(scene: Scene, place: int) -> None:
    shares = bytearray(64)
    with pytest.raises(ProtocolError, match="committed shares of site-2"):
        admit(scene, cohort_with(scene, 2, lying_ready(scene, bytes(shares))))
    bound = secagg_site._shares_bound(read(messages.Ready, scene.readies[2]).message) + keys.u16(0)
    box = read_boxes(scene.readies[2])[0]
    nonce = keys.box_nonce(*FIRST, 5)
    shares[:] = keys.unseal(scene.grouped[0].channels[2].inward, nonce, box, bound) or b""
    shares[place] ^= 1
    with pytest.raises(ProtocolError, match="committed shares of site-2"):
        admit(scene, cohort_with(scene, 2, lying_ready(scene, bytes(shares))))


def test_a_share_box_that_does_not_open_is_refused(scene: Scene) -> None:
    data = bytearray(scene.formed.message(0))
    data[-1] ^= 1
    with pytest.raises(ProtocolError, match="box of site-3 that opens"):
        admit(scene, bytes(data))


def test_a_swapped_commitment_breaks_the_box(scene: Scene) -> None:
    other = forged(messages.Ready, scene.readies[2], PEOPLE[2], self_commitment=bytes(32))
    with pytest.raises(ProtocolError, match="box of site-2 that opens"):
        admit(scene, cohort_with(scene, 2, other))


def test_boxes_of_another_cohort_are_refused(scene: Scene) -> None:
    signed = read(messages.Cohort, scene.formed.message(0))
    boxes = {i: bytes(messages.SHARES_BOX) for i in (0, 1, 2)}
    data = write(signed.message, BOSS, records(boxes, messages.SHARES_BOX).block)
    with pytest.raises(ProtocolError, match="one box from each site"):
        admit(scene, data)


def admit_computed(scene: Scene, computed: set[int]) -> None:
    """Site 0 is shown a cohort in which these say that they computed the state themselves."""
    started, begin = secagg_server.start_round(
        secagg_server.Run(SERVER, RUN, (0, 1, 2, 3)), FIRST, Kind.TRAIN, MODEL
    )
    ready = [
        secagg_site.start(one, begin, TRAIN, START, computed=i in computed)
        for i, one in enumerate(scene.grouped)
    ]
    formed = secagg_server.form_cohort(started, [(i, one[1]) for i, one in enumerate(ready)])
    secagg_site.admit(ready[0][0], formed.message(0))


@pytest.mark.parametrize("computed", [set(), {1}, {3}])
def test_a_state_that_too_few_computed_is_refused(scene: Scene, computed: set[int]) -> None:
    """n = 4: a site that took the state from the server wants two others who computed it."""
    with pytest.raises(ProtocolError, match=f"2 sites that computed .*, got {len(computed)}"):
        admit_computed(scene, computed)


@pytest.mark.parametrize("computed", [{1, 2}, {1, 2, 3}, {0}])
def test_a_state_that_the_site_or_enough_others_computed_is_taken(
    scene: Scene, computed: set[int]
) -> None:
    admit_computed(scene, computed)


@pytest.mark.parametrize("computed", [False, True])
def test_a_ready_says_whether_the_site_computed_the_state(scene: Scene, computed: bool) -> None:
    _, data = secagg_site.start(scene.grouped[0], scene.begin, TRAIN, START, computed)
    assert read(messages.Ready, data).message.header.flags == (1 if computed else 0)


# --- message 8: Survivors ----------------------------------------------------------------------


def acknowledge(scene: Scene, data: bytes) -> None:
    secagg_site.acknowledge(scene.masked[0], data)


@HEADERS
def test_survivors_of_another_attempt_are_refused(scene: Scene, change: Any) -> None:
    with pytest.raises(ProtocolError, match="message 8"):
        acknowledge(scene, moved(messages.Survivors, scene.survivors, **change))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cohort_hash": bytes(32)}, "cohort hash"),
        ({"survivors": (0, 1, 2, 3, 4)}, "survivors of the cohort"),
        ({"survivors": (1, 2, 3)}, "this site among"),
        ({"survivors": (0, 1)}, "at least 3 survivors, got 2"),
    ],
)
def test_a_wrong_set_of_survivors_is_refused(scene: Scene, changes: Any, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        acknowledge(scene, forged(messages.Survivors, scene.survivors, **changes))


@pytest.mark.parametrize("limit", [{"min_sites": 4}, {"answers_min": 4}])
def test_survivors_below_the_plans_quorum_are_refused(scene: Scene, limit: Any) -> None:
    masked = scene.masked[0]
    stricter = replace(masked.attempt.site, plan=replace(PLAN, **limit))
    masked = replace(masked, attempt=replace(masked.attempt, site=stricter))
    few = forged(messages.Survivors, scene.survivors, survivors=(0, 1, 2))
    with pytest.raises(ProtocolError, match="at least 4 survivors, got 3"):
        secagg_site.acknowledge(masked, few)


def test_survivors_signed_by_another_key_are_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="pinned server's signature"):
        acknowledge(scene, forged(messages.Survivors, scene.survivors, PEOPLE[1]))


# --- message 10: AckSet ------------------------------------------------------------------------


def acks_with(scene: Scene, index: int, ack: bytes | None) -> bytes:
    all_of = [read(messages.SurvivorAck, one) for one in scene.acks[:3]]
    if ack is None:
        del all_of[index]
    else:
        all_of[index] = read(messages.SurvivorAck, ack)
    return forged(messages.AckSet, scene.ack_set, acks=tuple(all_of))


def reveal(scene: Scene, data: bytes) -> None:
    secagg_site.reveal(scene.acknowledged[0], data)


@HEADERS
def test_an_ack_set_of_another_attempt_is_refused(scene: Scene, change: Any) -> None:
    with pytest.raises(ProtocolError, match="message 10"):
        reveal(scene, moved(messages.AckSet, scene.ack_set, **change))


def test_fewer_than_t_acknowledgements_are_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="at least 3 acknowledgements, got 2"):
        reveal(scene, acks_with(scene, 2, None))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"cohort_hash": bytes(32)}, "cohort hash"), ({"survivors": (0, 1, 2)}, "set of survivors")],
)
def test_an_acknowledgement_of_another_set_is_refused(
    scene: Scene, changes: Any, reason: str
) -> None:
    other = forged(messages.SurvivorAck, scene.acks[1], PEOPLE[1], **changes)
    with pytest.raises(ProtocolError, match=f"{reason} from site-1"):
        reveal(scene, acks_with(scene, 1, other))


@pytest.mark.parametrize("change", [{"run": OTHER_RUN}, {"counter": Counter(1, 1)}])
def test_an_acknowledgement_of_another_attempt_is_refused(scene: Scene, change: Any) -> None:
    other = moved(messages.SurvivorAck, scene.acks[1], PEOPLE[1], **change)
    with pytest.raises(ProtocolError, match="site-1 to acknowledge this attempt"):
        reveal(scene, acks_with(scene, 1, other))


def test_an_acknowledgement_signed_by_another_key_is_refused(scene: Scene) -> None:
    other = forged(messages.SurvivorAck, scene.acks[1], BOSS)
    with pytest.raises(ProtocolError, match="signature of site-1"):
        reveal(scene, acks_with(scene, 1, other))


def test_an_acknowledgement_of_a_dropped_site_is_refused() -> None:
    scene = play(dropped=(3,))
    ack = moved(messages.SurvivorAck, scene.acks[2], PEOPLE[3], sender=3)
    with pytest.raises(ProtocolError, match="acknowledgements of survivors, got one of site-3"):
        reveal(scene, acks_with(scene, 2, ack))


def test_an_ack_set_signed_by_another_key_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="pinned server's signature"):
        reveal(scene, forged(messages.AckSet, scene.ack_set, PEOPLE[1]))


def test_an_answer_holds_one_share_a_site_and_never_both() -> None:
    scene = play(dropped=(3,))
    held = scene.acknowledged[0].shares
    shares = read(messages.Unmask, scene.answers[0]).message.shares
    assert shares.sites == (0, 1, 2, 3)
    assert all(shares[i] == held[i][:32] for i in (0, 1, 2))
    assert shares[3] == held[3][32:]


def test_after_the_answer_the_attempts_secrets_are_gone(scene: Scene) -> None:
    held = scene.acknowledged[0].shares
    text = repr(vars(scene.revealed[0])) + str(sorted(vars(scene.revealed[0])))
    assert set(vars(scene.revealed[0])) == {"attempt", "survivors"}
    assert not any(share.hex() in text for share in held.values())


# --- message 12: Result ------------------------------------------------------------------------


def result_with(scene: Scene, change: Callable[[bytearray], None], **changes: Any) -> bytes:
    signed = read(messages.Result, scene.result)
    payload = bytearray(signed.tail)
    change(payload)
    hashed = hashlib.sha256(payload).digest()
    message = replace(signed.message, length=len(payload), payload_hash=hashed, **changes)
    return write(message, BOSS, bytes(payload))


def test_the_result_gives_every_site_the_sums(scene: Scene) -> None:
    sums = secagg_site.check(scene.revealed[0], scene.result)
    assert sums.values.tolist() == [46] * 5
    assert sums.lanes.tolist() == [6]


@pytest.mark.parametrize("place", [0, 8, 16])  # tau, lane, first value
@pytest.mark.parametrize("step", [0, 3])  # by 1, by 2^31 or 2^24
def test_a_forged_sum_is_refused(scene: Scene, place: int, step: int) -> None:
    def forge(payload: bytearray) -> None:
        payload[place + step] ^= 128 if step else 1

    with pytest.raises(ProtocolError, match="MAC"):
        secagg_site.check(scene.revealed[0], result_with(scene, forge))


def test_sums_of_another_length_are_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="bytes of sums"):
        secagg_site.check(
            scene.revealed[0], result_with(scene, lambda payload: payload.extend(bytes(4)))
        )


def test_sums_under_another_hash_are_refused(scene: Scene) -> None:
    data = scene.result[:-1] + bytes([scene.result[-1] ^ 1])
    with pytest.raises(ProtocolError, match="signed sums"):
        secagg_site.check(scene.revealed[0], data)


def test_the_sum_of_other_survivors_is_refused(scene: Scene) -> None:
    data = result_with(scene, lambda payload: None, survivors=(0, 1, 2))
    with pytest.raises(ProtocolError, match="agreed survivors"):
        secagg_site.check(scene.revealed[0], data)


@HEADERS
def test_a_result_of_another_attempt_is_refused(scene: Scene, change: Any) -> None:
    with pytest.raises(ProtocolError, match="message 12"):
        secagg_site.check(scene.revealed[0], moved(messages.Result, scene.result, **change))


def test_a_result_signed_by_another_key_is_refused(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="pinned server's signature"):
        secagg_site.check(scene.revealed[0], forged(messages.Result, scene.result, PEOPLE[1]))


# --- what the server leaves out ----------------------------------------------------------------


def test_a_late_vector_is_discarded(scene: Scene) -> None:
    running = secagg_server.RunningSum(scene.formed)
    for i in (0, 1, 2):
        assert running.add(i, scene.vectors[i])
    secagg_server.close(running)
    before = running.total.words.copy()
    assert not running.add(3, scene.vectors[3])
    assert (running.total.words == before).all()


def test_a_vector_sent_twice_counts_once(scene: Scene) -> None:
    running = secagg_server.RunningSum(scene.formed)
    assert running.add(0, scene.vectors[0])
    before = running.total.words.copy()
    assert not running.add(0, scene.vectors[0])
    assert (running.total.words == before).all()


@pytest.mark.parametrize("case", ["sender", "signature", "cohort", "length", "counter", "cut"])
def test_a_wrong_vector_changes_nothing_and_is_named(scene: Scene, case: str) -> None:
    data = scene.vectors[1]
    wrong = {
        "sender": scene.vectors[2],
        "signature": forged(messages.Masked, data, BOSS),
        "cohort": forged(messages.Masked, data, PEOPLE[1], cohort_hash=bytes(32)),
        "length": resized(data),
        "counter": moved(messages.Masked, data, PEOPLE[1], counter=Counter(1, 1)),
        "cut": data[:-1],
    }[case]
    running = secagg_server.RunningSum(scene.formed)
    assert not running.add(1, wrong)
    assert not running.total.words.any()
    assert set(running.refused) == {1}
    assert running.add(1, data)


def resized(data: bytes) -> bytes:
    signed = read(messages.Masked, data)
    message = replace(signed.message, length=signed.message.length + 4)
    return write(message, PEOPLE[1], bytes(signed.tail) + bytes(4))


@pytest.mark.parametrize("liar", range(N))
@pytest.mark.parametrize("dealer", range(N))
def test_one_wrong_share_is_found_and_its_sender_named(liar: int, dealer: int) -> None:
    scene = play()
    answers = list(scene.answers)
    found = read(messages.Unmask, answers[liar]).message.shares
    shares = {i: found[i] for i in found.sites}
    shares[dealer] = bytes([shares[dealer][0] ^ 1]) + shares[dealer][1:]
    answers[liar] = forged(messages.Unmask, answers[liar], PEOPLE[liar], shares=records(shares, 32))
    opened = secagg_server.open_sum(scene.agreed, enumerate(answers))
    assert set(opened.refused) == {liar}
    assert f"share of site-{dealer} from site-{liar}" in opened.refused[liar]
    assert opened.values.tolist() == [46] * 5


def test_a_dealer_whose_secret_is_not_what_it_committed_to_is_named() -> None:
    scene = play()
    readies = dict(scene.formed.readies)
    readies[1] = replace(readies[1], self_commitment=bytes(32))
    scene.running.formed = replace(scene.formed, readies=readies)
    with pytest.raises(ProtocolError, match="site-1 dealt them wrong; nothing was opened"):
        secagg_server.open_sum(scene.agreed, enumerate(scene.answers))


def test_a_dropped_dealer_whose_mask_secret_is_another_is_named() -> None:
    scene = play(dropped=(3,))
    readies = dict(scene.formed.readies)
    readies[3] = replace(readies[3], mask_key=bytes([9]) * 32)
    scene.running.formed = replace(scene.formed, readies=readies)
    with pytest.raises(ProtocolError, match="site-3 dealt them wrong; nothing was opened"):
        secagg_server.open_sum(scene.agreed, enumerate(scene.answers))


def test_a_sum_is_opened_once() -> None:
    scene = play()
    secagg_server.open_sum(scene.agreed, enumerate(scene.answers))
    with pytest.raises(ValueError, match="not opened yet"):
        secagg_server.open_sum(scene.agreed, enumerate(scene.answers))


def test_answers_of_sites_that_did_not_survive_are_left_out() -> None:
    scene = play(dropped=(3,))
    stray = moved(messages.Unmask, scene.answers[0], PEOPLE[3], sender=3)
    answers = [(3, stray), *enumerate(scene.answers)]
    opened = secagg_server.open_sum(scene.agreed, answers)
    assert set(opened.refused) == {3}
    assert opened.values.tolist() == [33] * 5


def test_a_spoilt_vector_is_left_out_and_named_once_vectors_are_hashed(scene: Scene) -> None:
    spoilt = scene.vectors[1][:-1] + bytes([scene.vectors[1][-1] ^ 1])
    trusting = secagg_server.RunningSum(scene.formed)
    assert trusting.add(1, spoilt)  # the sites' check of the sum will show it
    wary = secagg_server.RunningSum(scene.formed, hashing=True)
    assert not wary.add(1, spoilt)
    assert "the vector that site-1 signed, got a spoilt one" in wary.refused[1]
    assert not wary.total.words.any()
    assert wary.add(1, scene.vectors[1])


def test_of_two_right_messages_of_a_site_the_first_counts(scene: Scene) -> None:
    again = forged(messages.RunHello, scene.hellos[1], PEOPLE[1], nonce=bytes(32))
    replies = [*enumerate(scene.hellos), (1, again)]
    _, roster = secagg_server.gather(SERVER, RUN, replies)
    assert roster == scene.run_roster


def test_a_message_in_the_name_of_another_site_is_left_out(scene: Scene) -> None:
    replies = [(0, scene.hellos[0]), (1, scene.hellos[2]), *list(enumerate(scene.hellos))[2:]]
    gathered, _ = secagg_server.gather(SERVER, RUN, replies)
    assert gathered.members == (0, 2, 3)
    assert "a member of the run that speaks for itself, got 2" in gathered.refused[1]


def test_a_part_of_a_site_outside_the_run_is_left_out(scene: Scene) -> None:
    gathered, roster = secagg_server.gather(SERVER, RUN, list(enumerate(scene.hellos))[:3])
    parts = [secagg_setup.join(phase, roster)[1] for phase in scene.greeted[:3]]
    stray = (3, scene.parts[3])  # of the whole roster's run, which has the same id
    run, group_parts = secagg_server.relay(gathered, [stray, *enumerate(parts)])
    assert run.members == (0, 1, 2)
    assert messages.read_group_parts(group_parts[0])[1].sites == (1, 2)


def test_a_wrong_hello_is_left_out_and_named(scene: Scene) -> None:
    other = forged(messages.RunHello, scene.hellos[1], PEOPLE[1], plan=bytes(32))
    replies = list(enumerate(scene.hellos))
    replies[1] = (1, other)
    gathered, _ = secagg_server.gather(SERVER, RUN, replies)
    assert gathered.members == (0, 2, 3)
    assert "approved plan" in gathered.refused[1]


def test_a_wrong_ready_is_left_out_and_named(scene: Scene) -> None:
    replies = list(enumerate(scene.readies))
    replies[1] = (1, forged(messages.Ready, scene.readies[1], BOSS))
    formed = secagg_server.form_cohort(scene.formed.started, replies)
    assert formed.cohort == (0, 2, 3)
    assert "signature of site-1" in formed.refused[1]


def test_a_wrong_acknowledgement_is_left_out_and_named(scene: Scene) -> None:
    replies = list(enumerate(scene.acks))
    replies[1] = (1, forged(messages.SurvivorAck, scene.acks[1], PEOPLE[1], survivors=(0, 1, 2)))
    agreed, _ = secagg_server.agree_survivors(scene.closed, replies)
    assert set(agreed.refused) == {1}


@pytest.mark.parametrize("kind", [messages.GroupPart, messages.Ready])
def test_boxes_for_others_than_the_peers_are_left_out(scene: Scene, kind: Any) -> None:
    if kind is messages.GroupPart:
        found = read(kind, scene.parts[1]).message.boxes
        boxes = records({i: found[i] for i in (0, 2)}, messages.PART_BOX)
        gathered, _ = secagg_server.gather(SERVER, RUN, enumerate(scene.hellos))
        parts = list(enumerate(scene.parts))
        parts[1] = (1, forged(kind, scene.parts[1], PEOPLE[1], boxes=boxes))
        with pytest.raises(ProtocolError, match=r"got none of site-1 .*box for each peer"):
            secagg_server.relay(gathered, parts)
        return
    signed = read(kind, scene.readies[1])
    boxes = records({i: bytes(messages.SHARES_BOX) for i in (0, 1, 3)}, messages.SHARES_BOX)
    replies = list(enumerate(scene.readies))
    replies[1] = (1, write(signed.message, PEOPLE[1], boxes.block))
    formed = secagg_server.form_cohort(scene.formed.started, replies)
    assert "box for each peer" in formed.refused[1]


def test_share_commitments_for_others_are_left_out(scene: Scene) -> None:
    signed = read(messages.Ready, scene.readies[1])
    found = signed.message.share_commitments
    fewer = replace(signed.message, share_commitments=records({i: found[i] for i in (1, 2, 3)}, 64))
    replies = list(enumerate(scene.readies))
    replies[1] = (1, write(fewer, PEOPLE[1], signed.tail[: 2 * (2 + messages.SHARES_BOX)]))
    formed = secagg_server.form_cohort(scene.formed.started, replies)
    assert "share commitments" in formed.refused[1]


def test_a_vector_from_outside_the_cohort_is_left_out(scene: Scene) -> None:
    formed = secagg_server.form_cohort(scene.formed.started, list(enumerate(scene.readies))[:3])
    stray = forged(messages.Masked, scene.vectors[3], PEOPLE[3], cohort_hash=formed.cohort_hash)
    running = secagg_server.RunningSum(formed)
    assert not running.add(3, stray)
    assert "site of the cohort" in running.refused[3]


@pytest.mark.parametrize(
    ("index", "changes", "reason"),
    [(3, {}, "a survivor"), (1, {"cohort_hash": bytes(32)}, "this cohort's hash")],
)
def test_a_stray_acknowledgement_is_left_out(index: int, changes: Any, reason: str) -> None:
    scene = play(dropped=(3,))
    good = [(i, data) for i, data in enumerate(scene.acks) if i != index]
    stray = moved(messages.SurvivorAck, scene.acks[0], PEOPLE[index], sender=index)
    stray = forged(messages.SurvivorAck, stray, PEOPLE[index], **changes)
    if index == 3:
        agreed, _ = secagg_server.agree_survivors(scene.closed, [(3, stray), *good])
        assert reason in agreed.refused[3]
        return
    with pytest.raises(ProtocolError, match=reason):
        secagg_server.agree_survivors(scene.closed, [(index, stray), *good])


def test_a_right_answer_of_a_site_outside_the_sum_is_left_out() -> None:
    scene = play(dropped=(3,))
    held = scene.masked[3].shares
    shares = {i: held[i][:32] if i < 3 else held[i][32:] for i in range(N)}
    header = replace(read(messages.Unmask, scene.answers[0]).message.header, sender=3)
    answer = write(messages.Unmask(header, records(shares, 32)), PEOPLE[3])
    opened = secagg_server.open_sum(scene.agreed, [(3, answer), *enumerate(scene.answers)])
    assert "a survivor" in opened.refused[3]


def test_an_answer_that_leaves_a_site_out_is_left_out() -> None:
    scene = play()
    found = read(messages.Unmask, scene.answers[1]).message.shares
    fewer = records({i: found[i] for i in (0, 1, 2)}, 32)
    answers = list(enumerate(scene.answers))
    answers[1] = (1, forged(messages.Unmask, scene.answers[1], PEOPLE[1], shares=fewer))
    opened = secagg_server.open_sum(scene.agreed, answers)
    assert "one share for each site" in opened.refused[1]


def test_a_revoked_site_is_left_out_of_the_run(scene: Scene) -> None:
    sites = list(ROSTER.sites)
    sites[1] = replace(sites[1], revoked=True)
    server = replace(SERVER, roster=replace(ROSTER, sites=tuple(sites)))
    gathered, _ = secagg_server.gather(server, RUN, enumerate(scene.hellos))
    assert gathered.members == (0, 2, 3)


# --- every byte flipped ------------------------------------------------------------------------


STEPS = ("run_roster", "group_parts", "begin", "cohort", "survivors", "ack_set", "result")


def steps(scene: Scene) -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    return {
        "run_roster": (scene.run_roster, lambda d: secagg_setup.join(scene.greeted[0], d)[1]),
        "group_parts": (scene.group_parts[0], lambda d: secagg_setup.group(scene.joined[0], d)),
        "begin": (
            scene.begin,
            lambda d: secagg_site.start(scene.grouped[0], d, TRAIN, START)[0].attempt.ctx,
        ),
        "cohort": (scene.formed.message(0), lambda d: admit(scene, d)),
        "survivors": (
            scene.survivors,
            lambda d: secagg_site.acknowledge(scene.masked[0], d)[1],
        ),
        "ack_set": (scene.ack_set, lambda d: secagg_site.reveal(scene.acknowledged[0], d)[1]),
        "result": (
            scene.result,
            lambda d: secagg_site.check(scene.revealed[0], d).values.tolist(),
        ),
    }


@pytest.mark.parametrize("name", STEPS)
def test_every_flipped_byte_of_a_message_to_a_site_is_refused(scene: Scene, name: str) -> None:
    data, step = steps(scene)[name]
    step(data)
    for place in range(len(data)):
        wrong = bytearray(data)
        wrong[place] ^= 1 << (place % 8)
        with pytest.raises(ProtocolError):
            step(bytes(wrong))


@pytest.mark.parametrize("name", STEPS)
def test_a_message_cut_or_lengthened_is_refused(scene: Scene, name: str) -> None:
    data, step = steps(scene)[name]
    for wrong in (b"", data[:31], data[:40], data[:-1], data + b"\0"):
        with pytest.raises(ProtocolError):
            step(wrong)


@pytest.mark.parametrize("name", ["hello", "part", "ready", "ack", "answer"])
def test_every_flipped_byte_of_a_message_to_the_server_is_left_out(scene: Scene, name: str) -> None:
    started = scene.formed.started
    setup = replace(started, counter=START)
    kind, data, moment = {
        "hello": (messages.RunHello, scene.hellos[1], setup),
        "part": (messages.GroupPart, scene.parts[1], setup),
        "ready": (messages.Ready, scene.readies[1], started),
        "ack": (messages.SurvivorAck, scene.acks[1], started),
        "answer": (messages.Unmask, scene.answers[1], started),
    }[name]
    signed_bytes = len(data) - len(read(kind, data).tail)  # type: ignore[type-var]
    for place in range(signed_bytes):
        wrong = bytearray(data)
        wrong[place] ^= 1 << (place % 8)
        with pytest.raises(ProtocolError):
            secagg_server._read_from(moment, kind, 1, bytes(wrong))  # type: ignore[type-var]


def test_a_flipped_payload_byte_ends_in_a_failed_mac(scene: Scene) -> None:
    wrong = bytearray(scene.vectors[1])
    wrong[-2] ^= 4
    running = secagg_server.RunningSum(scene.formed)
    for i, data in enumerate([scene.vectors[0], bytes(wrong), *scene.vectors[2:]]):
        assert running.add(i, data)
    running.closed = True
    opened = secagg_server.open_sum(
        replace(scene.agreed, running=running), enumerate(scene.answers)
    )
    with pytest.raises(ProtocolError, match="MAC"):
        secagg_site.check(scene.revealed[0], secagg_server.write_result(opened, MODEL))


# --- what is fixed beforehand ------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers",
    [
        {"n": 2},
        {"n": 101},
        {"min_sites": 2},
        {"min_sites": 5},
        {"answers_min": 2},
        {"answers_min": 5},
        {"ring_bits": 24},
    ],
)
def test_a_plan_outside_the_limits_is_refused(numbers: Any) -> None:
    with pytest.raises(StudyError, match="nothing was sent"):
        replace(PLAN, **numbers)


@pytest.mark.parametrize(
    ("n", "t"), [(3, 3), (4, 3), (5, 4), (6, 5), (10, 7), (12, 9), (50, 34), (100, 67)]
)
def test_the_threshold_is_more_than_two_thirds(n: int, t: int) -> None:
    assert replace(PLAN, n=n).t == t


def test_a_roster_with_one_key_twice_is_refused() -> None:
    with pytest.raises(StudyError, match="one twice"):
        Roster((Member("a", bytes(32)), Member("b", bytes(32))), BOSS.public)


def test_a_site_whose_key_is_not_in_the_roster_is_refused() -> None:
    with pytest.raises(ValueError, match="roster's key"):
        Site(PEOPLE[1], 0, PLAN, ROSTER)


def test_a_roster_of_another_size_than_the_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="roster of 5 sites, got 4"):
        Site(PEOPLE[0], 0, replace(PLAN, n=5), ROSTER)


def test_a_site_without_a_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one thread, got 0"):
        Site(PEOPLE[0], 0, PLAN, ROSTER, threads=0)


@pytest.mark.parametrize("sizes", [(15, 32), (16, 31)])
def test_a_run_id_or_ledger_head_of_another_length_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="run id"):
        secagg_setup.hello(site(0), bytes(sizes[0]), START, bytes(sizes[1]))


def test_no_phase_shows_a_secret_in_its_repr(scene: Scene) -> None:
    advertised = scene.advertised[0]
    secrets = [scene.greeted[0].part, scene.grouped[0].kappa, advertised.secret]
    secrets += [advertised.mask_key.secret, advertised.own_shares]
    secrets += list(scene.acknowledged[0].shares.values())
    shown = "".join(
        repr(phase)
        for phase in (
            scene.greeted[0], scene.joined[0], scene.grouped[0], advertised, scene.masked[0],
            scene.acknowledged[0], scene.revealed[0],
        )
    )  # fmt: skip
    assert not any(repr(secret)[2:-1] in shown for secret in secrets)


def test_headers_and_signed_parts_are_kept_as_they_came(scene: Scene) -> None:
    signed: Signed[messages.Ready] = read(messages.Ready, scene.readies[0])
    assert signed.message.header == Header(5, RUN, FIRST, 0, messages.COMPUTED)
    assert signed.signed + bytes(signed.tail) == scene.readies[0]
    assert sharing.PRIME == 2**256 - 189
