"""Sums with noise in the ring: exact, unbiased, never wrapping, as noisy as accounted for."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import ring
from privacy.encoding import from_ring, to_ring
from privacy.errors import StudyError
from privacy.ring import GRID_BITS, MARGIN, Ring, Shares, Sums, fit_ring, sensitivity
from privacy.ring_noise import SIGMA_MAX, SIGMA_MIN, TOTAL_VARIATION_MAX, ring_noise
from privacy.stream import Stream

SUMS = Sums(
    values=1_000,
    count=44,
    clipping_norm=0.5,
    noise_multiplier=8.0,
    sampling_rate=1.0,
    records_max=200,
)
SHARES = Shares(sites=7, answers=5, colluders=2)
COHORTS = st.sampled_from([(3, 3, 0), (4, 3, 1), (5, 4, 1), (10, 7, 3), (10, 9, 1), (100, 67, 33)])


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def coins(number: int) -> Stream:
    return Stream(key(1_000_000 + number))


def exact(fixed: np.ndarray) -> np.ndarray:
    """A sum in steps of the ring, before it is rounded."""
    return fixed / 2.0**GRID_BITS


# ---- the scale and the room


@settings(max_examples=200, deadline=None)
@given(
    COHORTS,
    st.integers(1, 10**7),
    st.integers(1, 10**5),
    st.floats(0.3, 300),
    st.floats(1e-3, 1),
    st.integers(1, 50_000),
    st.sampled_from([16, 32]),
)
def test_an_accepted_study_has_room_for_all_its_values_and_noise(
    cohort: tuple[int, int, int],
    values: int,
    count: int,
    noise: float,
    rate: float,
    records: int,
    bits: int,
) -> None:
    sums = Sums(values, count, 1.0, noise, rate, records)
    shares = Shares(*cohort)
    try:
        fitted = fit_ring(sums, shares, bits)
    except StudyError:
        return
    assert SIGMA_MIN**2 <= fitted.variance <= SIGMA_MAX**2
    assert fitted.noise_multiplier >= noise
    # every record at the bound in one coordinate, every site rounded up, and as much noise as any
    # coordinate of any sum ever has but with chance 1e-9
    extreme = sums.records(shares.sites) * 2**fitted.exponent + shares.sites
    deviations = math.sqrt(2 * math.log(2 * values * count * 1e9))
    total = extreme + deviations * math.sqrt(shares.sites * fitted.variance)
    assert total <= 2 ** (bits - 1) - 1


def test_the_scale_is_the_largest_power_of_two_that_fits() -> None:
    fitted = fit_ring(SUMS, SHARES, 32)
    assert fitted.scale == 2.0**fitted.exponent / 0.5
    larger = sensitivity(2.0 ** (fitted.exponent + 1), SUMS.values) * SUMS.noise_multiplier
    assert larger / math.sqrt(SHARES.carriers) > SIGMA_MAX  # what ended it here
    few = replace(SUMS, noise_multiplier=1.0, records_max=5)
    assert fit_ring(few, SHARES, 32).exponent == ring.EXPONENT_MAX
    many = replace(SUMS, noise_multiplier=1.0, records_max=2**14)
    exponent = fit_ring(many, SHARES, 32).exponent
    assert 7 * 2**14 * 2**exponent < 2**31 < 7 * 2**14 * 2 ** (exponent + 1)


@pytest.mark.parametrize(
    ("sites", "batch", "bits"),
    # log2 S_max by the published rule, 2^31 / (N + 1.8 x 9.3), at sigma = 1; N as for samples
    [
        *((3, 4, 24.5), (3, 256, 20.9), (3, 1024, 19.2), (10, 256, 19.4), (10, 1024, 17.5)),
        *((100, 4, 21.7), (100, 64, 18.2), (100, 256, 16.3), (100, 1024, 14.3)),
    ],
)
def test_the_room_is_that_of_the_published_table(sites: int, batch: int, bits: float) -> None:
    answers = 2 * sites // 3 + 1
    shares = Shares(sites, answers, (sites - 1) // 3)
    sums = Sums(400_000, 1_000, 1.0, 1.0, 0.01, 100 * batch)
    exponent = fit_ring(sums, shares, 32).exponent
    assert exponent == min(ring.EXPONENT_MAX, math.floor(bits))


def test_a_study_without_room_is_refused_in_one_line() -> None:
    for crowded in (replace(SUMS, records_max=10**8), replace(SUMS, noise_multiplier=1e6)):
        with pytest.raises(StudyError, match="the study is refused") as caught:
            fit_ring(crowded, SHARES, 32)
        assert "\n" not in str(caught.value)
        assert caught.value.hint
    with pytest.raises(StudyError, match="a ring of 16 bits"):
        fit_ring(SUMS, SHARES, 16)


def test_a_share_of_the_noise_below_a_hundred_steps_is_refused() -> None:
    narrow = Sums(10, 5, 1.0, 0.7, 1.0, 40)
    assert fit_ring(narrow, Shares(3, 3, 0), 16).variance >= SIGMA_MIN**2
    with pytest.raises(StudyError, match="expected a share of the noise of 100 ring steps"):
        fit_ring(replace(narrow, noise_multiplier=0.4), Shares(3, 3, 0), 16)


def test_a_sum_holds_no_more_records_than_are_counted() -> None:
    assert SUMS.records(7) == 1_400  # all of them: nothing is drawn
    half = replace(SUMS, sampling_rate=0.5)
    counts = [np.random.default_rng(s).binomial(1_400, 0.5) for s in range(1_000)]
    assert max(counts) < half.records(7) < 1_400
    assert replace(SUMS, sampling_rate=0.99).records(7) == 1_400


def test_shares_that_no_sum_can_have_are_refused() -> None:
    for wrong in ((3, 4, 0), (3, 3, 3), (3, 3, -1)):
        with pytest.raises(ValueError, match="colluders < answers <= sites"):
            Shares(*wrong)


# ---- the sensitivity


def test_sensitivity_is_the_smaller_of_both_bounds() -> None:
    for steps, values in ((4096.0, 3_000), (65_536.0, 400_000), (65_536.0, 10**7)):
        norm = MARGIN * steps
        by_hand = (
            norm**2 + values / 4 + math.sqrt(2 * 18 * math.log(10)) * (norm + math.sqrt(values) / 2)
        )
        assert sensitivity(steps, values) == pytest.approx(math.sqrt(by_hand), rel=1e-12)
    assert sensitivity(65_536.0, 1) == MARGIN * 65_536 + 1  # one coordinate: the worst case


@pytest.mark.parametrize("values", [30, 3_000])
@pytest.mark.parametrize("shape", ["spread", "one", "mixed"])
def test_one_record_moves_a_rounded_sum_no_further_than_the_sensitivity(
    values: int, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # beta = 1e-18 cannot be seen; the same bound at 1e-2 can
    monkeypatch.setattr(ring, "BETA", 1e-2)
    monkeypatch.setattr(ring, "MARGIN", 1.0)
    steps = 256.0
    record = np.full(values, steps / math.sqrt(values))
    if shape == "one":
        record = np.eye(1, values)[0] * steps
    if shape == "mixed":
        record = np.where(np.arange(values) % 2, 0.5, -0.5)
        record *= min(1.0, steps / np.linalg.norm(record))
    rest = np.random.default_rng(3).normal(0, 1e4, values)
    fixed, moved = np.rint(rest * 2**16).astype(np.int64), np.trunc(record * 2**16)
    assert np.linalg.norm(moved) <= steps * 2**16
    bound, over, trials = sensitivity(steps, values), 0, 2_000
    made = replace(quiet(values, exponent=8), sums=replace(SUMS, values=values, records_max=10**5))
    for trial in range(trials):
        # the same coins and the same noise on both sides: what is left is the record
        one = made.encode(fixed, coins(trial), Stream(key(trial)))
        other = made.encode(fixed + moved.astype(np.int64), coins(trial), Stream(key(trial)))
        shift = (other - one).astype(np.int64)
        assert np.abs(shift - record).max() < 1  # a stochastic rounding of the record's own values
        over += math.sqrt(int((shift**2).sum())) > bound
    # 1e-2 of 2,000 are 20; five deviations more
    assert over <= 20 + 5 * math.sqrt(20)


def quiet(values: int, exponent: int) -> Ring:
    sums = replace(SUMS, values=values, clipping_norm=1.0)
    return Ring(sums, SHARES, 32, exponent, SIGMA_MIN**2)


# ---- what a site sends


def test_rounding_is_unbiased_and_noise_has_the_shares_deviation() -> None:
    values = 200_000
    made = replace(quiet(values, exponent=8), variance=1_000**2)
    for part in (0.25, 0.5, 0.9):
        for sign in (-1, 1):
            fixed = np.full(values, sign * round((17 + part) * 2**16), dtype=np.int64)
            noise = ring_noise(made.variance).sample(values, Stream(key(5)))
            rounded = made.encode(fixed, coins(6), Stream(key(5))) - noise
            assert set(np.unique(np.abs(rounded))) == {17, 18}
            # coins of deviation <= .5: five of the mean's
            assert abs(rounded.mean() - sign * (17 + part)) < 5 * 0.5 / math.sqrt(values)


def test_whole_steps_are_never_moved_and_a_fraction_goes_by_its_coin() -> None:
    made = quiet(4, exponent=8)
    noise = ring_noise(made.variance).sample(4, Stream(key(7)))
    whole = np.array([5, -5, 0, 200], dtype=np.int64)
    for trial in range(200):
        sent = made.encode(whole << GRID_BITS, coins(trial), Stream(key(7)))
        assert (sent - noise).tolist() == whole.tolist()


@settings(max_examples=50, deadline=None)
@given(COHORTS, st.sampled_from([16, 32]), st.integers(0, 2**32), st.data())
def test_any_sites_sum_to_the_exact_sum_and_all_their_noise(
    cohort: tuple[int, int, int], bits: int, seed: int, data: st.DataObject
) -> None:
    shares = Shares(*cohort)
    sums = replace(SUMS, values=50, records_max=1 if bits == 16 else 50, noise_multiplier=1.5)
    try:
        made = fit_ring(sums, shares, bits)
    except StudyError:
        return
    generator = np.random.default_rng(seed)
    most = sums.records_max << made.exponent
    total, ring_sum = np.zeros(50, dtype=np.int64), to_ring(np.zeros(50, np.int32), bits).copy()
    for site in range(shares.sites):
        fixed = generator.integers(-most, most, 50, endpoint=True) << GRID_BITS
        total += fixed >> GRID_BITS
        total += ring_noise(made.variance).sample(50, Stream(key(site)))
        ring_sum += to_ring(made.encode(fixed, coins(site), Stream(key(site))), bits)
    assert from_ring(ring_sum).tolist() == total.tolist()


def test_a_weight_scales_the_exact_sum_and_not_the_noise() -> None:
    made = quiet(3, exponent=8)
    fixed = np.array([8, -8, 80], dtype=np.int64) << GRID_BITS
    noise = ring_noise(made.variance).sample(3, Stream(key(7)))
    sent = made.encode(fixed, coins(1), Stream(key(7)), 1 << 14)
    assert (sent - noise).tolist() == [2, -2, 20]
    silent = made.encode(fixed, coins(1), Stream(key(7)), 0)
    assert silent.tolist() == noise.tolist()


def test_a_sum_beyond_all_records_is_clamped_before_the_noise() -> None:
    made = quiet(2, exponent=8)
    limit = made.sums.records(7) << 8
    noise = ring_noise(made.variance).sample(2, Stream(key(7)))
    fixed = np.array([2**62, -(2**62)], dtype=np.int64)
    assert (made.encode(fixed, coins(1), Stream(key(7))) - noise).tolist() == [limit, -limit]


def test_a_sum_of_another_shape_or_weight_is_refused() -> None:
    made = quiet(2, exponent=8)
    for wrong in (np.zeros(3, np.int64), np.zeros(2, np.int32), np.zeros((1, 2), np.int64)):
        with pytest.raises(ValueError, match="int64"):
            made.encode(wrong, coins(1), coins(2))
    with pytest.raises(ValueError, match="weight"):
        made.encode(np.zeros(2, np.int64), coins(1), coins(2), (1 << 16) + 1)


# ---- the noise that is accounted for


@settings(max_examples=10, deadline=None)
@given(COHORTS, st.floats(2, 40))
def test_the_fewest_honest_sites_carry_the_noise_that_is_accounted(
    cohort: tuple[int, int, int], noise: float
) -> None:
    shares = Shares(*cohort)
    values = 100_000
    made = fit_ring(replace(SUMS, values=values, noise_multiplier=noise), shares, 32)
    total = np.zeros(values, dtype=np.int64)
    nothing = np.zeros(values, dtype=np.int64)
    for site in range(shares.answers - shares.colluders):
        total += made.encode(nothing, coins(site), Stream(key(site)))
    # a variance of n normals has deviation sqrt(2/n): six of them on both sides
    measured = total.var() / (made.noise_multiplier * made.sensitivity) ** 2
    assert abs(measured - 1) < 6 * math.sqrt(2 / values)
    assert made.noise_multiplier >= noise


def test_who_knows_more_shares_sees_less_noise() -> None:
    made = fit_ring(SUMS, SHARES, 32)
    assert made.multiplier(3) == made.noise_multiplier
    assert made.multiplier(1) == pytest.approx(made.noise_multiplier / math.sqrt(3), rel=1e-9)


@pytest.mark.parametrize("variance", [2.0, 3.0, 5.0])
def test_discrete_and_rounded_gaussian_differ_as_stated(variance: float) -> None:
    values = np.arange(-60, 61)
    spread = math.sqrt(variance - 1 / 12)
    edges = [math.erf((v - 0.5) / spread / math.sqrt(2)) for v in range(-60, 62)]
    rounded = np.diff(edges) / 2
    discrete = np.exp(-(values**2) / (2 * variance))
    discrete /= discrete.sum()
    kept = discrete > 1e-12
    distance = ((rounded - discrete)[kept] ** 2 / discrete[kept]).sum()
    # the leading term; the next ones are smaller by the variance
    assert distance == pytest.approx(1 / (345_600 * variance**4), rel=4 / variance)


def test_the_slack_adds_up_all_its_parts() -> None:
    made = fit_ring(SUMS, SHARES, 32)
    assert made.slack == pytest.approx(1e-18, rel=1e-3)  # rounding alone, at this much noise
    assert replace(made, sums=replace(SUMS, sampling_rate=0.5)).slack < 0.6e-18
    narrow = fit_ring(Sums(10, 5, 1.0, 0.7, 1.0, 40), Shares(3, 3, 0), 16)
    squared = 10 / (345_600 * (3 * narrow.variance) ** 4)
    assert narrow.slack == pytest.approx(1e-18 + math.sqrt(squared) / 2, rel=1e-3)
    many = replace(made, sums=replace(SUMS, values=10**16))  # absurd: the sampler's part shows
    assert many.slack > 7 * 10**16 * TOTAL_VARIATION_MAX > 50e-18


def test_no_sampler_is_further_from_its_noise_than_is_charged() -> None:
    for exponent in range(7, 23):
        assert ring_noise(1 << 2 * exponent).total_variation <= TOTAL_VARIATION_MAX
