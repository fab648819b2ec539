"""Real hospital records, where they are at hand, read as their studies say and in seconds."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.holdout import held_out
from client.data.read import read_records, read_sites
from shared_models.study import Study, parse_study

ROOT = Path(os.environ.get("FEDWARD_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
SECONDS_MAX = 10.0  # about one is usual; a loop over cells in Python takes far longer
FLAG = {"kind": "category", "values": ["0", "1"]}


def records_at(name: str) -> Path:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"real records are not here: {path} (set FEDWARD_DATA)")
    return path


def study_of(task: str, model: str, target: str, columns: dict[str, Any], **data: Any) -> Study:
    return parse_study(
        {
            "name": "real",
            "task": task,
            "rounds": 1,
            "data": {"target": target, "columns": columns, **data},
            "model": {"name": model},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": {"mode": "none"},
        }
    )


def heart_study() -> Study:
    def number(low: float, high: float) -> dict[str, Any]:
        return {"kind": "number", "low": low, "high": high, "missing": "indicator"}

    def category(*values: str) -> dict[str, Any]:
        return {"kind": "category", "values": values, "missing": "indicator"}

    columns = {
        "age": number(18, 100),
        "sex": FLAG,
        "pain": category("1", "2", "3", "4"),
        "pressure": number(0, 250),
        "cholesterol": number(0, 700),
        "sugar": category("0", "1"),
        "ecg": category("0", "1", "2"),
        "rate": number(30, 250),
        "angina": category("0", "1"),
        "oldpeak": number(-5, 10),
        "slope": category("1", "2", "3"),
        "vessels": number(0, 9),
        "thal": category("3", "6", "7"),
        "disease": {"kind": "category", "values": ["0", "1", "2", "3", "4"]},
    }
    return study_of(
        "tabular", "mlp", "disease", columns,
        positive=["1", "2", "3", "4"], format="csv", files="processed.*.data", header=False,
        missing=["?"],
    )  # fmt: skip


def test_four_hospitals_of_heart_records() -> None:
    sites = dict(read_sites(heart_study(), records_at("heart")))
    assert {name.removeprefix("processed."): len(own) for name, own in sites.items()} == {
        "cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200,
    }  # fmt: skip
    # 115 of 123: the share of 93.5 % that is told of this hospital.
    assert sites["processed.switzerland"].targets.sum() == 115


def test_no_dna_sequence_is_on_both_sides() -> None:
    columns = {
        "label": {"kind": "category", "values": ["EI", "IE", "N"]},
        "sequence": {"kind": "letters", "alphabet": "ACGTDNRS", "length": 60},
    }
    study = study_of("sequence", "attention", "label", columns)
    records = read_records(study, records_at("splice/splice_pauldhein.csv"))
    assert np.bincount(records.targets).tolist() == [767, 768, 1655]
    held = held_out(records, study.evaluation, bytes(32))
    rows = [row.tobytes() for row in records.inputs]
    assert len(set(rows)) == 3005
    assert not {r for r, h in zip(rows, held, strict=True) if h} & {
        r for r, h in zip(rows, held, strict=True) if not h
    }


def test_questions_of_nine_institutes_are_read_in_seconds() -> None:
    types = [
        "information",
        "symptoms",
        "treatment",
        "inheritance",
        "frequency",
        "causes",
        "research",
        "outlook",
        "susceptibility",
        "considerations",
        "prevention",
        "stages",
        "complications",
    ]
    types += ["genetic changes", "exams and tests", "support groups"]
    columns = {
        "qtype": {"kind": "category", "values": types},
        "q": {"kind": "words", "length": 32},
    }
    path = records_at("medquad/medquad_answers600.jsonl.gz")
    start = time.perf_counter()
    records = read_records(study_of("sequence", "attention", "qtype", columns), path)
    assert time.perf_counter() - start < SECONDS_MAX
    assert records.inputs.shape == (16_407, 32)
    assert (records.inputs[:, 0] > 0).all()


def test_chest_pictures_of_three_parts() -> None:
    columns = {
        "picture": {"kind": "image", "height": 28, "width": 28, "array": "{part}_images"},
        "pneumonia": FLAG | {"array": "{part}_labels"},
    }
    study = study_of("image", "cnn", "pneumonia", columns, parts=["train", "val", "test"])
    records = read_records(study, records_at("pneumoniamnist/pneumoniamnist.npz"))
    assert records.inputs.shape == (5856, 1, 28, 28)
    assert (records.public["part"] == "test").sum() == 624


def test_intensive_care_series_equal_the_file_where_it_measured() -> None:
    path = records_at("physionet2012/p2012_hourly.npz")
    with np.load(path, allow_pickle=False) as archive:
        x, names = archive["x"].astype(np.float64), archive["vars"].tolist()
    columns: dict[str, Any] = {
        "x": {
            "kind": "series",
            "steps": 48,
            "missing": "forward_indicator",
            "variables": {name: {"low": -1e5, "high": 1e5} for name in names},
        },
        "age": {"kind": "number", "low": 15, "high": 90, "array": "static", "index": 0},
        "unit": {
            "kind": "category", "values": ["1", "2", "3", "4"], "array": "static", "index": 3,
        },
        "death": FLAG | {"array": "y", "index": 0},
    }  # fmt: skip
    start = time.perf_counter()
    records = read_records(study_of("series", "lstm", "death", columns), path)
    assert time.perf_counter() - start < SECONDS_MAX
    assert records.inputs.shape == (4000, 48, 37 + 37 + 1 + 4)
    assert records.targets.sum() == 554
    measured = ~np.isnan(x)
    assert (records.inputs[:, :, 37:74] == ~measured).all()
    np.testing.assert_allclose(  # the range is 2e5 wide: float32 keeps 6e-8 of it
        records.inputs[:, :, :37][measured] * 1e5, x[measured], atol=0.02
    )
