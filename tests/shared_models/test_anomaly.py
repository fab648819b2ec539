"""Anomalies: nothing is learnt from what is not normal, and errors are counted by the union."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from privacy.cell_noise import fit_cells
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.errors import DataError, StudyError
from privacy.stream import Stream
from shared_models.anomaly import Anomaly
from shared_models.autoencoder import Autoencoder
from shared_models.inputs import input_spec
from shared_models.registry import build_network
from shared_models.study import Study, parse_study
from shared_models.tasks import target_of
from simulations.run import simulate
from tests.privacy.networks import KEY, assert_close, naive_sum

TARGET = Anomaly(2)
STEP = 1 << 10
RECORD = st.tuples(st.integers(0, 1), st.floats(1e-6, 20.0))
Records = list[tuple[int, float]]


def arrays(records: Records) -> tuple[np.ndarray, np.ndarray]:
    targets = np.array([target for target, _ in records], dtype=np.int64)
    return targets, np.array([error for _, error in records]).reshape(-1, 1)


# The network and its loss


@pytest.mark.parametrize("level", [False, True])
def test_the_answer_is_the_mean_squared_error_of_the_copy(level: bool) -> None:
    torch.manual_seed(1)
    network, x = Autoencoder(6, (4,), 2, level=level), torch.rand(5, 1, 2, 3)
    flat = x.flatten(1)
    if level:
        flat = (flat - flat.mean(1, keepdim=True)) / (
            flat.var(1, False, keepdim=True) + 1e-4
        ).sqrt()
    wanted = (network.up(network.down(flat)) - flat).square().mean(1)
    torch.testing.assert_close(network(x)[:, 0], wanted)
    assert network(x).shape == (5, 1)


def test_brightness_and_contrast_of_a_picture_do_not_matter() -> None:
    torch.manual_seed(1)
    network, x = Autoencoder(9, (4,), 2, level=True), torch.rand(3, 1, 3, 3) * 4
    torch.testing.assert_close(network(x), network(x * 0.5 + 0.3), rtol=1e-2, atol=1e-3)
    assert torch.isfinite(network(torch.full((1, 1, 3, 3), 0.7))).all()  # a blank picture


def test_nothing_is_learnt_from_what_is_not_normal() -> None:
    torch.manual_seed(2)
    network, x = Autoencoder(4, (3,), 2), torch.rand(2, 4)
    losses = TARGET.losses(network(x), torch.tensor([0, 1]))
    assert losses[0] == network(x)[0, 0]
    assert losses[1] == 0
    gradients = torch.autograd.grad(losses[1], list(network.parameters()))
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("level", [False, True])
def test_a_private_step_is_the_naive_loop(level: bool) -> None:
    torch.manual_seed(5)
    model, x, y = Autoencoder(6, (5,), 2, level=level), torch.randn(9, 6), torch.arange(9) % 2
    for bound in (0.1, math.inf):
        step = PrivateStep(model, TARGET.losses, Mechanism(bound, 0.0, 0.5, 1.0))
        assert_close(
            step.clipped_sum(x, y, None, Stream(KEY)),
            naive_sum(model, x, y, bound, losses=TARGET.losses),
        )


# Cells


@settings(max_examples=50, deadline=None)
@given(st.lists(RECORD, max_size=8), st.lists(RECORD, max_size=8))
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
    rows: list[tuple[tuple[int, float], int]], by_patient: bool
) -> None:
    targets, predictions = arrays([record for record, _ in rows])
    units = np.array([unit for _, unit in rows]) if by_patient else np.arange(len(rows))
    whole = TARGET.count_noised_cells(targets, predictions, units if by_patient else None, STEP)
    for unit in np.unique(units):
        kept = units != unit
        own = units[kept] if by_patient else None
        part = TARGET.count_noised_cells(targets[kept], predictions[kept], own, STEP)
        assert np.linalg.norm(whole - part) <= TARGET.cell_sensitivity * STEP


def many(count: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    targets = (draw.random(count) < 0.3).astype(np.int64)
    return targets, np.exp(draw.normal(-3 + targets, 0.5))[:, None]


def test_figures_are_scikit_learns_and_cells_tell_the_same() -> None:
    targets, errors = many(3000)
    exact = TARGET.exact_figures(targets, errors)
    counted = TARGET.figures_from_cells(TARGET.count_cells(targets, errors))
    assert tuple(exact) == tuple(counted) == TARGET.metrics
    assert exact["auc"].value == pytest.approx(roc_auc_score(targets, errors[:, 0]))
    assert exact["loss"].value == pytest.approx(errors[targets == 0].mean())
    for name, one in exact.items():
        assert counted[name].value == pytest.approx(one.value, abs=0.01)  # bins of 1 %
        assert counted[name].n == one.n


def test_sensitivity_is_at_five_alarms_in_a_hundred_normal_records() -> None:
    """Normal errors 1 to 100: at most 5 alarm above 95; of the four others three lie there."""
    rows: Records = [(0, k) for k in range(1, 101)] + [(1, k + 0.5) for k in (90, 95, 97, 200)]
    figure = TARGET.exact_figures(*arrays(rows))["sensitivity_95"]
    assert figure.value == pytest.approx(0.75)
    assert figure.n == 4
    worst: Records = [(0, 5.0)] * 10 + [(1, 1.0)] * 3
    assert TARGET.exact_figures(*arrays(worst))["sensitivity_95"].value == 0.0


@pytest.mark.parametrize("rows", [[], [(0, 0.5)], [(1, 0.5)]])
def test_without_both_kinds_there_is_no_ranking(rows: Records) -> None:
    for figures in (
        TARGET.exact_figures(*arrays(rows)),
        TARGET.figures_from_cells(TARGET.count_cells(*arrays(rows))),
    ):
        assert figures["auc"].value is figures["sensitivity_95"].value is None
        assert (figures["loss"].value is None) == (not rows or rows[0][0] == 1)


def test_noised_figures_are_near_the_exact_ones_where_there_are_many_records() -> None:
    targets, errors = many(20_000)
    noise = fit_cells(5.0, TARGET.cell_sensitivity, len(TARGET.noised_cell_names()), 3, 3)
    cells = TARGET.count_noised_cells(targets, errors, None, noise.step)
    told = TARGET.figures_from_noised_cells(noise.encode(cells, Stream(KEY)), noise, 1)
    one, other = told["auc"].value, TARGET.exact_figures(targets, errors)["auc"].value
    assert one is not None
    assert other is not None
    assert abs(one - other) < 0.02  # bins of half as much again
    assert told["loss"].value is None


def test_what_is_not_finite_is_refused_and_under_noise_left_in_silence() -> None:
    targets, errors = arrays([(0, math.nan), (1, 0.5)])
    with pytest.raises(DataError, match="finite"):
        TARGET.count_cells(targets, errors)
    with pytest.raises(DataError, match="finite"):
        TARGET.exact_figures(targets, errors)
    assert TARGET.count_noised_cells(targets, errors, None, STEP).sum() == STEP


# The linear counterpart


def test_principal_components_are_of_normal_records_alone() -> None:
    """Normal records lie on a line, and those off it are told by their distance from it."""
    draw = np.random.default_rng(4)
    line = np.array([1.0, 2.0, -1.0])
    normal = draw.normal(size=(40, 1)) * line
    other = draw.normal(size=(40, 3)) * 5
    inputs, targets = np.concatenate((normal, other)), np.repeat([0, 1], 40)
    found = Anomaly(1).linear(inputs, targets, np.array([3 * line, [0.0, 0.0, 3.0]]))
    away = np.array([0.0, 0.0, 3.0])
    away = away - (away @ line) / (line @ line) * line
    # 0.3: the mean of 40 normal records is not quite 0
    assert found[:, 0] == pytest.approx([0.0, (away**2).mean()], abs=0.3)
    assert found[0, 0] == pytest.approx(0, abs=1e-12)
    nothing = Anomaly(1).linear(other, np.ones(40, dtype=np.int64), other)
    assert nothing.shape == (40, 1)


# Studies and whole runs

DOCUMENT: dict[str, Any] = {
    "name": "odd",
    "task": "anomaly",
    "rounds": 3,
    "data": {
        "target": "ill",
        "positive": ["yes"],
        "columns": {
            "age": {"kind": "number", "low": 0, "high": 100},
            "ward": {"kind": "category", "values": ["a", "b"]},
            "ill": {"kind": "category", "values": ["no", "yes"]},
        },
    },
    "model": {"name": "autoencoder", "hidden": [4], "code": 1},
    "training": {"learning_rate": 0.1},
    "privacy": {"mode": "none"},
    "simulation": {"partition": "files"},
}
PRIVATE = {
    "mode": "distributed",
    "epsilon": 2.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "expected_batch": 8,
    "records_max": 50,
}


def study(**sections: Any) -> Study:
    data = {**DOCUMENT["data"], **sections.pop("data", {})}
    return parse_study({**DOCUMENT, "data": data, **sections})


def test_what_is_not_normal_must_be_said() -> None:
    with pytest.raises(
        StudyError, match=r"data\.positive: missing, expected with task = 'anomaly'"
    ):
        study(data={"positive": []})
    with pytest.raises(StudyError, match="target"):
        study(data={"target": "age"})


@pytest.mark.parametrize(("task", "model"), [("anomaly", "mlp"), ("tabular", "autoencoder")])
def test_a_network_of_another_task_is_refused_by_name(task: str, model: str) -> None:
    wrong = study(task=task, model={"name": model})
    with pytest.raises(StudyError, match=rf"model\.name: task '{task}' expected"):
        build_network(wrong)
    target_of(wrong)


@pytest.mark.parametrize(
    ("column", "kind", "level"),
    [
        ({"kind": "image", "height": 4, "width": 5}, "image", True),
        (
            {"kind": "series", "steps": 3, "variables": {"hr": {"low": 0, "high": 1}}},
            "series",
            False,
        ),
        ({"kind": "number", "low": 0, "high": 1}, "features", False),
    ],
)
def test_pictures_series_and_rows_are_looked_at(
    column: dict[str, Any], kind: str, level: bool
) -> None:
    columns = {"x": column, "ill": DOCUMENT["data"]["columns"]["ill"]}
    one = study(data={"columns": columns})
    assert input_spec(one).kind == kind
    network = build_network(one)
    assert isinstance(network, Autoencoder)
    assert network.level == level
    assert network(torch.rand(2, *input_spec(one).shape)).shape == (2, 1)


@pytest.mark.parametrize("privacy", [{"mode": "none"}, PRIVATE], ids=["none", "private"])
def test_sites_with_one_class_one_record_or_none_train(
    tmp_path: Path, privacy: dict[str, Any]
) -> None:
    draw = np.random.default_rng(6)
    rows = [f"{draw.integers(20, 90)},{draw.choice(['a', 'b'])},{draw.choice(['no', 'yes'])}"
            for _ in range(60)]  # fmt: skip
    sites = {
        "all": rows[:30],
        "normal": [row.replace("yes", "no") for row in rows[30:45]],
        "ill": [row.replace("no", "yes") for row in rows[45:]],
        "one": rows[:1],
        "none": [],
    }
    folder = tmp_path / "sites"
    folder.mkdir()
    for name, own in sites.items():
        (folder / f"{name}.csv").write_text("\n".join(["age,ward,ill", *own]) + "\n")
    outcome = simulate(study(privacy=privacy), folder, tmp_path / "out", with_baselines=True)
    assert np.isfinite(outcome.checkpoint.state.model).all()
    assert outcome.figures()["auc"].value is not None
    assert outcome.results()["released"] is not None
