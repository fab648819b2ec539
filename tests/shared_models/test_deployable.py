"""No setting of a simulation runs between hospitals."""

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from privacy.errors import PrivacyError
from shared_models.deployable import check_deployable
from shared_models.study import parse_study

EXAMPLE = Path(__file__).parents[2] / "examples" / "heart" / "study.toml"


def document(**changes: object) -> dict[str, Any]:
    made = copy.deepcopy(tomllib.loads(EXAMPLE.read_text()))
    del made["simulation"]["seed"]
    for key, value in changes.items():
        section, name = key.split("__")
        made.setdefault(section, {})[name] = value
    return made


def check(written: dict[str, Any]) -> None:
    study = parse_study(written)
    check_deployable(study, study.document())


def test_a_private_masked_study_without_a_seed_may_run() -> None:
    check(document())


def test_the_rest_of_the_simulation_is_nobodys_concern() -> None:
    check(document(simulation__sites=3, simulation__partition="iid"))
    study = parse_study(document())
    check_deployable(study)  # a study that travelled has every key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy__mode", "none"),
        ("aggregation__masking", "none"),
        ("aggregation__cohort", 3),
        ("simulation__seed", 7),
    ],
)
def test_a_simulation_is_refused_by_the_key_that_makes_it_one(key: str, value: object) -> None:
    with pytest.raises(PrivacyError, match=rf"^{key.replace('__', '.')}: .*nothing was started$"):
        check(document(**{key: value}))
