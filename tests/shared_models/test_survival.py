"""Time until an event: losses by hand, cells that add up, what a study and its records must be."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.read import read_records
from client.training import BATCH_SIZE, Tensors, Trainer
from privacy.cell_noise import fit_cells
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.errors import DataError, StudyError
from privacy.stream import Stream
from shared_models.metrics import Figure
from shared_models.mlp import Mlp
from shared_models.registry import build_network
from shared_models.strategies import first_state
from shared_models.study import Study, load_study, parse_study
from shared_models.survival import RISKS, Lifetime
from shared_models.tasks import target_of
from shared_models.weights import vector_of
from simulations.run import simulate
from tests.privacy.networks import KEY, assert_close, naive_sum

YEARS = Lifetime(0.0, (1.0, 2.0, 4.0), (2.0, 4.0))
COX = Lifetime(0.0, (1.0, 2.0, 4.0), (2.0, 4.0), cox=True)
STEP = 1 << 10

# One record: its time, whether the event happened, and the hazards that are predicted of it.
RECORD = st.tuples(
    st.sampled_from((0.0, 0.4, 0.5, 1.0, 1.6, 2.0, 3.0, 3.5, 4.0, 7.0)),
    st.booleans(),
    st.tuples(*[st.floats(0.01, 0.9)] * 3),
)
Records = list[tuple[float, bool, tuple[float, float, float]]]


def arrays(records: Records) -> tuple[np.ndarray, np.ndarray]:
    targets = np.array([(t, e) for t, e, _ in records], dtype=np.float32).reshape(-1, 2)
    hazards = np.array([h for _, _, h in records], dtype=np.float64).reshape(-1, 3)
    return targets, np.cumprod(1 - hazards, axis=1)


def logits(records: Records) -> torch.Tensor:
    return torch.logit(torch.tensor([h for _, _, h in records], dtype=torch.float64)).float()


# Losses and predictions


def test_losses_by_hand() -> None:
    """An event at 1.6: it lived the first year and not the second. Cut short at 1.6: the same two
    years lived, since it was seen beyond the middle of the second; at 1.4: the first alone."""
    rows: Records = [(1.6, True, (0.1, 0.2, 0.3)), (1.6, False, (0.1, 0.2, 0.3)),
                     (1.4, False, (0.1, 0.2, 0.3)), (0.0, True, (0.1, 0.2, 0.3)),
                     (9.0, True, (0.1, 0.2, 0.3)), (0.0, False, (0.1, 0.2, 0.3))]  # fmt: skip
    chances = [0.9 * 0.2, 0.9 * 0.8, 0.9, 0.1, 0.9 * 0.8 * 0.7, 1.0]
    losses = YEARS.losses(logits(rows), torch.from_numpy(arrays(rows)[0]))
    # 1e-5: float32
    assert losses.tolist() == pytest.approx([-math.log(p) for p in chances], abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=6))
def test_the_loss_is_a_sum_over_the_records_own_intervals(records: Records) -> None:
    wanted = []
    for time, event, hazards in records:
        total, before = 0.0, 0.0
        for hazard, edge in zip(hazards, YEARS.edges, strict=True):
            if event and (before < time <= edge or time == before == 0):
                total -= math.log(hazard)
            elif (edge < time) if event else (time >= (before + edge) / 2):
                total -= math.log(1 - hazard)
            before = edge
        wanted.append(total)
    targets = torch.from_numpy(arrays(records)[0])
    assert YEARS.losses(logits(records), targets).tolist() == pytest.approx(wanted, abs=1e-4)
    figures = YEARS.exact_figures(*arrays(records))
    assert figures["loss"].value == pytest.approx(np.mean(wanted), abs=1e-6)


def test_predictions_are_the_products_of_what_was_survived() -> None:
    outputs = torch.logit(torch.tensor([[0.1, 0.2, 0.5]]))
    assert YEARS.predictions(outputs)[0] == pytest.approx([0.9, 0.72, 0.36], abs=1e-6)
    extreme = YEARS.predictions(torch.tensor([[-80.0, 200.0, 0.0]]))[0]
    assert extreme == pytest.approx([1.0, 0.0, 0.0])


def test_cox_by_hand() -> None:
    """Risks 2, 3, 5 who end at 1, 2+, 3: the event at 1 is 2 of 10, that at 3 is 5 of 5."""
    outputs = torch.log(torch.tensor([[2.0], [3.0], [5.0]]))
    targets = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
    assert COX.losses(outputs, targets).tolist() == pytest.approx([-math.log(0.2), 0, 0], abs=1e-6)
    assert COX.predictions(outputs)[:, 0] == pytest.approx([2 / 3, 3 / 4, 5 / 6])


@pytest.mark.parametrize("target", [YEARS, COX])
def test_a_batch_without_records_has_no_losses(target: Lifetime) -> None:
    outputs = torch.zeros(0, target.outputs)
    assert target.losses(outputs, torch.zeros(0, 2)).shape == (0,)
    figures = target.exact_figures(np.zeros((0, 2)), target.predictions(outputs))
    assert all(figure.value is None for figure in figures.values())


# Cells


@settings(max_examples=50, deadline=None)
@given(st.lists(RECORD, max_size=8), st.lists(RECORD, max_size=8))
def test_the_cells_of_a_union_are_the_sum_of_the_cells(one: Records, other: Records) -> None:
    counts = [YEARS.count_cells(*arrays(records)) for records in (one, other, one + other)]
    assert len(counts[0]) == len(YEARS.cell_names()) == len(set(YEARS.cell_names()))
    np.testing.assert_array_equal(counts[0] + counts[1], counts[2])
    few = [YEARS.count_noised_cells(*arrays(r), None, STEP) for r in (one, other, one + other)]
    assert len(few[0]) == len(YEARS.noised_cell_names()) == len(set(YEARS.noised_cell_names()))
    np.testing.assert_array_equal(few[0] + few[1], few[2])


@settings(max_examples=100, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=8))
def test_the_figures_of_cells_are_those_of_pairs_in_different_intervals(records: Records) -> None:
    targets, predictions = arrays(records)
    figures = YEARS.figures_from_cells(YEARS.count_cells(targets, predictions))
    risk = np.searchsorted(RISKS, 1 - predictions[:, 2], side="right")
    place = np.searchsorted([1.0, 2.0, 4.0], targets[:, 0])
    won = pairs = 0.0
    for i, (time, event, _) in enumerate(records):
        for j in range(len(records)):
            if event and time <= 4 and place[i] < place[j]:
                pairs += 1
                won += 0.5 * (risk[i] == risk[j]) + float(risk[i] > risk[j])
    assert figures["c_index"].value == (pytest.approx(won / pairs) if pairs else None)
    exact = YEARS.exact_figures(targets, predictions)
    # The fixed point has steps of 2^-24, and limits the root of its error in the variance.
    for name, error in (("value", 1e-6), ("low", 0.02), ("high", 0.02)):
        one, other = getattr(figures["loss"], name), getattr(exact["loss"], name)
        assert one is other is None or one == pytest.approx(other, abs=error)


def test_calibration_is_the_gap_between_what_was_said_and_what_happened() -> None:
    """Ten records of risk .28 by 2: two die in year 2, eight are alive at 9: .2 happened."""
    rows: Records = [(1.6, True, (0.1, 0.2, 0.3))] * 2 + [(9.0, False, (0.1, 0.2, 0.3))] * 8
    exact = YEARS.exact_figures(*arrays(rows))
    counted = YEARS.figures_from_cells(YEARS.count_cells(*arrays(rows)))
    assert exact["calibration_2"].value == pytest.approx(0.08)
    assert counted["calibration_2"].value == pytest.approx(0.08, abs=1e-6)
    assert exact["calibration_2"].high == pytest.approx(0.08 + 1.959964 * math.sqrt(0.016))
    assert exact["calibration_4"].value == pytest.approx(1 - 0.504 - 0.2)


def test_the_binned_c_is_near_the_one_of_the_records() -> None:
    draw = np.random.default_rng(3)
    hazards = 1 / (1 + np.exp(-draw.normal(-1, 1, (400, 1)) - np.zeros(8)))
    target = Lifetime(0.0, tuple(range(1, 9)), (4.0, 8.0))
    lived = (draw.random((400, 8)) < hazards).argmax(axis=1) + draw.random(400)
    targets = np.stack((lived, draw.random(400) < 0.7), axis=1)
    predictions = np.cumprod(1 - hazards, axis=1)
    exact = target.exact_figures(targets, predictions)["c_index"]
    counted = target.figures_from_cells(target.count_cells(targets, predictions))["c_index"]
    assert exact.value is not None
    assert counted.value is not None
    assert abs(exact.value - counted.value) < 0.03  # pairs within an interval are the hard ones
    assert exact.n == counted.n == 400


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(RECORD, st.integers(0, 3)), min_size=1, max_size=10), st.booleans())
def test_a_unit_moves_the_noised_cells_by_one_count_at_most(
    rows: list[tuple[tuple[float, bool, tuple[float, float, float]], int]], by_patient: bool
) -> None:
    targets, predictions = arrays([record for record, _ in rows])
    units = np.array([unit for _, unit in rows])
    if not by_patient:
        units = np.arange(len(rows))
    given = units if by_patient else None
    whole = YEARS.count_noised_cells(targets, predictions, given, STEP)
    for unit in np.unique(units):
        kept = units != unit
        part = YEARS.count_noised_cells(
            targets[kept], predictions[kept], None if given is None else given[kept], STEP
        )
        assert np.linalg.norm(whole - part) <= YEARS.cell_sensitivity * STEP


def test_what_is_not_finite_is_refused_and_under_noise_left_in_silence() -> None:
    targets, predictions = arrays([(1.0, True, (0.1, 0.2, 0.3)), (2.0, True, (0.1, 0.2, 0.3))])
    predictions[0, 1] = math.nan
    with pytest.raises(DataError, match="finite"):
        YEARS.count_cells(targets, predictions)
    with pytest.raises(DataError, match="finite"):
        YEARS.exact_figures(targets, predictions)
    assert YEARS.count_noised_cells(targets, predictions, None, STEP).sum() == STEP


def test_noised_figures_are_near_the_exact_ones_where_there_are_many_records() -> None:
    draw = np.random.default_rng(4)
    hazards = 1 / (1 + np.exp(-draw.normal(-1, 1, (20_000, 1)) - np.zeros(3)))
    died = draw.random((20_000, 3)) < hazards
    years = np.where(died.any(axis=1), died.argmax(axis=1), 3)
    targets = np.stack((np.array([0.5, 1.5, 3.0, 8.0])[years], years < 3), axis=1)
    predictions = np.cumprod(1 - hazards, axis=1)
    noise = fit_cells(5.0, YEARS.cell_sensitivity, len(YEARS.noised_cell_names()), 3, 3)
    cells = YEARS.count_noised_cells(targets, predictions, None, noise.step)
    told = YEARS.figures_from_noised_cells(noise.encode(cells, Stream(KEY)), noise, 1)
    exact = YEARS.exact_figures(targets, predictions)
    for name in ("c_index", "calibration_4"):
        one, other = told[name].value, exact[name].value
        assert one is not None
        assert other is not None
        assert abs(one - other) < 0.05, name  # six bins of risk and three of time, not the noise
        assert told[name].low is not None
    assert told["calibration_2"] == Figure(None, None, None, told["c_index"].n)
    assert told["loss"].value is None


# The report


def test_the_groups_of_a_report_rise_in_risk_and_hold_every_record_once() -> None:
    rows: Records = [(1.0 + k % 7, k % 3 > 0, (0.01 + k / 40,) * 3) for k in range(30)]
    curves = YEARS.curves(*arrays(rows))
    assert [group["group"] for group in curves["groups"]] == ["low", "middle", "high"]
    assert [group["n"] for group in curves["groups"]] == [10, 10, 10]
    for group in curves["groups"]:
        assert set(group["times"]) <= set(YEARS.edges)  # never a single record's time
        assert group["shares"] == sorted(group["shares"], reverse=True)
    scores = [row["score"] for row in curves["calibration"]]
    assert scores == sorted(scores)


# Training


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_a_private_step_is_the_naive_loop(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(5)
    model, x = Mlp(4, 3, hidden), torch.randn(9, 4)
    y = torch.stack((torch.rand(9) * 6, (torch.rand(9) < 0.5).float()), dim=1)
    for bound in (0.3, math.inf):
        step = PrivateStep(model, YEARS.losses, Mechanism(bound, 0.0, 0.5, 1.0))
        assert_close(
            step.clipped_sum(x, y, None, Stream(KEY)),
            naive_sum(model, x, y, bound, losses=YEARS.losses),
        )


DOCUMENT: dict[str, Any] = {
    "name": "lives",
    "task": "survival",
    "rounds": 3,
    "data": {
        "target": ["years", "died"],
        "columns": {
            "age": {"kind": "number", "low": 0, "high": 100},
            "ward": {"kind": "category", "values": ["a", "b"]},
            "years": {"kind": "number", "low": 0, "high": 10},
            "died": {"kind": "category", "values": ["no", "yes"]},
        },
    },
    "survival": {"edges": [1, 2, 5, 10], "horizons": [2, 5]},
    "model": {"name": "mlp", "hidden": [3]},
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
    """The study with some keys of its sections replaced."""
    document: dict[str, Any] = {**DOCUMENT}
    for name, changes in sections.items():
        replaced = isinstance(changes, dict) and name != "privacy"
        document[name] = {**DOCUMENT[name], **changes} if replaced else changes
    return parse_study(document)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"survival": None}, "survival: expected with task = 'survival'"),
        ({"task": "tabular"}, "survival: expected with task = 'survival'"),
        ({"data": {"target": "years"}}, "data.target: expected two columns"),
        ({"data": {"target": ["died", "years"]}}, "a time .number. and whether the event happened"),
        ({"data": {"target": ["years", "died", "ward"]}}, "data.target: expected two columns"),
        ({"survival": {"edges": [2, 5, 20]}}, "survival.edges: .* up to 10, the range of 'years'"),
        ({"survival": {"edges": [0, 2, 5]}}, "survival.edges: expected times above 0"),
        ({"survival": {"edges": [2, 2, 5]}}, "expected edges that rise"),
        ({"survival": {"horizons": [3]}}, "expected horizons that are among the edges"),
        ({"survival": {"loss": "cox"}, "privacy": PRIVATE}, "survival.loss: 'cox' compares"),
        *(
            (
                {"survival": {"loss": "cox"}, "training": {**training}},
                rf"training\.{key}: expected none with survival.loss = 'cox'",
            )
            for key, training in {
                "local_epochs": {"local_epochs": 1, "batch_size": 8},
                "local_steps": {"local_steps": 1},
                "batch_size": {"batch_size": 500},
            }.items()
        ),
    ],
)
def test_a_study_that_does_not_fit_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(StudyError, match=named):
        study(**changes)


def test_under_cox_a_sites_step_compares_each_event_with_all_that_are_at_risk() -> None:
    """Also at a site of more records than a batch has where a study names steps."""
    asked, count = study(survival={"loss": "cox"}), 3 * BATCH_SIZE + 1
    torch.manual_seed(7)
    x = torch.randn(count, 3)
    y = torch.stack((torch.rand(count) * 9, (torch.rand(count) < 0.6).float()), dim=1)
    network = build_network(asked, 4)
    risks, chances = network(x)[:, 0], []
    for row in range(count):
        at_risk = y[:, 0] >= y[row, 0]
        chances.append(y[row, 1] * (risks[row] - risks[at_risk].logsumexp(0)))
    gradients = torch.autograd.grad(-torch.stack(chances).mean(), list(network.parameters()))
    state = first_state(asked.aggregation, vector_of(network))
    update = Trainer(asked, None).train(state, Tensors(x, y), lambda *_: KEY)
    moved = -0.1 * torch.cat([one.flatten() for one in gradients])
    # float32 of some hundred terms, and of the weights from which it is the difference
    np.testing.assert_allclose(update.change, moved.numpy(), rtol=1e-3, atol=1e-6)
    assert update.records == count


@pytest.mark.parametrize("more", [[], ["model.hidden=[]"]], ids=["DeepSurv", "linear"])
def test_the_example_can_be_run_with_cox(more: list[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "brca" / "study.toml"
    assert target_of(load_study(path, ["survival.loss=cox", *more])).headline == "c_index"


def test_times_and_events_that_are_missing_or_wrong_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "lives.csv"
    for row, named in (
        ("50,a,,yes", "'years'"),
        ("50,a,3,", "'died'"),
        ("50,a,30,yes", "'years'"),
        ("50,a,3,maybe", "'died'"),
    ):
        path.write_text(f"age,ward,years,died\n{row}\n")
        with pytest.raises(DataError, match=named):
            read_records(study(), path)
    path.write_text("age,ward,years\n50,a,3\n")
    with pytest.raises(DataError, match="'died'"):
        read_records(study(), path)


def test_times_and_events_are_read_in_the_studys_order(tmp_path: Path) -> None:
    path = tmp_path / "lives.csv"
    path.write_text("died,age,years,ward\nyes,50,3.5,a\nno,60,2,b\n")
    records = read_records(study(), path)
    assert records.targets.dtype == np.float32
    assert records.targets.tolist() == [[3.5, 1.0], [2.0, 0.0]]
    assert records.inputs.shape == (2, 3)  # neither time nor event is an input


@pytest.mark.parametrize(
    "changes",
    [{}, {"survival": {"loss": "cox"}}, {"privacy": PRIVATE}],
    ids=["hazards", "cox", "private"],
)
def test_sites_with_one_class_one_record_or_none_train(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    draw = np.random.default_rng(6)
    rows = []
    for _ in range(60):
        age = draw.integers(20, 90)
        years = min(10.0, draw.exponential(400 / age))
        rows.append(f"{age},{draw.choice(['a', 'b'])},{years:.2f},{draw.choice(['no', 'yes'])}")
    sites = {
        "all": rows[:30],
        "nobody-died": [row.replace("yes", "no") for row in rows[30:50]],
        "all-died": [row.replace("no", "yes") for row in rows[50:]],
        "one": rows[:1],
        "none": [],
    }
    folder = tmp_path / "sites"
    folder.mkdir()
    for name, own in sites.items():
        (folder / f"{name}.csv").write_text("\n".join(["age,ward,years,died", *own]) + "\n")
    outcome = simulate(study(**changes), folder, tmp_path / "out", with_baselines=True)
    assert np.isfinite(outcome.checkpoint.state.model).all()
    c = outcome.figures()["c_index"]
    assert c.value is not None
    assert c.n == len(outcome.targets)
    released = outcome.results()["released"]
    assert isinstance(released, dict)
    assert set(released) == set(target_of(outcome.study).metrics)
