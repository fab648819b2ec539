"""Shamir's sharing against known answers and its two promises."""

import hashlib
import json
import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import sharing

KNOWN = json.loads((Path(__file__).parents[1] / "vectors" / "fsa1.json").read_text())["shamir"]
unhex = bytes.fromhex


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def test_shares_are_the_known_ones() -> None:
    coefficients = iter(unhex(text) for text in KNOWN["coefficients"])
    shares = sharing.split(unhex(KNOWN["secret"]), 4, range(5), lambda count: next(coefficients))
    assert {str(site + 1): share.hex() for site, share in shares.items()} == KNOWN["shares"]


@pytest.mark.parametrize("sites", [*combinations(range(5), 4), tuple(range(5))])
def test_known_shares_rebuild_the_known_secret(sites: tuple[int, ...]) -> None:
    shares = {int(x) - 1: unhex(share) for x, share in KNOWN["shares"].items()}
    assert sharing.combine(sharing.interpolation(sites), shares) == unhex(KNOWN["secret"])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, sharing.PRIME - 1), st.integers(1, 100), st.data())
def test_any_threshold_of_shares_rebuilds_the_secret(
    secret: int, count: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, count))
    wire = secret.to_bytes(32, "little")
    shares = sharing.split(wire, threshold, range(count), seeded(count))
    some = data.draw(st.permutations(range(count)))[:threshold]
    assert sharing.combine(sharing.interpolation(some), shares) == wire


def test_one_share_less_fits_every_secret() -> None:
    shares = sharing.split(bytes(32), 3, range(4), seeded(1))
    for other in (
        bytes(32),
        b"\x01" * 32,
        b"\xfe" * 32,
    ):  # with each secret two shares make 3 points
        points = {-1: other, 0: shares[0], 1: shares[1]}
        at_2 = sharing.combine({site: _lagrange(list(points), site, 3) for site in points}, points)
        rebuilt = sharing.combine(sharing.interpolation([0, 1, 2]), {**points, 2: at_2})
        assert rebuilt == other


def _lagrange(sites: list[int], own: int, x: int) -> int:
    value = 1
    for site in sites:
        if site != own:
            value = value * (x - site - 1) * pow(own - site, -1, sharing.PRIME)
    return value % sharing.PRIME


def test_secrets_are_drawn_below_the_prime() -> None:
    draws = iter([b"\xff" * 32, sharing.PRIME.to_bytes(32, "little"), b"\x07" * 32])
    assert sharing.draw(lambda count: next(draws)) == b"\x07" * 32


@pytest.mark.parametrize(
    "secret",
    [b"\xff" * 32, sharing.PRIME.to_bytes(32, "little"), b"", bytes(31), bytes(33)],
    ids=["highest", "p", "none", "a byte less", "a byte more"],
)
def test_what_is_no_secret_of_32_bytes_below_p_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="below p"):
        sharing.split(secret, 2, range(3), seeded(2))


def test_the_largest_secret_is_shared() -> None:
    secret = (sharing.PRIME - 1).to_bytes(32, "little")
    shares = sharing.split(secret, 2, range(3), seeded(2))
    assert sharing.combine(sharing.interpolation([0, 2]), shares) == secret


@pytest.mark.parametrize("threshold", [0, 4])
def test_a_threshold_that_cannot_be_met_is_refused(threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        sharing.split(bytes(32), threshold, range(3), seeded(3))


def test_repeated_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        sharing.interpolation([1, 2, 1])


def test_coefficients_are_fresh_for_each_secret() -> None:
    draw = seeded(4)
    one, two = (sharing.split(hashlib.sha256(b"x").digest(), 3, range(3), draw) for _ in range(2))
    assert not set(one.values()) & set(two.values())
