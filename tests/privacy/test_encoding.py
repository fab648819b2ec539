"""Encoding: unbiased, inside its bound, never wrapping in the sum."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.encoding import Encoding, from_ring, to_ring
from privacy.errors import PrivacyError, StudyError
from privacy.stream import Stream

KNOWN = json.loads((Path(__file__).parents[1] / "vectors" / "fsa1.json").read_text())
BITS = pytest.mark.parametrize("bits", [16, 32])
KEY = bytes(range(32))


@BITS
def test_bound_is_the_known_one(bits: int) -> None:
    assert Encoding(bits, KNOWN["n"], 1.0).bound == KNOWN["vectors"][str(bits)]["bound"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([16, 32]),
    st.integers(1, 255),
    st.floats(1e-6, 1e6),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
)
def test_sums_of_all_sites_at_the_bound_do_not_wrap(
    bits: int, sites: int, value_bound: float, kind: type, negative: bool
) -> None:
    encoding = Encoding(bits, sites, value_bound)
    sign = -1 if negative else 1
    vector = np.array([sign * value_bound, sign * 3 * value_bound, 0.0], dtype=kind)
    total = np.zeros(3, dtype=np.int64)
    ring = to_ring(np.zeros(3, np.int32), bits).copy()
    for site in range(sites):
        whole, _ = encoding.quantise(vector, Stream(bytes([site]) * 32))
        total += whole
        ring += to_ring(whole, bits)
    assert from_ring(ring).tolist() == total.tolist()
    assert total[1] == sign * sites * encoding.bound


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), max_size=50), st.sampled_from([16, 32]))
def test_each_integer_is_a_neighbour_of_the_clamped_coordinate(
    numbers: list[float], bits: int
) -> None:
    encoding = Encoding(bits, 7, 1.0)
    vector = np.array(numbers, dtype=np.float32)
    whole, clamped = encoding.quantise(vector, Stream(KEY))
    exact = np.clip(vector.astype(np.float64) * encoding.scale, -encoding.bound, encoding.bound)
    assert (np.abs(whole - exact) < 1).all()
    assert clamped == sum(abs(number) > 1 for number in numbers)


@BITS
def test_rounding_is_unbiased(bits: int) -> None:
    encoding = Encoding(bits, 10, 1.0)
    count = 200_000
    for part in (0.1, 0.5, 0.9):
        for sign in (-1, 1):
            vector = np.full(count, sign * (17 + part) / encoding.scale)
            whole, _ = encoding.quantise(vector, Stream(KEY))
            error = whole.mean() - sign * (17 + part)
            # the mean of 200,000 coins of deviation <= .5: .0011; five of them
            assert abs(error) < 5 * 0.5 / count**0.5


def test_whole_numbers_of_steps_are_never_moved() -> None:
    encoding = Encoding(32, 3, 2.0**31 // 3)  # one step is one unit
    vector = np.array([encoding.bound, -encoding.bound, 5, -5, 0] * 1000, dtype=np.float64)
    encoding = Encoding(32, 3, float(encoding.bound))
    whole, _ = encoding.quantise(vector, Stream(KEY))
    assert whole.tolist() == vector.astype(int).tolist()


def test_rounding_words_are_fresh_across_chunks() -> None:
    vector = np.full(70_000, 0.5 / Encoding(32, 10, 1.0).scale)
    whole, _ = Encoding(32, 10, 1.0).quantise(vector, Stream(KEY))
    coins = Stream(KEY).words32(70_000) >= 2**31
    assert (whole == coins).all()


@BITS
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_rounding_is_the_plain_formula_over_many_chunks(bits: int, kind: type) -> None:
    encoding = Encoding(bits, 10, 0.25)
    vector = np.random.default_rng(4).uniform(-0.2, 0.2, 40_000).astype(kind)
    vector[30_000:30_004] = [0.25, -0.25, 0.3, -7.0]  # the last two are clamped, in one chunk only
    whole, clamped = encoding.quantise(vector, Stream(KEY))
    coins = Stream(KEY).words32(40_000).tolist()
    unit, limit = encoding.scale * 2.0**32, encoding.bound * 2.0**32
    steps = [int(min(max(float(one) * unit, -limit), limit)) for one in vector]
    assert whole.tolist() == [(a + b) >> 32 for a, b in zip(steps, coins, strict=True)]
    assert clamped == 2


@BITS
@pytest.mark.parametrize("value_bound", [1.0, 0.02, 50.0])
def test_error_of_the_mean_is_that_of_rounding(bits: int, value_bound: float) -> None:
    encoding = Encoding(bits, 10, value_bound)
    draw = np.random.default_rng(3)
    vectors = draw.uniform(-value_bound, value_bound, (10, 20_000))
    total = sum(
        encoding.quantise(vector, Stream(bytes([site]) * 32))[0].astype(np.int64)
        for site, vector in enumerate(vectors)
    )
    rmse = float(np.sqrt(np.mean((encoding.dequantise(total) / 10 - vectors.mean(0)) ** 2)))
    # ten stochastic roundings of variance f (1 - f), in the mean 1/6 of a step, over ten
    theory = 1 / (encoding.scale * 60**0.5)
    assert theory / 1.05 < rmse < theory * 1.05  # 20,000 squares: one deviation is .5 %
    if bits == 32:
        assert rmse < 1e-7 * value_bound


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 20_000])
def test_nan_and_inf_are_refused(poison: float, place: int) -> None:
    vector = np.zeros(20_001, dtype=np.float32)
    vector[place] = poison
    with pytest.raises(PrivacyError, match="NaN or inf; nothing was sent"):
        Encoding(32, 5, 1.0).quantise(vector, Stream(KEY))


def test_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a vector of shape \(P,\), got \(2, 2\)"):
        Encoding(32, 5, 1.0).quantise(np.zeros((2, 2)), Stream(KEY))


def test_an_empty_vector_gives_an_empty_one() -> None:
    assert Encoding(32, 5, 1.0).quantise(np.zeros(0), Stream(KEY))[0].shape == (0,)


def test_a_study_whose_steps_would_be_coarse_is_refused() -> None:
    assert Encoding(16, 255, 1.0).bound == 128
    with pytest.raises(StudyError, match="127"):
        Encoding(16, 257, 1.0)


@pytest.mark.parametrize("bits", [8, 15, 64])
def test_another_ring_is_refused(bits: Any) -> None:
    with pytest.raises(StudyError, match=f"ring_bits 16 or 32, got {bits}"):
        Encoding(bits, 5, 1.0)


@pytest.mark.parametrize("sites", [0, -1])
def test_no_sites_are_a_bug_of_the_caller(sites: int) -> None:
    with pytest.raises(ValueError, match=f"at least one site, got {sites}"):
        Encoding(32, sites, 1.0)


@pytest.mark.parametrize("value_bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_value_bound_that_is_no_bound_is_refused(value_bound: float) -> None:
    with pytest.raises(StudyError, match="value_bound"):
        Encoding(32, 5, value_bound)


@BITS
def test_the_ring_keeps_signed_integers(bits: int) -> None:
    edge = 2 ** (bits - 1)
    numbers = np.array([-edge, -1, 0, 1, edge - 1], dtype=np.int64)
    for kind in (np.int64, np.int32):
        assert from_ring(to_ring(numbers.astype(kind), bits)).tolist() == numbers.tolist()
