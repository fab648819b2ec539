"""Fusion: every part is read, a part that is missing says and learns nothing, the rest as ever."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data.read import read_records
from client.explain.layout import layout_of
from client.training import Tensors
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.errors import DataError, StudyError
from privacy.stream import Stream
from shared_models.fusion import Fusion
from shared_models.inputs import input_spec
from shared_models.registry import build_network
from shared_models.study import Study, parse_study
from shared_models.tasks import target_of
from simulations.baselines import linear
from simulations.run import simulate
from tests.privacy.networks import KEY, assert_close, naive_sum

FLAG = {"kind": "category", "values": ["0", "1"]}
COLUMNS: dict[str, Any] = {
    "ill": FLAG,
    "age": {"kind": "number", "low": 0, "high": 10, "missing": "indicator"},
    "sex": {**FLAG, "missing": "indicator"},
    "stay": {
        "kind": "series",
        "steps": 3,
        "missing": "forward_indicator",
        "variables": {"pulse": {"low": 0, "high": 10}, "pain": {"low": 0, "high": 10}},
    },
    "film": {"kind": "image", "height": 4, "width": 4, "high": 10, "missing": "constant"},
}
PARTS = ("static", "series", "image")
# age, its mark, sex 0, sex 1, its mark; 3 steps of pulse, pain and their marks; 16 pixels
SIZES = (5, 12, 16)


def fusion_study(columns: tuple[str, ...] = tuple(COLUMNS), **changes: Any) -> Study:
    document: dict[str, Any] = {
        "name": "ward",
        "task": "fusion",
        "rounds": 2,
        "data": {
            "format": "npz",
            "target": "ill",
            "columns": {name: COLUMNS[name] for name in columns},
        },
        "model": {"name": "fusion", "width": 3, "hidden": [4], "recurrent": [2], "channels": [2]},
        "training": {"learning_rate": 0.1},
        "privacy": {"mode": "none"},
        "simulation": {"sites": 3},
    }
    return parse_study({**document, **changes})


def arrays(count: int) -> dict[str, np.ndarray]:
    """Records of which row 0 has no values, row 1 no series, row 2 no picture, row 3 nothing."""
    draw = np.random.default_rng(2)
    found = {
        "ill": np.arange(count) % 2.0,
        "age": draw.uniform(0, 10, count),
        "sex": draw.integers(0, 2, count).astype(float),
        "stay": draw.uniform(0, 10, (count, 3, 2)),
        "film": draw.uniform(0, 10, (count, 4, 4)),
    }
    for name, row in (("age", 0), ("sex", 0), ("stay", 1), ("film", 2)):
        found[name][[row, 3]] = np.nan
    return found


def written(folder: Path, **changes: np.ndarray) -> Path:
    np.savez(folder / "ward.npz", **{**arrays(40), **changes})
    return folder / "ward.npz"


# Records


def test_the_parts_lie_one_after_the_other_and_marks_say_what_is_there(tmp_path: Path) -> None:
    spec = input_spec(fusion_study())
    assert tuple(part.name for part in spec.parts) == PARTS
    assert tuple(math.prod(part.shape) for part in spec.parts) == SIZES
    assert spec.shape == (sum(SIZES) + 3,)
    found = read_records(fusion_study(), written(tmp_path)).inputs
    made = arrays(40)
    assert found[:5, -3:].tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]]
    static, series, film = np.split(found[:, :-3], np.cumsum(SIZES)[:-1], axis=1)
    assert static[4, 0] == pytest.approx(made["age"][4] / 5 - 1)
    assert series[4].reshape(3, 4)[:, 1] == pytest.approx(made["stay"][4, :, 1] / 5 - 1)
    assert film[4] == pytest.approx(made["film"][4].reshape(-1) / 10)
    assert static[0].tolist() == [0, 1, 0, 0, 1]
    assert not film[2].any()


def test_half_a_part_is_there(tmp_path: Path) -> None:
    made = arrays(40)
    made["sex"][0], made["stay"][1, 1, 0] = 1, 5
    found = read_records(fusion_study(), written(tmp_path, **made)).inputs
    assert found[:2, -3:].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_half_a_picture_is_refused_and_one_that_must_be_there_too(tmp_path: Path) -> None:
    made = arrays(40)
    made["film"][7, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"row 8, column 'film': expected values from 0 to 10"):
        read_records(fusion_study(), written(tmp_path, **made))
    data = fusion_study().model_dump(mode="json", exclude_none=True)["data"]
    data["columns"]["film"]["missing"] = "refuse"
    with pytest.raises(DataError, match=r"row 3, column 'film': expected values from 0 to 10"):
        read_records(fusion_study(data=data), written(tmp_path))


# The network


def network_and_records(tmp_path: Path, **changes: Any) -> tuple[Fusion, torch.Tensor]:
    study = fusion_study(**changes)
    network = build_network(study, 3)
    assert isinstance(network, Fusion)
    return network, torch.from_numpy(read_records(study, written(tmp_path)).inputs)


def test_what_fills_a_missing_part_changes_no_answer(tmp_path: Path) -> None:
    network, x = network_and_records(tmp_path)
    ends = np.cumsum((0, *SIZES))
    for place, rows in enumerate(((0, 3), (1, 3), (2, 3))):
        changed = x.clone()
        changed[:, ends[place] : ends[place + 1]] += 1.0
        moved = (network(changed) != network(x))[:, 0]
        assert not moved[list(rows)].any()
        assert moved[4:].any()  # of the others the part is read


def test_a_record_teaches_nothing_about_a_part_that_it_lacks(tmp_path: Path) -> None:
    network, x = network_and_records(tmp_path)
    for place, name in enumerate(PARTS):
        parameters = list(network.networks[name].parameters())
        for row, learnt in ((place, False), (3, False), (4, True)):
            gradients = torch.autograd.grad(network(x[row : row + 1]).sum(), parameters)
            assert any(bool(one.any()) for one in gradients) == learnt


def test_one_part_alone_reads_no_other(tmp_path: Path) -> None:
    model = {"name": "fusion", "parts": ["series"], "recurrent": [2]}
    network, x = network_and_records(tmp_path, model=model)
    assert list(network.networks) == ["series"]
    changed = x.clone()
    changed[:, : SIZES[0]] += 1.0
    changed[:, sum(SIZES[:2]) : -3] += 1.0
    torch.testing.assert_close(network(changed), network(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("cell", "recurrent"), [("lstm", [3, 2]), ("gru", [3, 2]), ("rnn", [3, 2]), ("rnn", [])]
)
def test_a_private_step_is_the_naive_loop(cell: str, recurrent: list[int], tmp_path: Path) -> None:
    model = {
        "name": "fusion",
        "width": 3,
        "cell": cell,
        "recurrent": recurrent,
        "channels": [2],
    }
    network, x = network_and_records(tmp_path, model=model)
    losses = target_of(fusion_study(model=model)).losses
    x, y = x[:9], torch.arange(9) % 2
    for bound in (0.1, math.inf):
        step = PrivateStep(network, losses, Mechanism(bound, 0.0, 0.5, 1.0))
        assert_close(
            step.clipped_sum(x, y, None, Stream(KEY)),
            naive_sum(network, x, y, bound, losses=losses),
        )


def test_sites_of_one_class_one_record_and_none_train(tmp_path: Path) -> None:
    made = arrays(40)
    study = fusion_study(
        data={
            **fusion_study().model_dump(mode="json", exclude_none=True)["data"],
            "columns": {**COLUMNS, "ward": {"kind": "category", "values": list("abcd")}},
        },
        simulation={"sites": 4, "partition": "column:ward"},
    )
    ward = np.where(made["ill"] == 1, "a", "b")
    ward[4], ward[6] = "c", "d"
    found = simulate(study, written(tmp_path, ward=ward), tmp_path / "out")
    assert found.checkpoint.state.round == 2
    assert np.isfinite(found.predictions).all()


def test_a_linear_model_knows_which_parts_are_there(tmp_path: Path) -> None:
    study = fusion_study()
    draw = np.random.default_rng(1)
    x = np.zeros((300, sum(SIZES) + 3), np.float32)
    x[:, :-3] = draw.normal(0, 1, (300, sum(SIZES)))
    x[:, -2] = draw.integers(0, 2, 300)
    truth = torch.from_numpy(x[:, -2].astype(np.int64))  # it is ill whose series is there
    half = [
        Tensors(torch.from_numpy(x[rows]), truth[rows]) for rows in (slice(200), slice(200, 300))
    ]
    assert linear(study, *half)["auc"].value == pytest.approx(1.0)


def test_cells_of_an_explanation_are_those_of_the_parts_alone_and_whether_they_are_there() -> None:
    study = fusion_study()
    layout = layout_of(study)
    parts = {part.name: part for part in layout.parts}
    assert [*parts] == ["static", "series", "image"]
    assert parts["static"].layout.names == ("age", "sex")
    assert parts["series"].layout.names == ("pulse", "pain")
    pixels = int(np.prod(parts["image"].layout.shape))
    # Two columns, three hours of two variables and their marks, each pixel, three parts.
    assert layout.cell_of[:9].tolist() == [0, 0, 1, 1, 1, 2, 3, 2, 3]
    assert layout.shape == (2 + 3 * 2 + pixels + 3,)
    assert layout.cell_of[-4:].tolist() == [pixels + 7, *range(pixels + 8, pixels + 11)]
    assert len(layout.cell_of) == sum(SIZES) + 3
    assert [group.name for group in layout.groups] == [
        "age", "sex", "pulse", "pain", "picture", "values there", "series there", "picture there",
    ]  # fmt: skip


# What is refused


def test_a_study_of_one_part_is_refused() -> None:
    for columns in (("ill", "age", "sex"), ("ill", "stay"), ("ill", "film")):
        with pytest.raises(StudyError, match="expected two kinds of input or three"):
            input_spec(fusion_study(columns))
    assert len(input_spec(fusion_study(("ill", "age", "film"))).parts) == 2


def test_a_part_that_records_do_not_have_is_refused() -> None:
    study = fusion_study(("ill", "age", "stay"), model={"name": "fusion", "parts": ["image"]})
    with pytest.raises(StudyError, match=r"expected some of static, series, found image"):
        build_network(study)
    with pytest.raises(StudyError, match="task 'series' expected lstm or gru"):
        build_network(fusion_study(("ill", "age", "stay"), task="series"))


def test_a_picture_too_small_for_the_poolings_is_refused() -> None:
    with pytest.raises(StudyError, match=r"model.channels: expected at least 8 pixels a side"):
        build_network(fusion_study(model={"name": "fusion", "channels": [2, 2, 2]}))


def test_a_record_of_another_length_is_refused_by_name(tmp_path: Path) -> None:
    network, x = network_and_records(tmp_path)
    named = r"expected \(B, 36\), got \(40, 35\): the network \"fusion\" of study \"ward\" reads"
    with pytest.raises(ValueError, match=named):
        network(x[:, :-1])
