"""Several answers, some missing: losses by hand, cells that add up, studies and records."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from client.data.read import read_records
from privacy.cell_noise import fit_cells
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.errors import DataError, StudyError
from privacy.stream import Stream
from shared_models.mlp import Mlp
from shared_models.panel import Panel
from shared_models.study import Study, parse_study
from shared_models.tasks import target_of
from simulations.run import simulate
from tests.privacy.networks import KEY, assert_close, naive_sum

PANEL = Panel(("a", "b", "c"))
STEP = 1 << 10
RECORD = st.tuples(*[st.tuples(st.sampled_from((-1, 0, 1)), st.floats(0.001, 0.999))] * 3)
Records = list[tuple[tuple[int, float], ...]]


def arrays(records: Records) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array(records, dtype=np.float64).reshape(-1, 3, 2)
    return rows[:, :, 0].astype(np.int64), rows[:, :, 1]


def many(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Answers that follow their probabilities, a fifth of them missing."""
    draw = np.random.default_rng(1)
    chances = 1 / (1 + np.exp(-draw.normal(-2, 1.5, (count, 3))))
    truth = (draw.random((count, 3)) < chances).astype(np.int64)
    truth[draw.random((count, 3)) < 0.2] = -1
    return truth, chances


# Losses


@settings(max_examples=100, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=6))
def test_a_loss_is_the_mean_over_the_answers_that_are_there(records: Records) -> None:
    targets, chances = arrays(records)
    wanted = []
    for record in records:
        each = [-math.log(p if answer else 1 - p) for answer, p in record if answer >= 0]
        wanted.append(sum(each) / len(each) if each else 0.0)
    outputs = torch.logit(torch.from_numpy(chances)).float()
    losses = PANEL.losses(outputs, torch.from_numpy(targets))
    assert losses.tolist() == pytest.approx(wanted, abs=1e-5)  # float32
    known = [w for w, row in zip(wanted, targets, strict=True) if (row >= 0).any()]
    figure = PANEL.exact_figures(targets, chances)["loss"]
    assert figure.n == len(known)
    assert figure.value == (pytest.approx(np.mean(known), abs=1e-9) if known else None)


def test_a_missing_answer_moves_no_weight() -> None:
    outputs = torch.zeros(2, 3, requires_grad=True)
    PANEL.losses(outputs, torch.tensor([[-1, 1, -1], [-1, -1, -1]])).sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[0, -0.5, 0], [0, 0, 0]]


def test_predictions_are_probabilities() -> None:
    outputs = torch.tensor([[0.0, -800.0, math.log(3)]])
    assert PANEL.predictions(outputs)[0] == pytest.approx([0.5, 0.0, 0.75])


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_a_private_step_is_the_naive_loop(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(5)
    model, x, y = Mlp(4, 3, hidden), torch.randn(9, 4), torch.randint(-1, 2, (9, 3))
    for bound in (0.2, math.inf):
        step = PrivateStep(model, PANEL.losses, Mechanism(bound, 0.0, 0.5, 1.0))
        assert_close(
            step.clipped_sum(x, y, None, Stream(KEY)),
            naive_sum(model, x, y, bound, losses=PANEL.losses),
        )


# Cells


@settings(max_examples=50, deadline=None)
@given(st.lists(RECORD, max_size=6), st.lists(RECORD, max_size=6))
def test_the_cells_of_a_union_are_the_sum_of_the_cells(one: Records, other: Records) -> None:
    counts = [PANEL.count_cells(*arrays(records)) for records in (one, other, one + other)]
    assert len(counts[0]) == len(PANEL.cell_names()) == len(set(PANEL.cell_names()))
    np.testing.assert_array_equal(counts[0] + counts[1], counts[2])
    few = [PANEL.count_noised_cells(*arrays(r), None, STEP) for r in (one, other, one + other)]
    assert len(few[0]) == len(PANEL.noised_cell_names()) == len(set(PANEL.noised_cell_names()))
    np.testing.assert_array_equal(few[0] + few[1], few[2])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(RECORD, st.integers(0, 3)), min_size=1, max_size=9), st.booleans())
