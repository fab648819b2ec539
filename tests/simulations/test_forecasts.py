"""The simplest forecasts are in the target's unit, of the past alone, and beside the network's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.errors import StudyError
from shared_models.registry import build_network
from shared_models.study import Study, parse_study
from shared_models.weights import vector_of
from simulations.baselines import baselines
from simulations.forecasts import simplest
from simulations.pool import Pool, gather, pool

SLOTS = ("noon", "night", "never")


def forecast_study(scale: str = "linear", **changes: Any) -> Study:
    variables = {"dose": {"low": 0, "high": 9}, "level": {"low": 1, "high": 9, "scale": scale}}
    document: dict[str, Any] = {
        "name": "levels",
        "task": "series",
        "rounds": 1,
        "data": {
            "target": "next",
            "columns": {
                "next": {"kind": "number", "low": 1, "high": 9},
                "slot": {"kind": "category", "values": list(SLOTS)},
                "past": {
                    "kind": "series",
                    "steps": 3,
                    "missing": "forward_indicator",
                    "variables": variables,
                },
                "part": {"kind": "category", "values": ["train", "test"], "input": False},
            },
        },
        "forecast": {"of": "level", "slot": "slot"},
        "model": {"name": "rnn", "hidden": [2]},
        "training": {"learning_rate": 0.1},
        "privacy": {"mode": "none"},
        "evaluation": {"holdout_column": "part", "holdout_values": ["test"]},
        "simulation": {"sites": 3},
    }
    return parse_study({**document, **changes})


def classed() -> dict[str, Any]:
    """The same records, of which a class is asked."""
    data = forecast_study().model_dump(mode="json", exclude_none=True)["data"]
    return {**data, "target": "part"}


def written(folder: Path) -> Path:
    """Three readings that are learnt from, at noon and at night, and three that are asked for."""
    levels = [[1, 2, 3], [1, 2, 4], [5, 5, 5], [2, np.nan, 7], [2, 8, np.nan], [9, 9, 9]]
    past = np.stack([np.zeros((6, 3)), np.array(levels, dtype=np.float64)], axis=2)
    np.savez(
        folder / "levels.npz",
        past=past,
        next=np.array([2.0, 4.0, 9.0, 6.5, 5.0, 1.0]),
        slot=np.array(["noon", "noon", "night", "noon", "night", "never"]),
        part=np.array(["train"] * 3 + ["test"] * 3),
    )
    return folder / "levels.npz"


def pooled(study: Study, folder: Path) -> Pool:
    return pool(study, gather(study, written(folder)))


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_they_are_the_last_value_and_the_mean_of_the_slot(scale: str, tmp_path: Path) -> None:
    records = pooled(forecast_study(scale), tmp_path)
    found = simplest(forecast_study(scale), records.train(), records.held())
    assert list(found) == ["last_value", "slot_mean"]
    order = np.argsort(records.held().targets.numpy())  # of the sites: never, night, noon
    # The reading that is missing is the one before it; a slot that nobody had, the mean of all.
    np.testing.assert_allclose(found["last_value"][order], [9, 8, 7], atol=1e-5)
    np.testing.assert_allclose(found["slot_mean"][order], [5, 9, 3], atol=1e-5)


def test_they_stand_beside_the_other_baselines(tmp_path: Path) -> None:
    study = forecast_study()
    first = vector_of(build_network(study, 1))
    found = baselines(study, pooled(study, tmp_path), first)
    assert list(found) == ["pooled", "local_only", "linear", "last_value", "slot_mean"]
    errors = np.array([8.0, 3.0, 0.5])
    assert found["last_value"]["mae"].value == pytest.approx(errors.mean(), abs=1e-5)
    assert found["last_value"]["rmse"].value == pytest.approx(np.sqrt((errors**2).mean()), abs=1e-5)


def test_a_study_without_one_has_none(tmp_path: Path) -> None:
    study = forecast_study(forecast=None)
    records = pooled(study, tmp_path)
    assert simplest(study, records.train(), records.held()) == {}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"forecast": {"of": "leval", "slot": "slot"}}, "forecast.of: expected a variable"),
        ({"forecast": {"of": "level", "slot": "next"}}, "forecast.slot: expected an input of kind"),
        ({"forecast": {"of": "level", "slot": "part"}}, "forecast.slot: expected an input of kind"),
        ({"data": classed()}, "forecast: expected with task = 'series'"),
    ],
)
def test_what_no_forecast_can_be_made_of_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(StudyError, match=complaint):
        forecast_study(**change)
