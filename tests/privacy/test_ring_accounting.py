"""The Renyi bound of ring noise against exact sums and the Gaussian's; the small terms of delta."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from privacy.accounting import Event, epsilon, noise_multiplier
from privacy.errors import PrivacyError
from privacy.ring_accounting import (
    RESERVED,
    check_renyi,
    covers,
    renyi_epsilon,
    sampled_renyi,
    with_slack,
)


def event(rate: float, noise: float, count: int, slack: float = 0.0) -> Event:
    return Event(
        study="a1",
        dataset="ward",
        unit="record",
        sampling_rate=rate,
        noise_multiplier=noise,
        clipping_norm=1.0,
        steps=count,
        denominator=16.0,
        mode="distributed",
        slack=slack,
    )


def divergence(upper: np.ndarray, lower: np.ndarray, order: int) -> float:
    """Renyi's, of two distributions given by the logarithms of their probabilities."""
    return float(logsumexp(order * upper - (order - 1) * lower)) / (order - 1)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(1.5, 6), st.integers(1, 4), st.integers(2, 6))
def test_the_bound_holds_both_ways_for_a_discrete_gaussian(
    rate: float, sigma: float, shift: int, order: int
) -> None:
    reach = np.arange(-120, 121)
    plain = -(reach**2) / (2 * sigma**2)
    moved = -((reach - shift) ** 2) / (2 * sigma**2)
    plain, moved = plain - logsumexp(plain), moved - logsumexp(moved)
    mixed = np.logaddexp(math.log1p(-rate) + plain, math.log(rate) + moved)

    def curve(l: int) -> float:  # noqa: E741
        return l * shift**2 / (2 * sigma**2)

    bound = sampled_renyi(rate, curve, order)
    # the discrete Gaussian's own curve is this one, to e^(-2 pi^2 sigma^2)
    assert divergence(mixed, plain, order) == pytest.approx(bound, rel=1e-6, abs=1e-9)
    assert divergence(plain, mixed, order) <= bound * (1 + 1e-6) + 1e-9


def test_without_sampling_the_bound_is_the_noises_own_curve() -> None:
    assert sampled_renyi(1.0, lambda order: 0.3 * order, 7) == 0.3 * 7


@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(0.01, 1.0, 1_000), (0.2, 3.0, 50), (1, 9, 20)]
)
def test_the_bound_is_near_the_librarys_for_the_gaussian(
    rate: float, noise: float, steps: int
) -> None:
    spent = epsilon([event(rate, noise, steps)], 1e-5)
    bound = renyi_epsilon([(rate, noise, steps)], 1e-5 * (1 - RESERVED))
    # the library also has orders between the integers: it can only be a little below
    assert spent.rdp_epsilon <= bound * (1 + 1e-9)
    assert bound <= spent.rdp_epsilon * 1.02


def test_bad_rates_and_orders_are_refused() -> None:
    for rate, order in ((0.0, 2), (1.1, 2), (0.5, 1)):
        with pytest.raises(ValueError, match="order"):
            sampled_renyi(rate, float, order)


def test_steps_without_sampling_cost_what_one_gaussian_costs() -> None:
    apart = epsilon([event(1.0, 20.0, 1)] * 100, 1e-5)
    one = epsilon([event(1.0, 2.0, 1)], 1e-5)
    assert apart.epsilon == pytest.approx(one.epsilon, rel=1e-12)


def test_a_ring_sum_without_slack_costs_what_the_gaussian_costs_at_the_rest_of_delta() -> None:
    ring = epsilon([event(0.1, 2.0, 30)], 1e-5)
    local = epsilon([event(0.1, 2.0, 30).model_copy(update={"mode": "local"})], 1e-5 * 0.999)
    assert ring[:2] == local[:2]


def test_slack_is_paid_from_delta_and_all_events_pay() -> None:
    cheap = epsilon([event(1.0, 4.0, 1, 1e-18)] * 10, 1e-5)
    assert cheap.epsilon == epsilon([event(1.0, 4.0, 10)], 1e-5).epsilon  # within what is reserved
    # 10 x 5e-9 of total variation at this epsilon need more than a thousandth of delta
    dear = epsilon([event(1.0, 4.0, 1, 5e-9)] * 10, 1e-5)
    assert dear.epsilon > cheap.epsilon
    assert dear.epsilon == epsilon([event(1.0, 4.0, 10)], 1e-5 * 0.5 / (1 - RESERVED)).epsilon
    nothing = epsilon([event(1.0, 4.0, 1, 1e-6)] * 10, 1e-5)
    assert nothing.epsilon == nothing.rdp_epsilon == math.inf


def test_reserve_counts_both_directions_of_a_guarantee() -> None:
    assert covers(1.0, 1e-8, 1e-8 / (1 + math.e))
    assert not covers(1.0, 1e-8, 1e-8 / (1 + math.e) * 1.001)
    assert not covers(math.inf, 1.0, 0.0)


@pytest.mark.parametrize("pld", [1.0, 30.0])
def test_with_slack_never_promises_more_than_the_whole_delta(pld: float) -> None:
    asked: list[float] = []

    def cost(delta: float) -> tuple[float, float]:
        asked.append(delta)
        return pld, pld + 1

    slack = 1e-16
    found = with_slack(cost, 1e-5, slack)
    if found[0] < math.inf:
        assert asked[-1] + (1 + math.exp(pld)) * slack <= 1e-5 * (1 + 1e-12)
    else:
        assert pld == 30.0


def test_an_epsilon_above_the_renyi_bound_is_refused() -> None:
    history = ((0.1, 2.0, 30),)
    bound = renyi_epsilon(history, 1e-5)
    check_renyi(history, 1e-5, bound)
    for wrong in (bound * 1.01, math.nan):
        with pytest.raises(PrivacyError, match="Renyi"):
            check_renyi(history, 1e-5, wrong)


def test_a_calibrated_ring_study_costs_at_most_its_target() -> None:
    for rate, steps in ((1.0, 33), (0.05, 200)):
        noise = noise_multiplier(2.0, 1e-5 * (1 - RESERVED), rate, steps)
        spent = epsilon([event(rate, noise, 1, 1e-18)] * steps, 1e-5)
        assert 1.99 < spent.epsilon <= 2.0
