"""Weights of sites and lanes of rounds, in every weighting and mode."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.mac import lane_bound, lanes_within
from privacy.roster import SITES_MAX
from shared_models.cells import cell_names
from shared_models.lanes import (
    LOSS_SCALE,
    TRAIN_LANES,
    WEIGHT_SCALE,
    count_training,
    evaluate_lanes,
    site_weight,
    total_weight,
    train_lanes,
    training_loss,
)
from shared_models.noised_cells import noised_cell_names
from shared_models.sections import Evaluation
from shared_models.study import Study, is_trusting, parse_study

PRIVATE = {
    "mode": "local",
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.1,
    "expected_batch": 8,
}
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 4.0}
NO_LANES = np.empty(0, dtype=np.int64)


def study(private: bool = False, **aggregation: Any) -> Study:
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 1,
            "data": {
                "target": "ill",
                "columns": {
                    "ill": {"kind": "category", "values": ["no", "yes"]},
                    "age": {"kind": "number", "low": 0, "high": 1},
                },
            },
            "model": {"name": "mlp"},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": PRIVATE if private else {"mode": "none"},
            "aggregation": aggregation,
        }
    )


PUBLIC: dict[str, Any] = {"weighting": "public", "weights": WEIGHTS}


# Lanes


def test_a_private_round_to_train_has_no_lanes() -> None:
    assert train_lanes(study(private=True)) == ()


def test_a_private_evaluation_has_few_cells_or_when_exact_all() -> None:
    noised = study(private=True)
    assert evaluate_lanes(noised) == noised_cell_names("binary", ("no", "yes"))
    exact = noised.model_copy(update={"evaluation": Evaluation(release="exact")})
    assert evaluate_lanes(exact) == evaluate_lanes(study())
    assert (is_trusting(exact), is_trusting(noised), is_trusting(study())) == (True, False, False)


def test_a_plain_round_has_weight_records_and_loss() -> None:
    assert train_lanes(study()) == ("weight", "records", "loss") == TRAIN_LANES


def test_a_plain_evaluation_has_the_cells_of_its_classes() -> None:
    assert evaluate_lanes(study()) == cell_names("binary", ("no", "yes"))


# Weights


@pytest.mark.parametrize(("records", "weight"), [(0, 0.0), (1, 1.0), (10_000, 1.0)])
def test_equal_weighting_counts_every_site_with_records_once(records: int, weight: float) -> None:
    assert site_weight(study(), "a", records) == weight


@pytest.mark.parametrize("records", [0, 1, 10_000])
def test_a_private_site_counts_once_whatever_its_records(records: int) -> None:
    assert site_weight(study(private=True), "a", records) == 1.0


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("records", [0, 7])
def test_public_weights_are_shares_of_the_largest(private: bool, records: int) -> None:
    given = study(private=private, **PUBLIC)
    assert [site_weight(given, site, records) for site in "abc"] == [0.25, 0.5, 1.0]


def test_a_site_without_a_public_weight_counts_nothing() -> None:
    assert site_weight(study(**PUBLIC), "stranger", 7) == 0.0


def test_weighting_by_records_is_in_proportion_to_them() -> None:
    given = study(weighting="records")
    assert site_weight(given, "a", 300) == 3 * site_weight(given, "a", 100)


def test_weighting_by_records_never_passes_one() -> None:
    given = study(weighting="records")
    assert site_weight(given, "a", WEIGHT_SCALE) == site_weight(given, "a", 10**9) == 1.0


def summed(given: Study, counts: dict[str, int]) -> float:
    """What the server divides by, from the lanes that the sites would send."""
    lanes = [count_training(site_weight(given, s, n), n, 0.0) for s, n in counts.items()]
    return total_weight(given, tuple(counts), np.sum(lanes, axis=0))


@pytest.mark.parametrize("aggregation", [{}, {"weighting": "records"}, PUBLIC])
@given(counts=st.lists(st.integers(0, WEIGHT_SCALE), min_size=3, max_size=3))
def test_the_total_weight_is_the_sum_of_the_sites_weights(
    aggregation: dict[str, Any], counts: list[int]
) -> None:
    given_study = study(**aggregation)
    sites = dict(zip("abc", counts, strict=True))
    weights = [site_weight(given_study, site, n) for site, n in sites.items()]
    # All weights here are multiples of 2^-16, as the lane is, so that the sum is exact.
    assert summed(given_study, sites) == sum(weights)


def test_the_total_weight_of_a_private_round_is_its_sites() -> None:
    assert total_weight(study(private=True), ("a", "b", "c"), NO_LANES) == 3.0


def test_the_total_public_weight_of_a_private_round_is_of_the_sites_that_answered() -> None:
    assert total_weight(study(private=True, **PUBLIC), ("a", "c"), NO_LANES) == 1.25


# The loss


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1000)), min_size=1, max_size=5))
def test_the_training_loss_is_the_mean_over_all_records(sites: list[tuple[int, float]]) -> None:
    lanes = np.sum([count_training(1.0, records, loss) for records, loss in sites], axis=0)
    records = sum(records for records, _ in sites)
    found = training_loss(lanes)
    assert found is not None
    # Each site's loss is rounded to 2^-20.
    assert abs(found - sum(loss for _, loss in sites) / records) <= len(sites) / LOSS_SCALE


def test_a_round_without_records_has_no_loss() -> None:
    assert training_loss(count_training(0.0, 0, 0.0)) is None


def test_a_private_round_has_no_loss() -> None:
    assert training_loss(NO_LANES) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_travels_as_an_integer(loss: float) -> None:
    assert count_training(1.0, 5, loss).tolist() == [65536, 5, 0]


@pytest.mark.parametrize("loss", [1e11, 1e38, -1e38, 1.7e308])
def test_a_loss_that_diverged_stays_in_its_lane(loss: float) -> None:
    lanes = count_training(1.0, 5, loss)
    assert lanes_within(lanes, lane_bound(SITES_MAX))
    assert np.sign(lanes[2]) == np.sign(loss)
