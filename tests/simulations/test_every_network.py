"""Sites of one class, one record and none train every network that a task names, in both modes."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_models.contract import CategoryColumn, MaskColumn, NumberColumn
from shared_models.study import Study
from simulations.run import simulate
from tests.shared_models.studies import MODELS, PRIVATE, STAY, VOLUME, task_study
from tests.simulations.test_examples import values

MASK = {"kind": "mask", "values": ["none", "cell"]}
NEXT = {"kind": "number", "low": 0, "high": 200}
# Task, network, and data in place of the task's own.
NETWORKS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("image", "cnn", None),
    ("image", "mlp", None),
    ("sequence", "cnn", None),
    ("sequence", "attention", None),
    *(("series", name, None) for name in ("lstm", "gru", "rnn", "attention", "mlp")),
    *(("warning", name, None) for name in ("lstm", "gru", "rnn", "mlp")),
    ("series", "gru", {"target": "next", "columns": {"stay": STAY, "next": NEXT}}),  # a forecast
    ("segmentation", "unet", {"target": "where", "columns": {"film": VOLUME, "where": MASK}}),
    ("fusion", "fusion", None),
]
SITES = {"all": 14, "alike": 5, "one": 1, "none": 0, "more": 9}


def written(study: Study, folder: Path) -> Path:
    """Write sites' records; those of "alike" are of one class, or have one number as target."""
    folder.mkdir()
    text = study.data.format == "csv"
    for seed, (name, count) in enumerate(SITES.items()):
        draw, table = np.random.default_rng(seed), {}
        for key, column in study.data.columns.items():
            sizes = study.data.image.sizes if isinstance(column, MaskColumn) else ()
            table[key] = values(column, draw, count, sizes)
            if isinstance(column, CategoryColumn):
                table[key] = draw.choice(column.values, count)
            first = isinstance(column, CategoryColumn | NumberColumn | MaskColumn) and count
            if name == "alike" and key in study.data.targets and first:
                table[key][:] = table[key].flat[0]
        if not text:
            np.savez(folder / f"{name}.npz", **table)  # type: ignore[arg-type]
            continue
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([list(table), *zip(*table.values(), strict=True)])
    return folder


@pytest.mark.parametrize("privacy", [{"mode": "none"}, PRIVATE], ids=["none", "distributed"])
@pytest.mark.parametrize(("task", "name", "data"), NETWORKS)
def test_sites_of_one_class_one_record_and_none_train(
    task: str, name: str, data: dict[str, Any] | None, privacy: dict[str, Any], tmp_path: Path
) -> None:
    own = data or task_study(task).document()["data"]
    study = task_study(
        task,
        model=MODELS[name],
        data={**own, "format": "csv" if task == "sequence" else "npz"},
        rounds=1,
        privacy=privacy,
        aggregation={"masking": "none"},
        simulation={"partition": "files"},
    )
    found = simulate(study, written(study, tmp_path / "sites"), tmp_path / "out")
    assert found.checkpoint.state.round == 1
    assert np.isfinite(found.checkpoint.state.model).all()
    assert np.isfinite(found.predictions).all()
    assert [site for site in found.sites if site == "none"]
    assert found.results()["released"] is not None
