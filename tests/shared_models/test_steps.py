"""From an opened sum to the next state, as both sides compute it."""

from typing import Any

import numpy as np
import pytest

from privacy.encoding import Encoding
from privacy.ring import Ring
from shared_models.steps import after_sum, encoding_of, evaluation_due, site_encoding
from shared_models.strategies import State, first_state, state_bytes
from shared_models.study import Study, parse_study

NAMES = ("ash", "elm", "fir", "oak")
PRIVATE = {
    "mode": "local",
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.1,
    "expected_batch": 8,
}
DISTRIBUTED = {
    "mode": "distributed",
    "noise_multiplier": 2.0,
    "delta": 1e-5,
    "clipping_norm": 0.5,
    "expected_batch": 8,
    "records_max": 20,
}


def study(private: bool = False, every: int = 3, **aggregation: Any) -> Study:
    return of_mode(PRIVATE if private else {"mode": "none"}, every, **aggregation)


def of_mode(privacy: dict[str, Any], every: int = 3, **aggregation: Any) -> Study:
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 8,
            "data": {
                "target": "ill",
                "columns": {
                    "ill": {"kind": "category", "values": ["no", "yes"]},
                    "age": {"kind": "number", "low": 0, "high": 1},
                },
            },
            "model": {"name": "mlp", "hidden": []},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": privacy,
            "aggregation": aggregation,
            "evaluation": {"every": every},
        }
    )


def start(given: Study) -> State:
    return first_state(given.aggregation, np.array([0.5, -0.25], dtype=np.float32))


def lanes(weight: float) -> np.ndarray:
    return np.array([round(weight * (1 << 16)), 30, 5], dtype=np.int64)


NO_LANES = np.empty(0, dtype=np.int64)


def test_the_mean_is_the_sum_by_scale_and_weight() -> None:
    given = study(value_bound=2.0)
    encoding = encoding_of(given, 4)
    values = np.array([3 * encoding.bound, -encoding.bound], dtype=np.int64)
    after = after_sum(given, start(given), values, lanes(2.5), NAMES[:3], 4, 4)
    # rtol 1e-12: two roundings of float64
    np.testing.assert_allclose(after.model, [0.5 + 6 / 2.5, -0.25 - 2 / 2.5], rtol=1e-12)
    assert after.round == 1


def test_under_privacy_the_weight_is_the_number_of_survivors() -> None:
    given = study(private=True)
    bound = encoding_of(given, 4).bound
    values = np.array([3 * bound, 0], dtype=np.int64)
    after = after_sum(given, start(given), values, NO_LANES, NAMES[:3], 4, 4)
    np.testing.assert_allclose(after.model, [1.5, -0.25], rtol=1e-12)


def test_public_weights_are_those_of_the_survivors() -> None:
    weights = dict(zip(NAMES, (1.0, 2.0, 3.0, 4.0), strict=True))
    given = study(private=True, weighting="public", weights=weights)
    bound = encoding_of(given, 4).bound
    values = np.array([bound, 0], dtype=np.int64)
    after = after_sum(given, start(given), values, NO_LANES, ("ash", "oak"), 4, 4)
    np.testing.assert_allclose(after.model, [0.5 + 1 / 1.25, -0.25], rtol=1e-12)


def test_a_sum_of_gradients_is_one_step_of_descent_over_a_public_denominator() -> None:
    given = of_mode(DISTRIBUTED)
    ring = site_encoding(given, 4, 2)
    assert isinstance(ring, Ring)
    assert isinstance(site_encoding(study(), 4, 2), Encoding)
    values = np.array([3, -5], dtype=np.int64) << ring.exponent  # clipping norms
    after = after_sum(given, start(given), values, NO_LANES, NAMES[:3], 4, 4)
    # learning rate .1, three sites answered, expected batch 8; how many records there were, or
    # took part in the step, is nowhere: equal sums give equal steps
    step = 0.1 * 0.5 / (3 * 8)
    np.testing.assert_allclose(after.model, [0.5 - 3 * step, -0.25 + 5 * step], rtol=1e-12)


