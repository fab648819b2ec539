"""Figures by group in whole runs: exact, released, of folds, of patients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_models.study import Study
from simulations.outcome import write_outcome
from simulations.report import render_report
from simulations.run import simulate

GROUPS = {"evaluation.subgroups": {"column": "ward", "smallest": 3}}
EPSILON = {"evaluation.epsilon": 8.0, "evaluation.holdout": 0.5}  # counts of 150, noise of eleven


def run(study: Study, records: Path, out: Path) -> dict[str, Any]:
    outcome = simulate(study, records, out)
    found = write_outcome(outcome, out)
    assert render_report(found, list(outcome.checkpoint.history))
    return found


def counts(figures: Any) -> int:
    return sum(one["accuracy"]["n"] for one in figures.values() if one is not None)


def test_groups_share_the_held_out_records_among_them(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    found = run(toy_study(**GROUPS), toy_csv, tmp_path)
    groups = found["subgroups"]
    assert groups["column"] == "ward"
    assert set(groups["metrics"]) == {"a", "b", "c", "d"}
    assert counts(groups["metrics"]) == found["metrics"]["accuracy"]["n"]
    assert groups["released"].keys() == groups["metrics"].keys()
    for name, told in groups["released"].items():  # exact, as of mode none
        assert told["accuracy"] == groups["metrics"][name]["accuracy"]


def test_the_model_is_the_same_with_and_without_groups(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    plain = run(toy_study(), toy_csv, tmp_path / "plain")
    found = run(toy_study(**GROUPS), toy_csv, tmp_path / "grouped")
    assert found["metrics"] == plain["metrics"]
    assert plain["subgroups"] is None


def test_groups_of_folds_hold_every_record_once(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    found = run(toy_study(**GROUPS, **{"evaluation.folds": 2}), toy_csv, tmp_path)
    assert counts(found["subgroups"]["metrics"]) == 120


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_noised_groups_are_near_the_exact_ones_where_noise_is_small(
    toy_study: Callable[..., Study],
    records_text: Callable[[int], str],
    tmp_path: Path,
    unit: str,
) -> None:
    head, *rows = records_text(1200).splitlines()
    path = tmp_path / "records.csv"
    path.write_text("\n".join([f"who,{head}", *(f"p{i // 2},{row}" for i, row in enumerate(rows))]))
    study = toy_study(
        True,
        **GROUPS,
        **EPSILON,
        **{"privacy.unit": unit, "data.patient": "who", "data.columns.who": {"kind": "id"}},
        **{"aggregation.masking": "fsa1"},
    )
    groups = run(study, path, tmp_path / "out")["subgroups"]
    told = {name: one for name, one in groups["released"].items() if one is not None}
    assert told
    for name, figures in told.items():
        exact = groups["metrics"][name]["accuracy"]
        # A patient of two rows is one: in each of two wards, a half of one.
        wanted = exact["n"] if unit == "record" else exact["n"] / 2
        assert abs(figures["accuracy"]["n"] - wanted) < 35
