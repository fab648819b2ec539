"""Whole runs of the protocol in memory: every pattern of drops gives the exact sum or an abort."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from privacy import keys, mac, masking, secagg_server, secagg_setup, secagg_site
from privacy.errors import ProtocolError
from privacy.roster import Kind, Member, Plan, Roster
from privacy.secagg_server import Coordinator, Opened, Run, RunningSum
from privacy.secagg_setup import Grouped, Site
from privacy.secagg_site import Expected, Sums
from privacy.wire import Counter

MODEL = bytes([7]) * 32
RUN = bytes(range(16))
FIRST = Counter(1, 0)
START = Counter(0, 0)


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


@dataclass(frozen=True)
class World:
    server: Coordinator
    run: Run
    grouped: dict[int, Grouped]
    at_bound: int  # sign of vectors at the bound, or 0 for drawn ones


def people(
    n: int, values: int = 5, lanes: int = 2, bits: int = 32, **plan: int
) -> tuple[Coordinator, list[Site]]:
    identities = [keys.fresh_identity(seeded(site)) for site in range(n)]
    boss = keys.fresh_identity(seeded(999))
    roster = Roster(
        tuple(Member(f"site-{site}", one.public) for site, one in enumerate(identities)),
        boss.public,
    )
    fixed = Plan(
        bytes([1]) * 32,
        n,
        values,
        32 if bits == 32 else 16,
        train_lanes=lanes,
        evaluate_lanes=4,
        **plan,
    )
    agree = keys.SharedAgreements()
    sites = [
        Site(one, site, fixed, roster, seeded(1000 + site), agree)
        for site, one in enumerate(identities)
    ]
    return Coordinator(boss, fixed, roster), sites


def set_up(server: Coordinator, sites: list[Site], at_bound: int = 0) -> World:
    greeted, hellos = {}, []
    for site in sites:
        greeted[site.index], data = secagg_setup.hello(site, RUN, START)
        hellos.append((site.index, data))
    gathered, run_roster = secagg_server.gather(server, RUN, reversed(hellos))
    joined, parts = {}, []
    for index, phase in greeted.items():
        joined[index], data = secagg_setup.join(phase, run_roster)
        parts.append((index, data))
    run, group_parts = secagg_server.relay(gathered, parts)
    grouped = {i: secagg_setup.group(phase, group_parts[i]) for i, phase in joined.items()}
    return World(server, run, grouped, at_bound)


def vector(
    world: World, site: int, kind: Kind = Kind.TRAIN
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    plan = world.server.plan
    shape, draw = plan.shape(kind), np.random.default_rng(site)
    bound = (2 ** (plan.ring_bits - 1) - 1) // plan.n
    if world.at_bound:
        lane = world.at_bound * mac.lane_bound(plan.n)
        return (
            np.full(shape.values, world.at_bound * bound, np.int32),
            np.full(shape.lanes, lane, np.int64),
        )
    values = draw.integers(-bound, bound, shape.values, endpoint=True).astype(np.int32)
    return values, draw.integers(-(2**55), 2**55, shape.lanes)


def one_round(
    world: World,
    drops: tuple[frozenset[int], ...] = (frozenset(),) * 4,
    kind: Kind = Kind.TRAIN,
    counter: Counter = FIRST,
) -> tuple[Opened, dict[int, Sums]]:
    """One attempt; ``drops[k]`` are the sites whose answer to exchange k never arrives."""
    gone: set[int] = set()

    def alive(exchange: int, phases: dict[int, object]) -> list[int]:
        gone.update(drops[exchange])
        return [site for site in phases if site not in gone]

    started, begin = secagg_server.start_round(world.run, counter, kind, MODEL)
    advertised, replies = {}, []
    for site, grouped in world.grouped.items():
        last = Counter(counter.round - 1, 9)
        advertised[site], data = secagg_site.start(grouped, begin, Expected(kind, MODEL), last)
        replies.append((site, data))
    there = alive(0, dict(advertised))
    formed = secagg_server.form_cohort(started, [one for one in replies if one[0] in there])
    running = RunningSum(formed)
    masked = {}
    for site in there:
        shared = secagg_site.admit(advertised[site], formed.message(site))
        masked[site], data = secagg_site.mask(shared, *vector(world, site, kind))
        if site in alive(1, dict(masked)):
            assert running.add(site, data)
    closed, told = secagg_server.close(running)
    acknowledged, acks = {}, []
    for site in alive(1, dict(masked)):
        acknowledged[site], data = secagg_site.acknowledge(masked[site], told)
        if site in alive(2, dict(acknowledged)):
            acks.append((site, data))
    agreed, ack_set = secagg_server.agree_survivors(closed, acks)
    revealed, answers = {}, []
    for site in alive(2, dict(acknowledged)):
        revealed[site], data = secagg_site.reveal(acknowledged[site], ack_set)
        if site in alive(3, dict(revealed)):
            answers.append((site, data))
    opened = secagg_server.open_sum(agreed, answers)
    result = secagg_server.write_result(opened, MODEL)
    return opened, {site: secagg_site.check(phase, result) for site, phase in revealed.items()}


def assert_plain_sum(world: World, opened: Opened, kind: Kind = Kind.TRAIN) -> None:
    vectors = [vector(world, site, kind) for site in opened.survivors]
    values = sum(one.astype(np.int64) for one, _ in vectors)
    lanes = sum(lane for _, lane in vectors)
    assert np.array_equal(opened.values, values)
    assert np.array_equal(opened.lanes, lanes)


def patterns(n: int, drops_max: int) -> list[tuple[int, ...]]:
    """The exchange (0 to 3) at which each site drops; 4 stands for never."""
    return [
        fate for fate in product(range(5), repeat=n) if sum(end < 4 for end in fate) <= drops_max
    ]


def drops_of(fate: tuple[int, ...]) -> tuple[frozenset[int], ...]:
    return tuple(
        frozenset(site for site, end in enumerate(fate) if end == exchange) for exchange in range(4)
    )


def assert_sum_or_abort(world: World, fate: tuple[int, ...]) -> bool:
    plan = world.server.plan
    enough = sum(end > 1 for end in fate) >= plan.quorum
    if not enough or sum(end > 3 for end in fate) < plan.t:
        with pytest.raises(ProtocolError, match="nothing was opened"):
            one_round(world, drops_of(fate))
        return False
    opened, sums = one_round(world, drops_of(fate))
    assert opened.survivors == tuple(site for site, end in enumerate(fate) if end > 1)
    assert_plain_sum(world, opened)
    assert all(np.array_equal(one.values, opened.values) for one in sums.values())
    assert all(np.array_equal(one.lanes, opened.lanes) for one in sums.values())
    return True


@pytest.mark.parametrize(
    ("n", "drops_max", "sums"),
    # t is 3, 3, 4, 5: none, one, one and one may drop, at any of four exchanges
    [
        (3, 3, 1),
        (4, 2, 17),
        (5, 2, 21),
        (6, 2, 25),
        pytest.param(4, 4, 17, marks=pytest.mark.soak),
        pytest.param(5, 5, 21, marks=pytest.mark.soak),
        pytest.param(6, 6, 25, marks=pytest.mark.soak),
    ],
)
def test_every_pattern_of_drops_gives_the_exact_sum_or_an_abort(
    n: int, drops_max: int, sums: int
) -> None:
    world = set_up(*people(n))
    assert sum(assert_sum_or_abort(world, fate) for fate in patterns(n, drops_max)) == sums


@pytest.mark.parametrize(
    "ends",
    [
        *((0,), (1,), (2,), (3,)),
        *((0, 1, 3), (0, 2, 3), (1, 2, 3), (1, 1, 1)),
        *((0, 1, 2, 3), (0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)),
    ],
)
def test_twelve_sites_bear_three_drops_and_no_fourth(ends: tuple[int, ...]) -> None:
    world = set_up(*people(12))
    fate = [4] * 12
    for place, end in enumerate(ends):
        fate[(5 * place + 2) % 12] = end
    assert assert_sum_or_abort(world, tuple(fate)) == (len(ends) <= 3)


def answers_of(world: World, there: Sequence[int]) -> dict[str, Any]:
    """One attempt in which all sites answer everything and the server hears those of ``there``."""
    started, begin = secagg_server.start_round(world.run, FIRST, Kind.TRAIN, MODEL)
    expected = Expected(Kind.TRAIN, MODEL)
    ready = {i: secagg_site.start(one, begin, expected, START) for i, one in world.grouped.items()}
    formed = secagg_server.form_cohort(started, [(i, one[1]) for i, one in ready.items()])
    masked = {
        i: secagg_site.mask(secagg_site.admit(one, formed.message(i)), *vector(world, i))
        for i, (one, _) in ready.items()
    }
    running = RunningSum(formed)
    for i in there:
        assert running.add(i, masked[i][1])
    closed, told = secagg_server.close(running)
    acks = {i: secagg_site.acknowledge(masked[i][0], told) for i in there}
    agreed, ack_set = secagg_server.agree_survivors(closed, [(i, acks[i][1]) for i in there])
    answers = {i: secagg_site.reveal(acks[i][0], ack_set) for i in there}
    return {
        "started": started, "ready": ready, "masked": masked, "running": running,
        "closed": closed, "acks": acks, "agreed": agreed, "answers": answers,
    }  # fmt: skip


def test_of_twelve_sites_a_late_answer_changes_nothing() -> None:
    """Site 5 is out of the sum; what it and others said comes once more at every later step."""
    world = set_up(*people(12))
    there = [site for site in range(12) if site != 5]
    was = answers_of(world, there)
    running, late = was["running"], was["masked"][5][1]
    ready, ack, answer = was["ready"][5][1], was["acks"][3][1], was["answers"][3][1]
    before = running.total.words.copy()
    for data in (late, was["masked"][3][1], ready, ack, answer):
        assert not running.add(5, data)
        assert not running.add(3, data)
    acks = [(i, one[1]) for i, one in was["acks"].items()]
    agreed, _ = secagg_server.agree_survivors(was["closed"], [(5, late), (5, ready), *acks])
    assert agreed.survivors == tuple(there)
    assert set(agreed.refused) == {5}
    answers = [(i, one[1]) for i, one in was["answers"].items()]
    assert (running.total.words == before).all()
    opened = secagg_server.open_sum(agreed, [(5, late), (5, ready), (3, ack), *answers])
    assert opened.survivors == tuple(there)
    assert_plain_sum(world, opened)
    with pytest.raises(ValueError, match="not opened yet"):
        secagg_server.open_sum(agreed, answers)
    assert_plain_sum(world, opened)


def test_a_result_is_made_once_where_its_sums_lie_and_cannot_be_changed() -> None:
    world = set_up(*people(4))
    opened, _ = one_round(world, drops_of((4, 4, 4, 4)))  # which wrote its Result
    whole = opened.running.message
    assert np.shares_memory(whole, opened.payload.words)
    before = whole.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        opened.payload.values[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        secagg_server.write_result(opened, bytes(32))  # it would change what was sent
    assert whole.tobytes() == before


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dropped", [4, 1], ids=["nobody drops", "one drops"])
def test_all_sites_at_the_bound_are_summed_exactly(bits: int, sign: int, dropped: int) -> None:
    world = set_up(*people(4, 7, 2, bits), at_bound=sign)
    opened, sums = one_round(world, drops_of((4, dropped, 4, 4)))
    bound, lane = (2 ** (bits - 1) - 1) // 4, mac.lane_bound(4)
    count = len(opened.survivors)
    assert opened.values.tolist() == [count * sign * bound] * 7
    assert opened.lanes.tolist() == [count * sign * lane] * 2
    assert all(one.values.tolist() == opened.values.tolist() for one in sums.values())


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("values", [0, 1, 7, 40_001])
@pytest.mark.parametrize("lanes", [0, 3])
def test_sums_of_any_size_are_exact_in_both_rings(bits: int, values: int, lanes: int) -> None:
    world = set_up(*people(4, values, lanes, bits))
    opened, _ = one_round(world, drops_of((4, 1, 4, 4)))
    assert_plain_sum(world, opened)


def test_sites_with_several_threads_give_the_exact_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int) -> None:
            asked.append(threads)
            super().__init__(threads)

    monkeypatch.setattr(masking, "ThreadPoolExecutor", Pool)
    server, sites = people(3, 100_001, 3)
    world = set_up(server, [replace(one, threads=one.index + 1) for one in sites])
    opened, _ = one_round(world)
    assert_plain_sum(world, opened)
    assert asked == [2, 3]  # a site with one thread starts none


def test_a_round_to_evaluate_sums_lanes_alone() -> None:
    world = set_up(*people(3))
    opened, _ = one_round(world, kind=Kind.EVALUATE)
    assert opened.values.shape == (0,)
    assert opened.lanes.shape == (4,)
    assert_plain_sum(world, opened, Kind.EVALUATE)


def test_rounds_follow_each_other_in_one_run() -> None:
    world = set_up(*people(4))
    for number in range(1, 4):
        opened, _ = one_round(world, counter=Counter(number, 0))
        assert_plain_sum(world, opened)


def test_a_site_outside_the_run_is_not_waited_for() -> None:
    server, sites = people(5)
    world = set_up(server, [site for site in sites if site.index != 1])
    opened, _ = one_round(world)
    assert opened.survivors == (0, 2, 3, 4)
    assert_plain_sum(world, opened)


def test_min_sites_above_the_threshold_ends_the_attempt() -> None:
    world = set_up(*people(5, min_sites=5))
    with pytest.raises(ProtocolError, match="at least 5 masked vectors"):
        one_round(world, drops_of((4, 4, 1, 4, 4)))


def test_t_n_above_the_threshold_ends_the_attempt() -> None:
    world = set_up(*people(5, answers_min=5))
    with pytest.raises(ProtocolError, match="at least 5 masked vectors"):
        one_round(world, drops_of((4, 4, 1, 4, 4)))


def test_a_run_wants_the_group_part_of_every_member() -> None:
    server, sites = people(3)
    greeted = [secagg_setup.hello(site, RUN, START) for site in sites]
    gathered, roster = secagg_server.gather(server, RUN, [(i, g[1]) for i, g in enumerate(greeted)])
    parts = [(i, secagg_setup.join(phase, roster)[1]) for i, (phase, _) in enumerate(greeted)]
    with pytest.raises(ProtocolError, match="got none of site-2"):
        secagg_server.relay(gathered, parts[:2])


def test_too_few_sites_make_no_run() -> None:
    server, sites = people(5)
    hellos = [(site.index, secagg_setup.hello(site, RUN, START)[1]) for site in sites[:3]]
    with pytest.raises(ProtocolError, match="at least 4 sites"):
        secagg_server.gather(server, RUN, hellos)


def test_masked_vectors_of_two_attempts_share_no_word() -> None:
    world = set_up(*people(3, 200))
    wires = []
    for attempt in range(2):
        counter = Counter(1, attempt)
        phases = phases_until_masked(world, counter)
        wires.append(np.frombuffer(phases[0][1][-800:], dtype="<u4"))
    assert not (wires[0] == wires[1]).any()  # by chance 5e-8


def phases_until_masked(
    world: World, counter: Counter = FIRST
) -> list[tuple[secagg_site.Masked, bytes]]:
    started, begin = secagg_server.start_round(world.run, counter, Kind.TRAIN, MODEL)
    ready = {
        site: secagg_site.start(grouped, begin, Expected(Kind.TRAIN, MODEL), START)
        for site, grouped in world.grouped.items()
    }
    formed = secagg_server.form_cohort(started, [(site, one[1]) for site, one in ready.items()])
    return [
        secagg_site.mask(secagg_site.admit(phase, formed.message(site)), *vector(world, site))
        for site, (phase, _) in ready.items()
    ]