@pytest.mark.parametrize(
    ("keys", "pull"),
    [
        ({"weight_decay": 0.02}, [0.02 * 0.5, 0.02 * -0.25]),
        ({"l1": 0.02}, [0.02, -0.02]),
        ({"weight_decay": 0.02, "l1": 0.03}, [0.02 * 0.5 + 0.03, 0.02 * -0.25 - 0.03]),
    ],
)
def test_penalties_join_a_sum_of_gradients_undivided_by_sites_and_records(
    keys: dict[str, float], pull: list[float]
) -> None:
    plain = of_mode(DISTRIBUTED)
    document = plain.document()
    document["training"] |= keys
    given = parse_study(document)
    values = np.array([3, -5], dtype=np.int64) << site_encoding(given, 4, 2).exponent
    for names in (NAMES, NAMES[:3]):
        without = after_sum(plain, start(given), values, NO_LANES, names, 4, 4).model
        after = after_sum(given, start(given), values, NO_LANES, names, 4, 4).model
        np.testing.assert_allclose(after - without, -0.1 * np.array(pull), rtol=1e-12)


def test_public_weights_change_the_denominator_of_a_sum_of_gradients() -> None:
    weights = dict(zip(NAMES, (1.0, 2.0, 3.0, 4.0), strict=True))
    given = of_mode(DISTRIBUTED, weighting="public", weights=weights)
    values = np.array([1, 0], dtype=np.int64) << site_encoding(given, 4, 2).exponent
    after = after_sum(given, start(given), values, NO_LANES, ("ash", "oak"), 4, 4)
    np.testing.assert_allclose(after.model[0], 0.5 - 0.1 * 0.5 / (1.25 * 8), rtol=1e-12)


def test_a_sum_without_weight_leaves_the_model() -> None:
    given = study()
    values = np.array([99, -99], dtype=np.int64)
    after = after_sum(given, start(given), values, lanes(0.0), NAMES, 4, 4)
    assert after.model.tolist() == [0.5, -0.25]
    assert after.round == 1


def test_the_encoding_is_sized_by_who_was_asked_not_by_who_survived() -> None:
    given = study()
    values = np.array([1 << 20, 0], dtype=np.int64)
    one, other = (
        after_sum(given, start(given), values, lanes(1.0), NAMES[:3], asked, 8).model[0] - 0.5
        for asked in (4, 8)
    )
    np.testing.assert_allclose(other / one, 2.0, rtol=1e-6)  # rtol: bounds are rounded down


def test_the_share_of_scaffold_is_of_all_sites() -> None:
    given = study(strategy="scaffold")
    bound = encoding_of(given, 4).bound
    values = np.array([0, 0, 4 * bound, 0], dtype=np.int64)
    after = after_sum(given, start(given), values, lanes(2.0), NAMES[:2], 4, 8)
    np.testing.assert_allclose(after.moments["control"], [0.25 * 2.0, 0.0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedyogi", "fedadagrad"])
def test_site_and_server_get_the_same_bits(strategy: str, dtype: type) -> None:
    """A site reads the sum as int32 from the wire, the server keeps it as int64."""
    given = study(strategy=strategy, average_last=1.0)
    values = np.array([123_456_789, -987_654_321], dtype=dtype)
    wide = values.astype(np.int64)
    found = [
        state_bytes(after_sum(given, start(given), one, lanes(3.0), NAMES[:3], 4, 4))
        for one in (values, wide)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("every", "due"), [(1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 6, 8]), (8, [8]), (99, [8])]
)
def test_evaluations_are_due_every_so_often_and_at_the_end(every: int, due: list[int]) -> None:
    given = study(every=every)
    assert [number for number in range(1, 9) if evaluation_due(given, number)] == due


def test_under_privacy_the_same_evaluations_are_due() -> None:
    given = study(private=True, every=3)
    assert [number for number in range(1, 9) if evaluation_due(given, number)] == [3, 6, 8]
