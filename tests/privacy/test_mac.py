"""The MAC against known answers and the plain sum over Python integers."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import mac

KNOWN = json.loads((Path(__file__).parents[1] / "vectors" / "fsa1.json").read_text())
KEY = bytes.fromhex(KNOWN["group"]["mac_key"])


def plain(key: bytes, numbers: list[int]) -> int:
    rho = mac.coefficients(key, len(numbers))
    return sum(number * weight for number, weight in zip(numbers, rho, strict=True)) % mac.PRIME


def test_coefficients_are_the_known_ones() -> None:
    rho = KNOWN["group"]["rho"]
    assert mac.coefficients(KEY, len(rho)) == rho


@pytest.mark.parametrize("bits", ["32", "16"])
def test_tau_of_each_site_and_of_the_sum_is_the_known_one(bits: str) -> None:
    known = KNOWN["vectors"][bits]
    rows = zip(known["quantised"], known["lane_values"], known["tau"], strict=True)
    for values, lanes, tau in rows:
        assert mac.tau(KEY, np.array(values, np.int32), np.array(lanes, np.int64)) == tau
    total = np.array(known["sum"], np.int32), np.array(known["lane_sum"], np.int64)
    assert mac.tau(KEY, *total) == known["tau_sum"]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([np.int16, np.int32]),
    st.lists(st.integers(-(2**15), 2**15 - 1), max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9),
)
def test_tau_is_the_plain_sum(kind: type, values: list[int], lanes: list[int]) -> None:
    tau = mac.tau(KEY, np.array(values, kind), np.array(lanes, np.int64))
    assert tau == plain(KEY, values + lanes)


@pytest.mark.parametrize("fill", [-(2**31), 2**31 - 1, -1])
def test_tau_is_exact_at_the_extremes_over_many_blocks(fill: int) -> None:
    values = np.full(40_001, fill, np.int32)
    assert mac.tau(KEY, values, np.zeros(0, np.int64)) == plain(KEY, values.tolist())


@pytest.mark.parametrize("fill", [-(2**63), 2**63 - 1, -1, 2**32])
def test_tau_is_exact_for_lanes_at_the_extremes_over_many_blocks(fill: int) -> None:
    lanes = np.full(5_001, fill, np.int64)
    assert mac.tau(KEY, np.zeros(0, np.int32), lanes) == plain(KEY, lanes.tolist())


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64])
def test_tau_of_random_values_is_the_plain_sum_over_many_blocks(kind: type) -> None:
    edge = np.iinfo(kind)
    draw = np.random.default_rng(5)
    values = draw.integers(edge.min, edge.max, 50_001, dtype=kind, endpoint=True)
    assert mac.tau(KEY, values, np.zeros(0, np.int64)) == plain(KEY, values.tolist())
    # every other value: what is not contiguous
    assert mac.tau(KEY, values[::2], np.zeros(0, np.int64)) == plain(KEY, values[::2].tolist())


def test_float64_is_never_so_far_off_that_another_sum_would_fit() -> None:
    roundings = (mac._BLOCK + 1) * Fraction(1, 2**53)
    gamma = roundings / (1 - roundings)  # Higham 2002, section 3.1
    assert gamma * mac._BLOCK * 2**32 * 2**61 < 2**63


@pytest.mark.parametrize("sign", [-1, 1])
def test_products_are_exact_where_float64_is_furthest_off(sign: int) -> None:
    # the largest numbers that are allowed, many of them odd: each product is rounded
    draw = np.random.default_rng(6)
    numbers = sign * (2**32 - draw.integers(0, 2**10, 20_000))
    rho = mac.PRIME - draw.integers(0, 2**20, 20_000)
    exact = sum(a * b for a, b in zip(numbers.tolist(), rho.tolist(), strict=True))
    assert mac._products(numbers, rho) == exact


def test_tau_of_nothing_is_zero() -> None:
    assert mac.tau(KEY, np.zeros(0, np.int32), np.zeros(0, np.int64)) == 0


@pytest.mark.parametrize("change", [1, 2**31 - 1])
@pytest.mark.parametrize("place", [0, 5000])
def test_a_changed_sum_has_another_tau(change: int, place: int) -> None:
    values, lanes = np.zeros(5001, np.int32), np.zeros(1, np.int64)
    tau = mac.tau(KEY, values, lanes)
    values[place] += change
    assert mac.tau(KEY, values, lanes) != tau


SUM = mac.SUM_LANE_BOUND


@pytest.mark.parametrize("times", [-4, -1, 1, 4])
@pytest.mark.parametrize("lane", [-SUM, -1, 0, 1, SUM])
def test_a_lane_moved_by_a_multiple_of_p61_has_the_same_tau_and_is_out_of_range(
    lane: int, times: int
) -> None:
    moved = lane + times * mac.PRIME
    if not -(2**63) <= moved < 2**63:
        moved = lane - times * mac.PRIME
    here, there = np.array([lane], np.int64), np.array([moved], np.int64)
    none = np.zeros(0, np.int32)
    assert mac.tau(KEY, none, here) == mac.tau(KEY, none, there)
    assert mac.lanes_within(here, SUM)
    assert not mac.lanes_within(there, SUM)


@pytest.mark.parametrize("n", [3, 4, 7, 100])
@pytest.mark.parametrize("sign", [-1, 1])
def test_sums_of_lanes_at_the_bound_of_a_site_stay_in_range(n: int, sign: int) -> None:
    lanes = np.full((n, 2), sign * mac.lane_bound(n), np.int64)
    assert all(mac.lanes_within(one, mac.lane_bound(n)) for one in lanes)
    assert mac.lanes_within(lanes.sum(axis=0), SUM)
    assert mac.lane_bound(n) >= 2**53  # counts and fixed-point sums of one site have room


@pytest.mark.parametrize("beyond", [-(2**63), -11, 11, 2**63 - 1])
def test_one_lane_beyond_the_bound_is_seen(beyond: int) -> None:
    assert not mac.lanes_within(np.array([0, beyond, 0], np.int64), 10)


def test_no_lanes_are_within_any_bound() -> None:
    assert mac.lanes_within(np.zeros(0, np.int64), 0)