def test_a_unit_moves_the_noised_cells_by_their_sensitivity_at_most(
    rows: list[tuple[tuple[tuple[int, float], ...], int]], by_patient: bool
) -> None:
    targets, predictions = arrays([record for record, _ in rows])
    units = np.array([unit for _, unit in rows]) if by_patient else np.arange(len(rows))
    whole = PANEL.count_noised_cells(targets, predictions, units if by_patient else None, STEP)
    for unit in np.unique(units):
        kept = units != unit
        own = units[kept] if by_patient else None
        part = PANEL.count_noised_cells(targets[kept], predictions[kept], own, STEP)
        assert np.linalg.norm(whole - part) <= PANEL.cell_sensitivity * STEP * (1 + 1e-12)


def test_a_record_with_every_answer_moves_them_by_just_that() -> None:
    targets, predictions = arrays([((1, 0.9), (0, 0.1), (1, 0.2))])
    counts = PANEL.count_noised_cells(targets, predictions, None, STEP)
    assert np.linalg.norm(counts) == pytest.approx(PANEL.cell_sensitivity * STEP)


def test_cells_tell_what_predictions_do() -> None:
    targets, chances = many()
    exact = PANEL.exact_figures(targets, chances)
    counted = PANEL.figures_from_cells(PANEL.count_cells(targets, chances))
    assert tuple(exact) == tuple(counted) == PANEL.metrics
    areas = []
    for place, name in enumerate(PANEL.names):
        known = targets[:, place] >= 0
        areas.append(roc_auc_score(targets[known, place], chances[known, place]))
        assert exact[f"auc_{name}"].value == pytest.approx(areas[-1])
        assert exact[f"auc_{name}"].n == known.sum()
    assert exact["auc"].value == pytest.approx(np.mean(areas))
    for name, one in exact.items():
        other = counted[name].value
        assert one.value is not None
        assert other == pytest.approx(one.value, rel=0.02)  # 256 bins
        assert counted[name].n == one.n


def test_noised_figures_are_near_the_exact_ones_where_there_are_many_records() -> None:
    targets, chances = many(20_000)
    noise = fit_cells(5.0, PANEL.cell_sensitivity, len(PANEL.noised_cell_names()), 3, 3)
    cells = PANEL.count_noised_cells(targets, chances, None, noise.step)
    told = PANEL.figures_from_noised_cells(noise.encode(cells, Stream(KEY)), noise, 1)
    exact = PANEL.exact_figures(targets, chances)
    assert tuple(told) == PANEL.metrics
    for name in ("auc", "auc_a", "auc_c"):
        one, other = told[name].value, exact[name].value
        assert one is not None
        assert other is not None
        assert abs(one - other) < 0.02, name  # ten bins
        assert told[name].low is not None
    assert told["ef1"].value is told["bedroc"].value is told["loss"].value is None


def test_what_noise_drowns_is_not_told() -> None:
    """Of answer c one in a hundred is yes: 20, under noise of deviation 13 in each of ten bins."""
    targets, chances = many(2000)
    rare = np.random.default_rng(2).random(2000) < 0.01
    targets[:, 2] = rare
    noise = fit_cells(5.0, PANEL.cell_sensitivity, len(PANEL.noised_cell_names()), 3, 1)
    cells = PANEL.count_noised_cells(targets, chances, None, noise.step)
    told = PANEL.figures_from_noised_cells(noise.encode(cells, Stream(KEY)), noise, 1)
    assert told["auc_c"].value is None
    assert told["auc_a"].value is not None
    assert told["auc"].value == pytest.approx(np.mean([told["auc_a"].value, told["auc_b"].value]))


