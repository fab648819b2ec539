"""Early warning: no hour knows a later one, alarms are counted by the union, lead by hand."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from client.training import Tensors
from privacy.cell_noise import fit_cells
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.errors import DataError, StudyError
from privacy.stream import Stream
from shared_models.alarms import EDGES, LEADS, Alarms
from shared_models.inputs import input_spec
from shared_models.noised_cells import EDGES as FEW
from shared_models.registry import build_network
from shared_models.study import Study, parse_study
from shared_models.tasks import target_of
from simulations.baselines import linear
from tests.privacy.networks import KEY, assert_close, naive_sum

TARGET = Alarms(steps=4, hours=(2, 4), at=2, false_alarms=0.25, scale=1.0)
STEP = 1 << 10
RISK = st.floats(0.0, 1.0)
RECORD = st.tuples(
    st.integers(0, 1), st.sampled_from([1.0, 3.0, 30.0, math.nan]), st.tuples(*[RISK] * 4)
)
Records = list[tuple[int, float, tuple[float, ...]]]


def arrays(records: Records) -> tuple[np.ndarray, np.ndarray]:
    targets = np.array([record[:2] for record in records], dtype=np.float32).reshape(-1, 2)
    return targets, np.array([risks for _, _, risks in records]).reshape(-1, 4)


def warning_study(**changes: Any) -> Study:
    number = {"kind": "number", "low": 0, "high": 9}
    series = {"kind": "series", "steps": 4, "variables": {"pulse": {"low": 30, "high": 180}}}
    document: dict[str, Any] = {
        "name": "ward",
        "task": "warning",
        "rounds": 1,
        "data": {
            "target": ["died", "day"],
            "columns": {
                "died": {"kind": "category", "values": ["0", "1"]},
                "day": {**number, "unit": "days", "missing": "constant"},
                "age": number,
                "stay": series,
            },
        },
        "warning": {"hours": [2, 4], "at": 2, "false_alarms": 0.25},
        "model": {"name": "gru", "hidden": [3, 2]},
        "training": {"learning_rate": 0.1},
        "privacy": {"mode": "none"},
        "simulation": {"sites": 3},
    }
    return parse_study({**document, **changes})


# The network and its loss


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "mlp"])
def test_no_answer_knows_a_later_hour(name: str) -> None:
    network = build_network(warning_study(model={"name": name, "hidden": [3, 2]}), 3)
    x = torch.randn(5, 4, 2)
    whole = network(x)
    assert whole.shape == (5, 4)
    for hour in range(1, 4):
        changed = x.clone()
        changed[:, hour:] += 1.0
        torch.testing.assert_close(network(changed)[:, :hour], whole[:, :hour])
        torch.testing.assert_close(network.forward(x[:, :hour]), whole[:, :hour])  # shorter
        assert not torch.allclose(network(changed)[:, hour:], whole[:, hour:])


@pytest.mark.parametrize("name", ["attention", "cnn"])
def test_a_network_that_sees_later_hours_is_refused(name: str) -> None:
    with pytest.raises(StudyError, match="task 'warning' expected lstm or gru or rnn or mlp"):
        build_network(warning_study(model={"name": name}))


def test_a_record_of_another_shape_is_refused_by_name() -> None:
    network = build_network(warning_study())
    with pytest.raises(ValueError, match=r"expected \(B, 4, 2\), got \(2, 4, 3\): the network"):
        network(torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match=r"expected \(N, 2\) targets and \(N, 4\) predictions"):
        TARGET.count_cells(np.zeros((3, 2)), np.zeros((3, 5)))


def test_a_loss_is_the_mean_of_the_hours_before_the_event() -> None:
    outputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[0, 1], [1, 2], [1, math.nan], [1, 0]], dtype=torch.float32)
    risks = outputs.double().sigmoid()
    wanted = [
        -(1 - risks[0]).log().mean(),  # the time of what did not happen is not read
        -risks[1, :2].log().mean(),
        -risks[2].log().mean(),  # nobody knows when: all hours
        0.0,  # before the first hour: nothing to learn
    ]
    got = TARGET.losses(outputs, targets)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float32))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "mlp"])
def test_a_private_step_is_the_naive_loop(name: str) -> None:
    model = build_network(warning_study(model={"name": name, "hidden": [4, 3]}), 5)
    x = torch.randn(9, 4, 2, generator=torch.Generator().manual_seed(5))
    times = torch.tensor([1.0, 9.0, math.nan]).repeat(3)
    y = torch.stack([torch.arange(9) % 2, times], dim=1).float()
    for bound in (0.1, math.inf):
        step = PrivateStep(model, TARGET.losses, Mechanism(bound, 0.0, 0.5, 1.0))
        assert_close(
            step.clipped_sum(x, y, None, Stream(KEY)),
            naive_sum(model, x, y, bound, losses=TARGET.losses),
        )


# Cells


@settings(max_examples=50, deadline=None)
@given(st.lists(RECORD, max_size=6), st.lists(RECORD, max_size=6))
def test_the_cells_of_a_union_are_the_sum_of_the_cells(one: Records, other: Records) -> None:
    counts = [TARGET.count_cells(*arrays(records)) for records in (one, other, one + other)]
    assert len(counts[0]) == len(TARGET.cell_names()) == len(set(TARGET.cell_names()))
    np.testing.assert_array_equal(counts[0] + counts[1], counts[2])
    few = [TARGET.count_noised_cells(*arrays(r), None, STEP) for r in (one, other, one + other)]
    assert len(few[0]) == len(TARGET.noised_cell_names()) == len(set(TARGET.noised_cell_names()))
    np.testing.assert_array_equal(few[0] + few[1], few[2])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(RECORD, st.integers(0, 3)), min_size=1, max_size=9), st.booleans())
def test_a_unit_moves_the_noised_cells_by_one_count_at_most(
    rows: list[tuple[Any, int]], by_patient: bool
) -> None:
    targets, predictions = arrays([record for record, _ in rows])
    units = np.array([unit for _, unit in rows]) if by_patient else np.arange(len(rows))
    whole = TARGET.count_noised_cells(targets, predictions, units if by_patient else None, STEP)
    for unit in np.unique(units):
        kept = units != unit
        own = units[kept] if by_patient else None
        part = TARGET.count_noised_cells(targets[kept], predictions[kept], own, STEP)
        assert np.linalg.norm(whole - part) <= TARGET.cell_sensitivity * STEP * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=8))
def test_alarms_are_what_a_loop_over_hours_finds(records: Records) -> None:
    targets, risks = arrays(records)
    free = [
        max(row) for (happened, _), row in zip(targets.tolist(), risks.tolist(), strict=True)
        if not happened
    ]  # fmt: skip
    allowed = 0.25 * len(free)
    threshold = next((e for e in EDGES if sum(p >= e for p in free) <= allowed), EDGES[-1])
    alarms = hours = found = sick = 0
    leads = []
    for (happened, time), row in zip(targets.tolist(), risks.tolist(), strict=True):
        seen = [r for hour, r in enumerate(row, 1) if not (happened and hour > time)]
        over = [r >= threshold for r in seen]
        alarms += sum(now and not before for before, now in itertools.pairwise([False, *over]))
        hours += len(seen)
        if happened and seen:  # one whose event came before the first hour was never watched
            sick += 1
            found += any(over)
            if any(over) and not math.isnan(time):
                leads.append(time - over.index(True) - 1)
    got = TARGET.exact_figures(targets, risks)
    if sick:
        assert got["sensitivity"].value == pytest.approx(found / sick)
    if free:
        assert got["false_alarms"].value == pytest.approx(
            sum(p >= threshold for p in free) / len(free)
        )
        assert got["false_alarms"].value <= 0.25 or threshold == EDGES[-1]
    if hours:
        assert got["alarms_a_day"].value == pytest.approx(alarms / (hours / 24))
    assert got["lead_hours"].n == len(leads)
    if leads:  # the bin of the median: within six hours, up to two days
        at = np.searchsorted(LEADS, sorted(leads)[(len(leads) - 1) // 2], side="right")
        assert got["lead_hours"].value is not None
        assert got["lead_hours"].value <= LEADS[at]


def many(count: int, steps: int = 4) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    happened = draw.random(count) < 0.2
    drift = np.cumsum(draw.normal(0.3 * happened[:, None], 0.4, (count, steps)), axis=1)
    times = np.where(happened, draw.integers(2, 60, count), 0)
    return np.stack([happened, times], axis=1).astype(np.float32), 1 / (1 + np.exp(1.5 - drift))


def test_figures_are_scikit_learns_and_cells_tell_the_same() -> None:
    targets, risks = many(3000)
    exact = TARGET.exact_figures(targets, risks)
    told = TARGET.figures_from_cells(TARGET.count_cells(targets, risks))
    assert tuple(exact) == tuple(told) == TARGET.metrics
    for hour in TARGET.hours:
        seen = (targets[:, 0] == 0) | (hour <= targets[:, 1])
        wanted = roc_auc_score(targets[seen, 0], risks[seen, hour - 1])
        assert exact[f"auc_{hour}"].value == pytest.approx(wanted)
        assert told[f"auc_{hour}"].value == pytest.approx(wanted, abs=2e-3)
    for name in ("sensitivity", "false_alarms", "alarms_a_day", "lead_hours", "loss"):
        assert exact[name] == told[name]
        assert exact[name].low < exact[name].value < exact[name].high


def test_lead_is_from_the_first_alarm_to_the_event() -> None:
    days = Alarms(steps=4, hours=(4,), at=4, false_alarms=0.5, scale=24.0)
    quiet, alarmed = (0.0, 0.0, 0.0, 0.0), (0.0, 0.9, 0.0, 0.9)
    records: Records = [(0, 0.0, quiet), (0, 0.0, quiet), *[(1, 2.0, alarmed)] * 8]
    found = days.exact_figures(*arrays(records))
    # 48 - 2 hours lie between 42 and 48; two alarms begin, in four hours each.
    assert 42 <= (found["lead_hours"].value or 0) <= 48
    assert found["alarms_a_day"].value == pytest.approx(16 / (40 / 24))
    assert (found["sensitivity"].value, found["false_alarms"].value) == (1.0, 0.0)


def test_an_alarm_comes_at_the_end_of_its_hour() -> None:
    risks = (0.0, 0.9, 0.0, 0.0)
    for time, (low, high) in ((7.0, (0, 6)), (8.0, (6, 12))):  # five hours and six later
        found = TARGET.exact_figures(*arrays([(0, 0.0, (0.0,) * 4), (1, time, risks)]))
        assert low <= (found["lead_hours"].value or 0.0) < high


def test_noised_figures_are_those_of_the_records_when_noise_is_small() -> None:
    targets, risks = many(20_000)
    noise = fit_cells(5.0, TARGET.cell_sensitivity, len(TARGET.noised_cell_names()), 3, 3)
    cells = TARGET.count_noised_cells(targets, risks, None, noise.step)
    told = TARGET.figures_from_noised_cells(cells, noise, 3)
    exact = TARGET.exact_figures(targets, risks)
    assert tuple(sorted(told)) == tuple(sorted(TARGET.metrics))
    seen = (targets[:, 0] == 0) | (targets[:, 1] >= 2)
    coarse = roc_auc_score(targets[seen, 0], np.digitize(risks[seen, 1], FEW))  # in ten bins
    assert told["auc_2"].value == pytest.approx(coarse, abs=0.005)
    assert told["auc_2"].value <= exact["auc_2"].value
    assert told["false_alarms"].value <= 0.26
    for name in ("auc_4", "lead_hours", "alarms_a_day", "loss"):
        assert told[name].value is None


def test_one_class_one_record_and_none_have_figures_or_none() -> None:
    quiet = (0.1, 0.1, 0.1, 0.1)
    cases: list[Records] = [[], [(0, 0.0, quiet)], [(1, 3.0, quiet)], [(1, 0.0, quiet)]]
    for records in cases:
        for found in (
            TARGET.exact_figures(*arrays(records)),
            TARGET.figures_from_cells(TARGET.count_cells(*arrays(records))),
        ):
            assert found["auc_2"].value is None
            values = [one.value for one in found.values() if one.value is not None]
            assert all(map(math.isfinite, values))
    assert TARGET.curves(*arrays([]))["hours"] == []


def test_what_is_not_finite_is_refused_or_counts_nowhere() -> None:
    targets, risks = many(10)
    risks[3, 1] = np.nan
    with pytest.raises(DataError):
        TARGET.count_cells(targets, risks)
    kept = np.arange(10) != 3
    np.testing.assert_array_equal(
        TARGET.count_noised_cells(targets, risks, None, STEP),
        TARGET.count_noised_cells(targets[kept], risks[kept], None, STEP),
    )


# What a linear model says, and the study


def test_a_linear_model_of_an_hour_knows_no_later_one() -> None:
    draw = np.random.default_rng(2)
    targets, _ = many(400)
    sign = np.where(targets[:, :1] == 1, 1.0, -1.0)
    early, late = draw.normal(0, 1, (400, 2)), sign + draw.normal(0, 0.1, (400, 2))
    risks = TARGET.linear(np.concatenate([early, late], axis=1), targets, np.eye(4))
    assert risks.shape == (4, 4)
    share = targets[:, 0].mean()
    assert np.allclose(risks[:, 0], share)  # before the first judged hour
    assert (risks[:, 1] == risks[:, 2]).all()  # held until the next
    assert np.abs(risks[:, 1] - share).max() < 0.1 < risks[2, 3] - risks[0, 3]


def test_the_linear_baseline_sums_up_what_was_known_by_the_hour() -> None:
    draw = np.random.default_rng(4)
    targets, _ = many(600)
    x = draw.normal(0, 1, (600, 4, 2))
    x[:, 3] += 4 * targets[:, :1]  # the last hour tells who dies
    half = [
        Tensors(torch.from_numpy(x[rows]).float(), torch.from_numpy(targets[rows]))
        for rows in (slice(0, 300), slice(300, 600))
    ]
    found = linear(warning_study(), *half)
    assert (found["auc_2"].value or 1.0) < 0.65
    assert (found["auc_4"].value or 0.0) > 0.95


def test_days_are_hours_and_the_shape_follows_from_the_series() -> None:
    target = target_of(warning_study())
    assert target == Alarms(4, (2, 4), 2, 0.25, 24.0)
    assert target.outputs == 4
    assert target.classes[0] == "risk at hour 1"
    assert input_spec(warning_study()).shape == (4, 2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"warning": None}, "warning: expected with task = 'warning'"),
        ({"task": "series"}, "warning: expected with task = 'warning'"),
        ({"warning": {"hours": [2, 5], "at": 2, "false_alarms": 0.1}}, "at most 4, the steps"),
        ({"warning": {"hours": [4, 2], "at": 2, "false_alarms": 0.1}}, "expected hours that rise"),
        ({"warning": {"hours": [4], "at": 2, "false_alarms": 0.1}}, "expected at among the hours"),
        ({"warning": {"hours": [4], "at": 4, "false_alarms": 0}}, "warning.false_alarms"),
    ],
)
def test_a_warning_that_cannot_be_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(StudyError, match=complaint):
        warning_study(**change)


@pytest.mark.parametrize("target", ["died", ["day", "died"], ["died", "age"]])
def test_a_target_without_event_and_time_is_refused(target: Any) -> None:
    data = warning_study().model_dump(mode="json", exclude_none=True)["data"]
    with pytest.raises(
        StudyError, match=r"data.target: expected two columns with task = 'warning'"
    ):
        warning_study(data={**data, "target": target})


def test_the_risk_at_the_last_hour_is_explained() -> None:
    target = target_of(warning_study())
    outputs = torch.arange(2.0 * target.outputs).reshape(2, -1)
    asked = target.asked(target.predictions(outputs))
    assert asked.tolist() == [target.outputs - 1] * 2
    assert target.scores(outputs, torch.from_numpy(asked)).tolist() == outputs[:, -1].tolist()
    said = target.words(int(asked[0]), np.full(target.outputs, 0.25), np.array([1.0, 3.0]))
    assert said.said == f"risk at hour {target.outputs}: 25.0 %"
    assert said.own == "the event"
