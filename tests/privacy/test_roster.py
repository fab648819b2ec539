"""The plan's numbers stay in their ranges, and a pinned key is a key."""

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import StudyError
from privacy.keys import verify
from privacy.roster import Kind, Member, Plan, Roster, colluders_max, is_signing_key, threshold

P = 2**255 - 19


def plan(**numbers: int) -> Plan:
    return Plan(**{"digest": bytes(32), "n": 10, "values": 5, **numbers})  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "t", "n_c"), [(3, 3, 0), (4, 3, 1), (10, 7, 3), (100, 67, 33)])
def test_threshold_and_colluders_are_those_of_the_table(n: int, t: int, n_c: int) -> None:
    assert (threshold(n), colluders_max(n)) == (t, n_c)


@pytest.mark.parametrize("n", range(3, 101))
def test_two_sets_of_t_share_more_sites_than_may_collude(n: int) -> None:
    assert 2 * threshold(n) - n > colluders_max(n)


def test_without_a_word_t_n_is_the_threshold() -> None:
    assert plan().t_n == 7


def test_without_a_word_n_c_is_the_most_that_may_collude() -> None:
    assert plan().n_c == 3


def test_a_stated_n_c_of_zero_is_kept() -> None:
    assert plan(colluders=0).n_c == 0


@pytest.mark.parametrize(
    ("numbers", "quorum"),
    [({}, 7), ({"min_sites": 8}, 8), ({"answers_min": 9}, 9), ({"min_sites": 4}, 7)],
)
def test_the_quorum_is_the_largest_of_t_min_sites_and_t_n(
    numbers: dict[str, int], quorum: int
) -> None:
    assert plan(**numbers).quorum == quorum


@pytest.mark.parametrize("t_n", [7, 10])
def test_t_n_may_be_t_or_n(t_n: int) -> None:
    assert plan(answers_min=t_n).t_n == t_n


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ({"n": 2}, "sites"),
        ({"n": 101}, "sites"),
        ({"min_sites": 2}, "min_sites"),
        ({"min_sites": 11}, "min_sites"),
        ({"answers_min": 0}, "noise_answers"),
        ({"answers_min": 6}, "noise_answers"),
        ({"answers_min": 11}, "noise_answers"),
        ({"colluders": 4}, "colluders"),
        ({"colluders": -1}, "colluders"),
    ],
)
def test_a_number_outside_its_range_is_refused_by_name(numbers: dict[str, int], name: str) -> None:
    with pytest.raises(StudyError, match=f"expected {name} in"):
        plan(**numbers)


def test_a_ring_of_another_width_is_refused() -> None:
    with pytest.raises(StudyError, match="ring_bits"):
        plan(ring_bits=64)


@pytest.mark.parametrize("name", ["values", "train_lanes", "evaluate_lanes"])
def test_a_vector_of_less_than_nothing_is_the_callers_bug(name: str) -> None:
    assert plan(**{name: 0}).shape(Kind.EVALUATE).values == 0
    with pytest.raises(ValueError, match="expected values and lanes >= 0"):
        plan(**{name: -1})


def test_a_short_digest_is_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="digest"):
        plan(digest=b"short")  # type: ignore[arg-type]


def test_one_key_for_two_sites_is_refused() -> None:
    with pytest.raises(StudyError, match="a key of its own"):
        Roster((Member("a", bytes(32)), Member("b", bytes(32))), bytes([1]) * 32)


def test_the_servers_key_for_a_site_is_refused() -> None:
    with pytest.raises(StudyError, match="a key of its own"):
        Roster((Member("a", bytes(32)),), bytes(32))


def test_a_number_outside_the_roster_has_a_name_for_people() -> None:
    assert Roster((Member("a", bytes(32)),), bytes([1]) * 32).name(7) == "number 7"


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_every_generated_key_is_a_signing_key(secret: bytes) -> None:
    public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    assert is_signing_key(public)


# y of the points of order 8 (Edwards form), one of the two up to sign: -x is the same y.
ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7


@pytest.mark.parametrize("sign", [0, 1 << 255])
@pytest.mark.parametrize("y", [0, 1, P - 1, ORDER_8, P - ORDER_8])
def test_a_point_of_low_order_is_no_signing_key(y: int, sign: int) -> None:
    assert not is_signing_key((y | sign).to_bytes(32, "little"))


def test_the_constant_of_order_8_is_one() -> None:
    # Doubling a point of order 8 gives one of order 4, whose y is 0: y^2 + x^2 = 0.
    d = -121665 * pow(121666, -1, P) % P
    x_squared = (ORDER_8**2 - 1) * pow(d * ORDER_8**2 + 1, -1, P) % P
    assert (ORDER_8**2 + x_squared) % P == 0


def test_a_key_of_low_order_lets_anybody_sign() -> None:
    # Why such keys are refused: under the neutral point, "R = identity, S = 0" signs everything.
    neutral = (1).to_bytes(32, "little")
    assert verify(neutral, b"header", b"anything", neutral + bytes(32))


def test_a_second_encoding_of_a_point_is_no_signing_key() -> None:
    known = [is_signing_key(y.to_bytes(32, "little")) for y in (3, P + 3)]
    assert known == [True, False]


def test_about_half_of_random_bytes_are_no_point() -> None:
    draws = [hashlib.sha256(bytes([number])).digest() for number in range(200)]
    # binomial(200, 1/2): 60 to 140 is 5.6 standard deviations
    assert 60 < sum(is_signing_key(draw) for draw in draws) < 140


@pytest.mark.parametrize("cut", [lambda key: key[:31], lambda key: key + b"\0", lambda key: b""])
def test_a_key_of_another_length_is_no_signing_key(cut: Callable[[bytes], bytes]) -> None:
    public = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    assert not is_signing_key(cut(public))
