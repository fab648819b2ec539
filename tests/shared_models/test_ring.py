"""The ring of a distributed study: noise for every attempt, shares for the fewest answers."""

import copy
from typing import Any

import pytest

from privacy.accounting import Event, epsilon
from privacy.errors import StudyError
from privacy.ring import Ring
from shared_models.ring import planned_attempts, planned_noise, ring_of, shares_of
from shared_models.study import Study, parse_study

DOCUMENT: dict[str, Any] = {
    "name": "s",
    "task": "tabular",
    "rounds": 20,
    "data": {
        "target": "ill",
        "columns": {
            "ill": {"kind": "category", "values": ["no", "yes"]},
            "age": {"kind": "number", "low": 0, "high": 1},
        },
    },
    "model": {"name": "mlp", "hidden": []},
    "training": {"learning_rate": 0.1},
    "privacy": {
        "mode": "distributed",
        "epsilon": 2.0,
        "delta": 1e-5,
        "clipping_norm": 0.5,
        "expected_batch": 90,
        "records_max": 130,
    },
    "aggregation": {},
}


def study(aggregation: dict[str, object] | None = None, **privacy: object) -> Study:
    document = copy.deepcopy(DOCUMENT)
    document["aggregation"] = aggregation or {}
    document["privacy"].update(privacy)
    document["privacy"] = {k: v for k, v in document["privacy"].items() if v is not None}
    return parse_study(document)


def debits(ring: Ring, count: int) -> list[Event]:
    one = Event(
        study="s",
        dataset="d",
        unit="record",
        sampling_rate=ring.sums.sampling_rate,
        noise_multiplier=ring.noise_multiplier,
        clipping_norm=0.5,
        steps=1,
        denominator=90.0,
        mode="distributed",
        slack=ring.slack,
    )
    return [one] * count


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_all_rounds_and_spare_attempts_together_cost_the_studys_epsilon(rate: float) -> None:
    given = study({"spare_attempts": 7}, sampling_rate=rate)
    ring = ring_of(given, 5, 33)
    assert planned_attempts(given) == 27
    assert 1.99 < epsilon(debits(ring, 27), 1e-5).epsilon <= 2.0
    assert epsilon(debits(ring, 28), 1e-5).epsilon > 2.0  # one attempt more was not paid for


def test_a_noise_multiplier_of_the_study_is_the_noise_of_the_whole_sum() -> None:
    given = study(epsilon=None, noise_multiplier=12.5)
    assert planned_noise(given) == 12.5
    ring = ring_of(given, 5, 33)
    assert 12.5 <= ring.noise_multiplier < 12.5 * 1.0001
    # of the deviation of t_n - n_c = 4 - 1 shares of the noise
    total = (3 * ring.variance) ** 0.5
    assert total == pytest.approx(12.5 * ring.sensitivity, rel=1e-6)


def test_mode_none_has_no_noise_and_mode_local_no_ring() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["privacy"]["mode"] = "none"
    for wrong in (planned_noise, lambda given: ring_of(given, 5, 3), lambda g: shares_of(g, 5)):
        with pytest.raises(ValueError, match="expected a"):
            wrong(parse_study(document))


@pytest.mark.parametrize(
    ("sites", "answers", "colluders"), [(3, 3, 0), (4, 3, 1), (5, 4, 1), (10, 7, 3), (100, 67, 33)]
)
def test_shares_are_those_of_the_threshold_and_a_third(
    sites: int, answers: int, colluders: int
) -> None:
    shares = shares_of(study(), sites)
    assert (shares.sites, shares.answers, shares.colluders) == (sites, answers, colluders)


def test_no_sum_is_smaller_than_min_sites_or_noise_answers() -> None:
    assert shares_of(study({"min_sites": 9}), 10).answers == 9
    assert shares_of(study(noise_answers=8), 10).answers == 8
    assert shares_of(study({"min_sites": 9}, noise_answers=8, colluders=1), 10).carriers == 8


@pytest.mark.parametrize(
    "privacy",
    [{"noise_answers": 6}, {"noise_answers": 11}, {"colluders": 4}],
    ids=lambda found: str(found),
)
def test_thresholds_that_do_not_fit_the_sites_are_refused(privacy: dict[str, object]) -> None:
    key = next(iter(privacy))
    with pytest.raises(StudyError, match=f"privacy.{key}: expected") as caught:
        ring_of(study(**privacy), 10, 33)
    assert "\n" not in str(caught.value)


def test_a_study_without_room_is_refused() -> None:
    with pytest.raises(StudyError, match="expected room for 5000000000 records"):
        ring_of(study(records_max=10**9, delta=1e-12), 5, 33)


def test_a_share_of_the_noise_below_a_hundred_steps_is_refused() -> None:
    narrow = study({"ring_bits": 16}, epsilon=None, noise_multiplier=0.5, records_max=24)
    with pytest.raises(StudyError, match="a share of the noise of 100 ring steps"):
        ring_of(narrow, 5, 3)


def test_an_epsilon_that_promises_nothing_is_refused() -> None:
    ring_of(study(epsilon=15.0), 5, 33)
    for privacy in ({"epsilon": 30.0}, {"epsilon": None, "noise_multiplier": 0.2}):
        with pytest.raises(StudyError, match="an epsilon that still promises something"):
            ring_of(study(**privacy), 5, 33)
