"""Figures by group: what a unit can move in them, what is told, and what is left out."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy.cell_noise import CellNoise, fit_cells
from privacy.errors import StudyError
from privacy.mac import lane_bound
from privacy.roster import SITES_MAX
from privacy.stream import Stream
from shared_models.debits import planned_mechanism, study_events
from shared_models.guarantee import planned_cost
from shared_models.lanes import evaluate_lanes
from shared_models.release import cell_noise, planned_evaluations, released_figures
from shared_models.steps import site_encoding
from shared_models.study import Study, parse_study
from shared_models.subgroups import (
    cell_sensitivity,
    count_cells,
    count_noised_cells,
    exact_figures,
    figures_from_noised_cells,
    group_names,
    groups_of,
)
from shared_models.tasks import TASKS, target_of
from tests.shared_models.studies import better_answers, made_targets, task_study

SEX = {"kind": "category", "values": ["female", "male"]}
WARD = {"kind": "category", "values": ["a", "b", "c", "d"], "missing": "constant"}
TARGETS: dict[str, dict[str, Any]] = {
    "binary": {"kind": "category", "values": ["no", "yes"]},
    "multiclass": {"kind": "category", "values": ["x", "y", "z"]},
    "regression": {"kind": "number", "low": 0, "high": 10},
}
PRIVATE = {
    "mode": "distributed",
    "epsilon": 2.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "expected_batch": 16,
    "records_max": 100,
}
BY_SEX, BY_WARD = {"column": "sex"}, {"column": "ward"}


def document(target: str = "binary", subgroups: Any = None, **changes: Any) -> dict[str, Any]:
    evaluation = {"every": 10, **changes.pop("evaluation", {})}
    return {
        "name": "s",
        "task": "tabular",
        "rounds": 10,
        "data": {
            "target": "out",
            "columns": {
                "age": {"kind": "number", "low": 0, "high": 1},
                "sex": SEX,
                "ward": WARD,
                "out": TARGETS[target],
            },
        },
        "model": {"name": "mlp", "hidden": []},
        "training": {"learning_rate": 0.1},
        "privacy": PRIVATE,
        "evaluation": evaluation | ({} if subgroups is None else {"subgroups": subgroups}),
        **changes,
    }


def study(target: str = "binary", subgroups: Any = BY_WARD, **changes: Any) -> Study:
    return parse_study(document(target, subgroups, **changes))


def made(asked: Study, rows: int, seed: int) -> tuple[Any, Any, Any]:
    """Targets, rather good predictions and groups."""
    draw = np.random.default_rng(seed)
    groups = draw.integers(0, max(len(group_names(asked)), 1), rows)
    size = len(asked.data.classes)
    if not size:
        numbers = draw.uniform(0, 10, rows)
        return numbers, np.clip(numbers + draw.normal(0, 1, rows), 0, 10), groups
    targets = draw.integers(0, size, rows)
    chances = np.exp(draw.normal(0, 1, (rows, size)) + 1.5 * np.eye(size)[targets])
    return targets, chances / chances.sum(axis=1, keepdims=True), groups


def quiet(asked: Study) -> CellNoise:
    """So little noise that figures are those of the counts."""
    return fit_cells(1e-4, cell_sensitivity(asked), len(evaluate_lanes(asked)), 5, 1)


def test_a_prediction_that_is_not_finite_counts_in_no_group() -> None:
    asked = study()
    targets, predictions, groups = made(asked, 30, 3)
    expected = count_cells(
        asked, np.delete(targets, 7), np.delete(predictions, 7, axis=0), np.delete(groups, 7)
    )
    predictions[7, 1] = np.inf
    assert count_cells(asked, targets, predictions, groups).tolist() == expected.tolist()


# What a unit can move


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_one_unit_moves_all_cells_by_no_more_than_the_sensitivity(
    target: str, data: st.DataObject
) -> None:
    asked = study(target)
    rows = data.draw(st.integers(1, 30))
    targets, predictions, groups = made(asked, rows, data.draw(st.integers(0, 1000)))
    step = data.draw(st.sampled_from([1, 2, 128, 1 << 17]))
    patients = data.draw(st.booleans())  # whose rows fall in several groups
    units = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, 3))) if patients else None
    gone = data.draw(st.integers(0, rows - 1))
    left = np.arange(rows) != gone if units is None else units != units[gone]

    def cells(kept: Any) -> Any:
        of = None if units is None else units[kept]
        return count_noised_cells(
            asked, targets[kept], predictions[kept], of, groups[kept], step
        ).astype(np.float64)

    moved = np.linalg.norm(cells(slice(None)) - cells(left))
    assert moved <= cell_sensitivity(asked) * step * (1 + 1e-12)


@pytest.mark.parametrize("target", ["binary", "multiclass"])
def test_a_record_reaches_the_sensitivity_so_it_is_not_set_too_high(target: str) -> None:
    asked = study(target)
    cells = count_noised_cells(asked, *made(asked, 1, 0)[:2], None, np.array([2]), 64)
    assert np.linalg.norm(cells) == pytest.approx(cell_sensitivity(asked) * 64)


def test_the_sensitivity_grows_by_the_root_of_two_however_many_groups_there_are() -> None:
    alone = target_of(study()).cell_sensitivity
    assert cell_sensitivity(study(subgroups=None)) == alone
    for groups in (BY_SEX, BY_WARD):
        assert cell_sensitivity(study(subgroups=groups)) == alone * math.sqrt(2)


def test_the_noise_is_calibrated_for_the_larger_sensitivity_and_paid_for() -> None:
    plain, grouped = study(subgroups=None), study()
    before, after = cell_noise(plain, 5), cell_noise(grouped, 5)
    assert before is not None
    assert after is not None
    assert after.cells == 6 * before.cells  # all records, four wards and those without one
    assert after.noise_multiplier == pytest.approx(before.noise_multiplier, rel=1e-4)
    assert after.deviation(5) == pytest.approx(math.sqrt(2) * before.deviation(5), rel=1e-4)
    encoding = site_encoding(grouped, 5, 10)
    events = study_events(grouped, planned_mechanism(grouped), "records", encoding)
    assert events["evaluate"].clipping_norm == after.sensitivity
    spent = planned_cost(grouped, events, {"train": 0, "evaluate": planned_evaluations(grouped)})
    assert spent is not None
    assert 0.99 < spent.epsilon <= 1.0


def test_the_lanes_of_a_hundred_sites_have_room() -> None:
    asked = study(subgroups=BY_SEX)
    noise = cell_noise(asked, 5)
    assert noise is not None
    largest = (1 << 26) * noise.step + 40 * math.sqrt(noise.variance)  # of records_max, and noise
    assert largest < lane_bound(SITES_MAX)


# What the cells are


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("exact", [True, False])
def test_the_cells_of_all_are_the_sum_of_those_of_the_groups(target: str, exact: bool) -> None:
    asked = study(target, evaluation={"release": "exact" if exact else "noised"})
    targets, predictions, groups = made(asked, 90, 3)
    if exact:
        cells = count_cells(asked, targets, predictions, groups)
    else:
        units = np.random.default_rng(1).integers(0, 20, 90)
        cells = count_noised_cells(asked, targets, predictions, units, groups, 1 << 10)
    names = evaluate_lanes(asked)
    assert len(cells) == len(names) == len(set(names))
    whole, *parts = cells.reshape(len(group_names(asked)) + 1, -1)
    assert np.array_equal(whole, np.sum(parts, axis=0))


def test_a_study_without_groups_has_the_cells_it_had() -> None:
    asked = study(subgroups=None)
    targets, predictions, _ = made(asked, 40, 2)
    found = count_noised_cells(asked, targets, predictions, None, None, 8)
    target = target_of(asked)
    assert np.array_equal(found, target.count_noised_cells(targets, predictions, None, 8))
    assert evaluate_lanes(asked) == target.noised_cell_names()


def test_records_without_the_value_are_a_group() -> None:
    assert group_names(study()) == ("a", "b", "c", "d", "missing")
    assert groups_of(study(), np.array(["b", "", "a"])).tolist() == [1, 4, 0]
    assert group_names(study(subgroups=BY_SEX)) == ("female", "male")


# What is told


def test_exact_figures_of_a_group_are_those_of_its_records() -> None:
    asked = study(evaluation={"release": "exact"})
    targets, predictions, groups = made(asked, 400, 5)
    cells = count_cells(asked, targets, predictions, groups)
    told = released_figures(asked, cells, 5, 5)
    exact = exact_figures(asked, targets, predictions, groups)
    for place, name in enumerate(group_names(asked)):
        own, shown = exact[name], told.subgroups[name]
        assert own is not None
        assert shown is not None
        rows = groups == place
        assert own == target_of(asked).exact_figures(targets[rows], predictions[rows])
        assert shown["accuracy"] == own["accuracy"]
    assert told.figures["accuracy"].n == 400


@pytest.mark.parametrize("task", TASKS)
def test_exact_figures_of_a_group_are_those_of_its_records_alone_for_every_task(task: str) -> None:
    evaluation = {"subgroups": {"column": "sex", "smallest": 2}}
    asked = task_study(task, evaluation=evaluation)
    target, count = target_of(asked), 120
    truth = made_targets(target, count)
    answers = better_answers(target, truth, 0.4)
    targets, groups = truth.numpy(), np.random.default_rng(2).integers(0, 2, count)
    told = released_figures(asked, count_cells(asked, targets, answers, groups), 5, 5)
    exact = exact_figures(asked, targets, answers, groups)
    assert told.figures == target.figures_from_cells(target.count_cells(targets, answers))
    for place, name in enumerate(("female", "male")):
        own, said = targets[groups == place], answers[groups == place]
        assert exact[name] == target.exact_figures(own, said)
        assert told.subgroups[name] == target.figures_from_cells(target.count_cells(own, said))
        assert exact[name] != target.exact_figures(targets, answers)


def test_a_small_group_is_left_out_of_every_release() -> None:
    exact = study(subgroups={**BY_SEX, "smallest": 30}, evaluation={"release": "exact"})
    targets, predictions, _ = made(exact, 130, 6)
    groups = (np.arange(130) < 29).astype(np.int64)
    cells = count_cells(exact, targets, predictions, groups)
    for told in (
        released_figures(exact, cells, 5, 5).subgroups,
        exact_figures(exact, targets, predictions, groups),
    ):
        assert told["male"] is None
        assert told["female"] is not None
    noised = study(subgroups={**BY_SEX, "smallest": 30})
    noise = quiet(noised)
    counts = count_noised_cells(noised, targets, predictions, None, groups, noise.step)
    found = figures_from_noised_cells(noised, counts, noise, 5).subgroups
    assert found["male"] is None
    assert found["female"] is not None


def test_a_group_that_noise_alone_looks_like_is_left_out() -> None:
    asked = study(subgroups={**BY_SEX, "smallest": 1})
    noise = cell_noise(asked, 5)
    assert noise is not None
    nobody = np.zeros(noise.cells, dtype=np.int64)
    told = 0
    for draw in range(15):
        cells = sum(noise.encode(nobody, Stream(bytes([draw, k]) * 16)) for k in range(5))
        found = figures_from_noised_cells(asked, np.asarray(cells), noise, 5)
        told += sum(one is not None for one in found.subgroups.values())
    assert told <= 1  # of 30: three deviations, on one side, are passed once in 740


def test_noise_is_shared_out_between_all_and_the_groups_as_least_squares_has_it() -> None:
    asked = study("regression", subgroups=BY_SEX)
    noise = cell_noise(asked, 5)
    assert noise is not None
    count = 5000.0 * noise.step
    truth = np.array([2 * count, 0, 0, count, 0, 0, count, 0, 0]).astype(np.int64)
    seen: list[list[int]] = []
    for draw in range(300):
        keys = (bytes([draw % 256, draw // 256, k, 1]) * 8 for k in range(5))
        cells = truth + sum(noise.encode(np.zeros_like(truth), Stream(key)) for key in keys)
        told = figures_from_noised_cells(asked, np.asarray(cells), noise, 5)
        groups = [one["mae"].n for one in told.subgroups.values() if one is not None]
        assert sum(groups) == pytest.approx(told.figures["mae"].n, abs=2)
        seen.append([told.figures["mae"].n, *groups])
    deviations = np.std(np.array(seen), axis=0) / noise.deviation(5)
    # sqrt(G / (G + 1)) of two groups, against 1 of what was sent; 300 draws tell it within 4 %.
    assert deviations == pytest.approx(math.sqrt(2 / 3), rel=0.13)


def test_noised_figures_of_large_groups_are_near_the_exact_ones() -> None:
    asked = study(subgroups=BY_SEX)
    targets, predictions, groups = made(asked, 6000, 8)
    noise = cell_noise(asked, 5)
    assert noise is not None
    cells = count_noised_cells(asked, targets, predictions, None, groups, noise.step)
    nobody = np.zeros(noise.cells, dtype=np.int64)
    noisy = cells + sum(noise.encode(nobody, Stream(bytes([k]) * 32)) for k in range(5))
    told = figures_from_noised_cells(asked, np.asarray(noisy), noise, 5)
    exact = exact_figures(asked, targets, predictions, groups)
    for name, shown in told.subgroups.items():
        own = exact[name]
        assert own is not None
        assert shown is not None
        for metric in ("auc", "accuracy", "sensitivity"):
            figure, truth = shown[metric], own[metric].value
            assert figure.low is not None
            assert figure.high is not None
            assert truth is not None
            assert figure.low <= truth <= figure.high


# What is refused


@pytest.mark.parametrize(
    ("subgroups", "said"),
    [
        ({"column": "age"}, "expected a category that is no target, found 'age'"),
        ({"column": "out"}, "expected a category that is no target, found 'out'"),
        ({"column": "nobody"}, "expected a category that is no target, found 'nobody'"),
        ({"column": "sex", "smallest": 0}, "evaluation.subgroups.smallest"),
        ({}, "evaluation.subgroups.column: missing"),
    ],
)
def test_a_column_that_makes_no_groups_is_refused(subgroups: Any, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        study(subgroups=subgroups)


@pytest.mark.parametrize(
    "column",
    [
        {"kind": "category", "values": ["one"]},
        {"kind": "category", "values": [str(k) for k in range(17)]},
        {"kind": "category", "values": ["missing", "there"]},
    ],
)
def test_too_few_groups_too_many_and_a_false_name_are_refused(column: Any) -> None:
    asked = document(subgroups=BY_SEX)
    asked["data"]["columns"]["sex"] = column
    with pytest.raises(StudyError, match="expected 2 to 16 groups"):
        parse_study(asked)


def test_cells_of_another_number_are_no_sum() -> None:
    with pytest.raises(ValueError, match="cells"):
        released_figures(study(), np.zeros(7, dtype=np.int64), 5, 5)
