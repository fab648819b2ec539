"""A model taken home, of targets with several answers: what is written, and figures where known."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.predict import predict
from shared_models.study import parse_study
from simulations.outcome import write_outcome
from simulations.run import simulate

NUMBER = {"kind": "number", "low": 0, "high": 9}
FLAG = {"kind": "category", "values": ["0", "1"]}
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "survival": (
        {
            "task": "survival",
            "data": {"target": ["t", "a"], "columns": {"x": NUMBER, "t": NUMBER, "a": FLAG}},
            "model": {"name": "mlp", "hidden": []},
            "survival": {"edges": [2, 5], "horizons": [5]},
        },
        ["none by 2", "none by 5"],
    ),
    "panel": (
        {
            "task": "tabular",
            "data": {
                "target": ["a", "b"],
                "columns": {"x": NUMBER, "a": FLAG, "b": {**FLAG, "missing": "constant"}},
            },
            "model": {"name": "mlp", "hidden": []},
        },
        ["a", "b"],
    ),
    "anomaly": (
        {
            "task": "anomaly",
            "data": {
                "target": "a",
                "positive": ["1"],
                "columns": {"x": NUMBER, "t": NUMBER, "a": FLAG},
            },
            "model": {"name": "autoencoder", "hidden": [], "code": 1},
        },
        ["reconstruction error"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_answer_has_a_column_and_is_what_the_run_predicted(case: str, tmp_path: Path) -> None:
    sections, names = CASES[case]
    study = parse_study(
        {
            "name": case,
            "rounds": 2,
            "training": {"learning_rate": 0.1},
            "privacy": {"mode": "none"},
            "evaluation": {"holdout_column": "a", "holdout_values": ["1"]},
            "simulation": {"sites": 3},
            **sections,
        }
    )
    draw = np.random.default_rng(1)
    rows = [f"{x},{y},{a},{a}" for x, y, a in draw.integers(0, 9, (30, 3)) % (9, 9, 2)]
    data, held = tmp_path / "all.csv", tmp_path / "held.csv"
    data.write_text("\n".join(["x,t,a,b", *rows]) + "\n")
    held.write_text("\n".join(["x,t,a,b", *(row for row in rows if row.endswith("1"))]) + "\n")
    outcome = simulate(study, data, tmp_path / "run")
    write_outcome(outcome, tmp_path / "run")
    found = predict(tmp_path / "run", held)
    assert found.figures is not None
    assert set(found.figures) == set(outcome.figures())
    # The run keeps the records by site: compare them without their order.
    np.testing.assert_allclose(
        np.sort(found.values, axis=0), np.sort(outcome.predictions, axis=0), atol=1e-6
    )
    text = io.StringIO()
    found.write(text)
    lines = text.getvalue().splitlines()
    assert lines[0].split(",") == ["record", *names]
    assert [float(one) for one in lines[1].split(",")[1:]] == found.values[0].tolist()
    assert len(lines) == 1 + len(outcome.targets)
    assert found.document()["classes"] == names
    unknown = tmp_path / "unknown.csv"
    unknown.write_text("x,t\n3,4\n")
    assert predict(tmp_path / "run", unknown).figures is None