def test_what_is_not_finite_is_refused_and_under_noise_left_in_silence() -> None:
    targets, predictions = arrays([((1, 0.9), (0, 0.1), (1, 0.2))] * 2)
    predictions[0, 1] = math.nan
    with pytest.raises(DataError, match="finite"):
        PANEL.count_cells(targets, predictions)
    with pytest.raises(DataError, match="finite"):
        PANEL.exact_figures(targets, predictions)
    assert PANEL.count_noised_cells(targets, predictions, None, STEP).sum() == 3 * STEP


# Studies and records

ASSAY = {"kind": "category", "values": ["0", "1"], "missing": "constant"}
DOCUMENT: dict[str, Any] = {
    "name": "alarms",
    "task": "molecule",
    "rounds": 3,
    "data": {
        "target": ["x", "y"],
        "columns": {"smiles": {"kind": "molecule", "buckets": 64}, "x": ASSAY, "y": ASSAY},
    },
    "model": {"name": "mlp", "hidden": [4]},
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


def study(columns: dict[str, Any] | None = None, **sections: Any) -> Study:
    data = {**DOCUMENT["data"], **sections.pop("data", {})}
    data["columns"] = {**DOCUMENT["data"]["columns"], **(columns or {})}
    return parse_study({**DOCUMENT, "data": data, **sections})


@pytest.mark.parametrize(
    "column", [{"kind": "number", "low": 0, "high": 1}, {"kind": "category", "values": list("012")}]
)
def test_a_panel_is_of_categories_of_two(column: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=r"data.target: .* or several categories of two values"):
        study({"y": column})


def test_one_assay_alone_is_a_label() -> None:
    lone = study({"x": {"kind": "category", "values": ["0", "1"]}}, data={"target": "x"})
    assert target_of(lone).classes == ("0", "1")
    assert target_of(study()).classes == ("x", "y")


def test_missing_answers_are_read_and_others_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "molecules.csv"
    path.write_text("y,smiles,x\n1,CCO,\n,CCN,0\n")
    assert read_records(study(), path).targets.tolist() == [[-1, 1], [0, -1]]
    for text, named in (
        ("y,smiles,x\n1,CCO,2\n", "'x'"),
        ("y,smiles,x\n1,,1\n", "'smiles'"),
        ("smiles,x\nCCO,1\n", "'y'"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=named):
            read_records(study(), path)
    strict = study({"x": {"kind": "category", "values": ["0", "1"]}})
    path.write_text("y,smiles,x\n1,CCO,\n")
    with pytest.raises(DataError, match="'x'"):
        read_records(strict, path)


@pytest.mark.parametrize("privacy", [{"mode": "none"}, PRIVATE], ids=["none", "private"])
def test_sites_with_one_class_one_record_or_none_train(
    tmp_path: Path, privacy: dict[str, Any]
) -> None:
    draw = np.random.default_rng(6)
    rows = [
        f"{'C' * draw.integers(1, 9)}{draw.choice(['O', 'N', 'Cl'])},{draw.choice(['0', '1', ''])},"
        f"{draw.integers(2)}"
        for _ in range(60)
    ]
    sites = {
        "all": rows[:40],
        "no-x": [f"{row.split(',')[0]},,{row[-1]}" for row in rows[40:]],
        "one-class": [f"{row.split(',')[0]},1,1" for row in rows[40:]],
        "one": rows[:1],
        "none": [],
    }
    folder = tmp_path / "sites"
    folder.mkdir()
    for name, own in sites.items():
        (folder / f"{name}.csv").write_text("\n".join(["smiles,x,y", *own]) + "\n")
    outcome = simulate(study(privacy=privacy), folder, tmp_path / "out", with_baselines=True)
    assert np.isfinite(outcome.checkpoint.state.model).all()
    figures = outcome.figures()
    assert set(figures) == {"auc", "ef1", "bedroc", "loss", "auc_x", "auc_y"}
    assert figures["auc"].value is not None
    assert outcome.results()["released"] is not None
