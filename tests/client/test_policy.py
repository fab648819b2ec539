"""A site's policy: what it refuses, and that it can only tighten a study."""

import pytest
from pydantic import ValidationError

from client.policy import Policy, check
from privacy.errors import PrivacyError
from shared_models.study import Study, parse_study

PRIVATE: dict[str, object] = {
    "mode": "local",
    "epsilon": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.1,
    "expected_batch": 8,
}


def study(privacy: dict[str, object] = PRIVATE, min_sites: int = 3) -> Study:
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 3,
            "data": {
                "target": "ill",
                "columns": {
                    "ill": {"kind": "category", "values": ["no", "yes"]},
                    "age": {"kind": "number", "low": 0, "high": 1},
                },
            },
            "model": {"name": "mlp"},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": privacy,
            "aggregation": {"min_sites": min_sites},
        }
    )


def test_a_study_without_privacy_is_refused_by_default() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.mode: expected .*, got none; no record was"):
        check(Policy(), study({"mode": "none"}))


def test_a_study_without_privacy_runs_where_it_is_allowed() -> None:
    check(Policy(allow_no_privacy=True), study({"mode": "none"}))


def test_allowing_no_privacy_loosens_nothing_else() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon"):
        check(Policy(allow_no_privacy=True, epsilon_per_study=1.0), study())


def test_a_private_study_is_allowed_by_default() -> None:
    check(Policy(), study())


@pytest.mark.parametrize("asked", [3, 4, 5])
def test_a_study_with_enough_sites_is_allowed(asked: int) -> None:
    check(Policy(min_sites=3), study(min_sites=asked))


def test_a_study_with_fewer_sites_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"min_sites: expected >= 5 .*, got 4; no record was"):
        check(Policy(min_sites=5), study(min_sites=4))


@pytest.mark.parametrize("limit", [4.0, 5.0])
def test_an_epsilon_up_to_the_limit_is_allowed(limit: float) -> None:
    check(Policy(epsilon_per_study=limit), study())


def test_an_epsilon_above_the_limit_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon: expected <= 3.9 .*, got 4.0; no"):
        check(Policy(epsilon_per_study=3.9), study())


def test_a_study_that_names_no_epsilon_is_refused_where_there_is_a_limit() -> None:
    privacy = {k: v for k, v in PRIVATE.items() if k != "epsilon"} | {"noise_multiplier": 9.0}
    check(Policy(), study(privacy))
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon"):
        check(Policy(epsilon_per_study=1.0), study(privacy))


def test_a_distributed_study_is_under_the_same_limits() -> None:
    distributed = study({**PRIVATE, "mode": "distributed", "records_max": 100})
    check(Policy(), distributed)
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon"):
        check(Policy(epsilon_per_study=1.0), distributed)


def test_a_policy_with_an_unknown_limit_is_refused() -> None:
    # A limit that is not understood must not be a limit that is not kept.
    with pytest.raises(ValidationError):
        Policy.model_validate({"epsilon_per_studi": 1.0})
