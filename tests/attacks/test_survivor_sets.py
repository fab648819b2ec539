"""Attacks 1, 2, 3 and 11: a server that lies about who is in the sum, or asks twice."""

from collections import Counter as Count
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from privacy import keys
from privacy.errors import ProtocolError
from privacy.secagg_messages import Ready, SurvivorAck, Survivors, Unmask
from privacy.secagg_store import SiteStore
from privacy.wire import Counter, Records, read

RUN, FIRST = bytes(range(16)), Counter(1, 0)
ALL = (0, 1, 2, 3, 4)


@pytest.fixture
def five(federation: Any) -> Any:
    return federation(5)  # t = 4, one may collude


def shares_told(play: Any, dealer: int) -> Count[int]:
    """How many shares of b (0) and of the mask secret (1) of one site the others have sent."""
    ready = read(Ready, play.said(dealer, "start")).message
    told: Count[int] = Count()
    for site, said in play.outcome.said.items():
        for share in (read(Unmask, d).message.shares[dealer] for s, d in said if s == "unmask"):
            for kind in (0, 1):
                hashed = keys.share_commitment(ready.ctx, kind, site, share)
                told[kind] += hashed == ready.commitment(kind, site)
    return told


def test_without_a_lie_everybody_believes_the_true_sum(five: Any) -> None:
    assert set(five.play().sums) == set(ALL)
    five.assert_only_true_sums()
    assert all(shares_told(five, dealer) == {0: 5, 1: 0} for dealer in ALL)


@pytest.mark.parametrize("told_dead", list(product([False, True], repeat=4))[1:])
def test_attack_01_a_site_listed_alive_and_dead(federation: Any, told_dead: Any) -> None:
    seven, victim, colluders = federation(7), 4, (5, 6)  # t = 5, two may collude
    without = tuple(site for site in range(7) if site != victim)
    lists = dict.fromkeys(range(5), tuple(range(7)))
    lists |= {site: without for site, dead in enumerate(told_dead) if dead}
    for site, told in lists.items():
        seven.lies["survivors", site] = seven.edit(Survivors, survivors=told)
    seven.lies["unmask", None] = lambda _: None
    seven.play()
    for site, told in lists.items():
        acks = [seven.said(one, "survivors") for one in lists if lists[one] == told]
        for one in colluders:  # these sign whatever they are asked to
            sign = seven.edit(SurvivorAck, one, survivors=told)
            acks += [sign(seven.said(one, "survivors"))]
        seven.tell("unmask", site, seven.ack_set(acks))
    told = shares_told(seven, victim)
    assert min(told[kind] + len(colluders) for kind in (0, 1)) < seven.plan.t
    assert not (told[0] and told[1])


def test_attack_01_one_answer_with_two_shares_of_a_site(five: Any) -> None:
    def twice(data: bytes) -> bytes:
        old = read(Unmask, data).message.shares
        block = old.block[:34] + old.block  # of site 0
        return five.edit(Unmask, 1, shares=Records((0, *old.sites), 32, block))(data)

    five.forgeries["unmask", 1] = twice
    assert "repeated" in five.play().opened.refused[1]
    five.assert_only_true_sums()


def test_attack_02_different_survivor_sets_to_two_halves(five: Any) -> None:
    for site in (0, 1):
        five.lies["survivors", site] = five.edit(Survivors, survivors=(0, 1, 2, 3))
    five.play()
    assert "at least 4 acknowledgements of 5, got 3" in five.outcome.ended
    five.assert_no_share_was_sent()


def test_attack_02_the_acknowledgements_of_both_halves_as_one_set(five: Any) -> None:
    for site in (0, 1):
        five.lies["survivors", site] = five.edit(Survivors, survivors=(0, 1, 2, 3))
    five.play()
    both = five.ack_set(five.said(site, "survivors") for site in (0, 1, 2, 3))
    for site in ALL[:4]:
        five.tell("unmask", site, both)
        five.assert_refused(site, "unmask", "message 10: .* own set of survivors from site-")
    five.assert_no_share_was_sent()


def test_attack_02_fewer_acknowledgements_than_t(five: Any) -> None:
    five.lies["unmask", None] = lambda _: None
    five.play()
    few = five.ack_set(five.said(site, "survivors") for site in (0, 1, 2))
    five.tell("unmask", 0, few)
    five.assert_refused(0, "unmask", "message 10: expected at least 4 acknowledgements, got 3")


def test_attack_03_a_second_unmask_for_another_set(five: Any) -> None:
    five.play()
    other = five.ack_set(five.said(site, "survivors") for site in (1, 2, 3, 4))
    five.tell("unmask", 0, other)
    with pytest.raises(ProtocolError, match=r"message 10: .* the set that was answered"):
        raise five.outcome.refusals[0]


def test_attack_03_a_second_unmask_after_a_restart(federation: Any, tmp_path: Path) -> None:
    five = federation(5, folder=tmp_path)
    five.play()
    honest = next(
        data for _, step, site, data in five.outcome.wire if (step, site) == ("unmask", 0)
    )
    other = five.ack_set(five.said(site, "survivors") for site in (1, 2, 3, 4))
    with SiteStore(tmp_path / "0.db") as store:  # all that is left of the site
        assert store.answer(RUN, FIRST, honest) == five.said(0, "unmask")
        with pytest.raises(ProtocolError, match=r"message 10: .* the set that was answered"):
            store.answer(RUN, FIRST, other)
        with pytest.raises(ProtocolError, match=r"message 11: expected no answer before"):
            store.keep_answer(RUN, FIRST, other, b"another answer")


def test_attack_03_another_acknowledgement_after_a_restart(federation: Any, tmp_path: Path) -> None:
    five = federation(5, folder=tmp_path)
    five.play()
    cohort = read(SurvivorAck, five.said(0, "survivors")).message.cohort_hash
    with SiteStore(tmp_path / "0.db") as store:
        store.acknowledge(RUN, FIRST, cohort, ALL)
        with pytest.raises(ProtocolError, match=r"message 8: .* the set .* acknowledged"):
            store.acknowledge(RUN, FIRST, cohort, ALL[:4])


def test_attack_03_an_ack_set_held_back_until_the_next_attempt(five: Any) -> None:
    held: list[bytes] = []
    five.lies["unmask", None] = held.append  # and nothing arrives
    five.play()
    five.lies["unmask", None] = lambda _: held[0]
    five.attempt(Counter(1, 1), keep=False)
    for site in ALL:
        five.assert_refused(site, "unmask", r"message 10: .*attempt=1\), got .*attempt=0\)")
    five.assert_no_share_was_sent()


def test_attack_11_a_site_left_out_of_the_survivors_though_it_sent_masked(five: Any) -> None:
    five.lies["survivors", 2] = five.edit(Survivors, survivors=(0, 1, 3, 4))
    five.play()
    five.assert_refused(2, "survivors", "message 8: .* this site among the survivors")
    five.assert_only_true_sums()
