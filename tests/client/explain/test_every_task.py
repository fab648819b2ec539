"""fedward-site explain of every task, through the program: with the records' answers and without.

A task that is added without an entry here fails, and so does one that explain cannot do.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from client import cli
from client.data.molecules import molecule_symbols
from client.explain.explanation import explain
from client.explain.layout import GROUPS_MAX
from client.predict import unanswered
from shared_models.study import Study
from shared_models.tasks import TASKS, target_of
from tests.client.explain.models import ANSWER, random_weights, save, study_of, weights

COUNT = 5
NUMBER = {"kind": "number", "low": 0, "high": 9}
PICTURE = {"kind": "image", "height": 8, "width": 6, "high": 9}
STAY = {
    "kind": "series",
    "steps": 4,
    "missing": "forward_indicator",
    "variables": {"pulse": {"low": 0, "high": 9}, "pain": {"low": 0, "high": 9}},
}
FLAGS = {name: {**ANSWER, "missing": "constant"} for name in ("liver", "heart", "skin")}
MOLECULE = {"kind": "molecule", "buckets": 128, "grams": 3}
DAYS = {**NUMBER, "unit": "days", "missing": "constant"}
SMILES = ("CCO", "c1ccccc1O", "CC(=O)Oc1ccccc1C(=O)O", "C[N+](C)(C)C", "ClC=CBr")


class Case(NamedTuple):
    """A study; what its page calls what is explained, as a pattern; a word of its pictures."""

    study: Study
    explained: str


def case(
    task: str, columns: dict[str, Any], model: dict[str, Any], explained: str, **others: Any
) -> Case:
    sections = {key: others.pop(key) for key in ("survival", "warning") if key in others}
    return Case(study_of(task, columns, model, sections=sections, **others), explained)


CASES: dict[str, Case] = {
    "tabular": case(
        "tabular", {"a": NUMBER, "b": ANSWER}, {"name": "mlp"}, "the log-odds of “yes”"
    ),
    "image": case(
        "image",
        {"p": PICTURE, "y": {**ANSWER, "values": ["a", "b", "c"]}},
        {"name": "cnn", "channels": [2], "hidden": 4},
        "the log-odds of “[abc]”",
    ),
    "series": case(
        "series", {"s": STAY, "a": NUMBER}, {"name": "gru", "hidden": [3]}, "the log-odds of “yes”"
    ),
    "sequence": case(
        "sequence",
        {"t": {"kind": "letters", "alphabet": "ACGT", "length": 8}},
        {"name": "cnn", "channels": [2], "hidden": 2, "embedding": 2},
        "the log-odds of “yes”",
    ),
    "molecule": case(
        "molecule",
        {"m": MOLECULE, **FLAGS},
        {"name": "mlp", "hidden": [4]},
        "the log-odds of “(liver|heart|skin)”",
        target=[*FLAGS],
    ),
    "anomaly": case(
        "anomaly",
        {"p": PICTURE},
        {"name": "autoencoder", "hidden": [], "code": 2},
        r"the answer \(mean squared error\)",
        positive=["yes"],
    ),
    "warning": case(
        "warning",
        {"s": STAY, "a": NUMBER, "day": DAYS},
        {"name": "lstm", "hidden": [3]},
        "the log-odds of “risk at hour 4”",
        target=["y", "day"],
        warning={"hours": [2, 4], "at": 2, "false_alarms": 0.25},
    ),
    "fusion": case(
        "fusion",
        {
            "a": {**NUMBER, "missing": "indicator"},
            "s": STAY,
            "p": {**PICTURE, "missing": "constant"},
        },
        {"name": "fusion", "width": 8, "hidden": [], "recurrent": [2], "channels": [8]},
        "the log-odds of “yes”",
    ),
    "survival": case(
        "survival",
        {"a": NUMBER, "b": ANSWER, "day": NUMBER},
        {"name": "mlp", "hidden": [3]},
        "the log-odds of “the event by 5”",
        target=["day", "y"],
        survival={"edges": [2, 5, 8], "horizons": [2, 5]},
    ),
    "segmentation": case(
        "segmentation",
        {
            "p": {**PICTURE, "width": 8},
            "y": {"kind": "mask", "values": ["ground", "ball"]},
        },
        {"name": "unet", "channels": [2, 2]},
        "the share of the points of “ball”",
    ),
}
OTHERS: dict[str, Case] = {
    "forecast": case(
        "series",
        {"s": STAY, "y": {**NUMBER, "high": 300, "unit": "mg/dl"}},
        {"name": "gru", "hidden": [3]},
        r"the answer \(mg/dl\)",
    ),
    "cox": case(
        "survival",
        {"a": NUMBER, "day": NUMBER},
        {"name": "mlp", "hidden": [3]},
        r"the answer \(log of the relative risk\)",
        target=["day", "y"],
        survival={"edges": [2, 5], "horizons": [5], "loss": "cox"},
    ),
    "panel": case(
        "tabular",
        {"a": NUMBER, **FLAGS},
        {"name": "mlp", "hidden": [3]},
        "the log-odds of “(liver|heart|skin)”",
        target=[*FLAGS],
    ),
}
ALL = {**CASES, **OTHERS}


def made(column: Any, draw: np.random.Generator) -> np.ndarray:
    """Values of one column that keep its contract."""
    if column.kind == "category":
        return np.array([column.values[k % len(column.values)] for k in range(COUNT)])
    if column.kind == "mask":
        return draw.integers(0, 2, (COUNT, 8, 8))
    if column.kind == "image":
        return draw.uniform(0, 9, (COUNT, *column.sizes))
    if column.kind == "series":
        return draw.uniform(0, 9, (COUNT, column.steps, len(column.variables)))
    if column.kind == "letters":
        return np.array(["ACGTACGT", "ACG", "TTTT", "GACA", "C"])
    if column.kind == "molecule":
        return np.array(SMILES)
    return draw.uniform(column.low, column.high, COUNT)


def write(path: Path, study: Study) -> Path:
    draw = np.random.default_rng(4)
    np.savez(path, **{name: made(one, draw) for name, one in study.data.columns.items()})
    return path


Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedward-site", "explain", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        return (code if isinstance(code, int) else 0, *capfd.readouterr())

    return run


@pytest.mark.parametrize("answers", ["answered", "unanswered"])
@pytest.mark.parametrize("task", [*TASKS, *OTHERS])
def test_every_task_is_explained_in_its_own_unit(
    program: Program, tmp_path: Path, task: str, answers: str
) -> None:
    assert task in ALL, f"task {task!r} has no case here: explain may not do it"
    study, explained = ALL[task]
    answered, out = answers == "answered", tmp_path / "out"
    data = write(tmp_path / "r.npz", study if answered else unanswered(study))
    model = save(tmp_path / "m", study, random_weights(study))
    code, printed, said = program(model, "--data", data, "--out", out, "--record", 3, "--json")
    assert code == 0, said
    found = json.loads(printed)
    (one,) = found["records"]
    assert found["unit"] == target_of(study).score_unit
    # Half a percent of all that speaks for and against, of which much cancels here.
    assert one["completeness_gap"] <= 0.05 * abs(one["score"] - one["baseline_score"]) + 1e-5
    page = (out / "explanation.html").read_text()
    assert re.search(f"Explained: {explained}, ", page), page[page.index("Explained:") :][:200]
    assert ("own answer is" in page) is answered
    assert bool(found["permutation_importance"]) is answered
    assert f"on {COUNT} of {COUNT} records" in page or not answered


def test_a_volume_is_refused_in_one_line_and_leaves_nothing(
    program: Program, tmp_path: Path
) -> None:
    volume = {"kind": "image", "depth": 8, "height": 8, "width": 8}
    masks = {"kind": "mask", "values": ["ground", "ball"]}
    study = study_of(
        "segmentation", {"p": volume, "y": masks}, {"name": "unet", "channels": [2, 2]}
    )
    model, out = save(tmp_path / "m", study, random_weights(study)), tmp_path / "out"
    code, printed, said = program(model, "--data", tmp_path, "--out", out)
    assert (code, printed, len(said.splitlines())) == (2, "", 1)
    assert "expected records that can be drawn on a page, found volumes" in said
    assert not out.exists()


def test_of_a_linear_survival_model_the_score_is_the_log_odds_of_the_event_by_the_last_horizon(
    tmp_path: Path,
) -> None:
    study = CASES["survival"].study
    model = save(tmp_path / "m", study, random_weights(study))
    found = explain(model, write(tmp_path / "r.npz", study))
    for one in found.records:
        risk = 1 - one.prediction[1]  # the edges are 2, 5 and 8, the last horizon is 5
        assert one.score == pytest.approx(np.log(risk / (1 - risk)), abs=1e-5)
        assert re.fullmatch(r"(the event at|none seen by) [\d.]+", one.words.own)


def test_a_risk_of_nothing_or_of_everything_has_a_finite_score() -> None:
    target = target_of(CASES["survival"].study)
    outputs = torch.tensor([[-300.0] * 3, [300.0] * 3], requires_grad=True)
    scores = target.scores(outputs, torch.tensor([1, 1]))
    assert torch.isfinite(scores).all()
    assert scores[0] < -80
    assert scores[1] > 80


def test_of_a_panel_the_highest_answer_is_explained(tmp_path: Path) -> None:
    study = CASES["molecule"].study
    found = explain(
        save(tmp_path / "m", study, random_weights(study)), write(tmp_path / "r.npz", study)
    )
    for one in found.records:
        best = int(one.prediction.argmax())
        assert one.words.explained == [*FLAGS][best]
        assert "the highest of 3" in one.words.said
        chance = one.prediction[best]
        assert one.score == pytest.approx(np.log(chance / (1 - chance)), abs=1e-5)


@pytest.mark.parametrize("features", ["ngrams", "morgan"])
def test_a_planted_symbol_of_a_molecule_is_the_strongest(tmp_path: Path, features: str) -> None:
    if features == "morgan":
        pytest.importorskip("rdkit")
    column = {**MOLECULE, "buckets": 1024, "grams": 1, "features": features}
    study = study_of("molecule", {"m": column}, {"name": "mlp", "hidden": []})
    data = write(tmp_path / "r.npz", study)
    probe = explain(save(tmp_path / "m", study, random_weights(study)), data)
    inputs = np.stack([one.inputs for one in probe.records])
    # What the last molecule alone has: with runs of one symbol = or Br or Cl, of circles more.
    planted = np.where((inputs[4] > 0) & (inputs[:4] == 0).all(axis=0), 2.0, 0.0)
    model = save(tmp_path / "m", study, weights(random_weights(study), layers__0__weight=planted))
    found = explain(model, data)
    last = found.records[4]
    assert last.cells == ("Cl", "C", "=", "C", "Br")
    for values in last.values.values():
        assert values.shape == (5,)
        assert values.sum() == pytest.approx(last.score, abs=1e-5)
        assert {0, 4} <= {*np.argsort(-values)[: 2 if features == "ngrams" else 4].tolist()}
    for one in found.records[:4]:
        assert "".join(one.cells) in SMILES
        assert not one.values["occlusion"].any()


def test_runs_of_symbols_name_what_matters_about_molecules(tmp_path: Path) -> None:
    study = CASES["molecule"].study
    found = explain(
        save(tmp_path / "m", study, random_weights(study)), write(tmp_path / "r.npz", study)
    )
    assert found.importance is not None
    names = found.importance.groups
    assert len(names) == GROUPS_MAX
    symbols = {symbol for text in SMILES for symbol in molecule_symbols(text)}
    assert any(name.split(" and ")[0] in symbols for name in names)


def test_a_picture_among_other_parts_is_drawn_as_one_alone_and_what_lacks_is_named(
    program: Program, tmp_path: Path
) -> None:
    study, out = CASES["fusion"].study, tmp_path / "out"
    arrays = dict(np.load(write(tmp_path / "r.npz", study)))
    arrays["p"][1] = np.nan
    np.savez(tmp_path / "r.npz", **arrays)
    model = save(tmp_path / "m", study, random_weights(study))
    code, printed, said = program(
        *(model, "--data", tmp_path / "r.npz", "--out", out, "--json"),
        *("--record", 1, "--record", 2),
    )
    assert code == 0, said
    whole, without = json.loads(printed)["records"]
    for values in whole["attributions"].values():
        shapes = {part: np.shape(one) for part, one in values.items()}
        assert shapes == {"static": (1,), "series": (4, 2), "image": (8, 6)}
        assert np.any(values["image"])
    for values in without["attributions"].values():
        assert not np.any(values["image"])
    assert sorted(path.name for path in out.glob("record*")) == [
        *(f"record-1-{part}.png" for part in ("image", "series", "static")),
        *(f"record-2-{part}.png" for part in ("series", "static")),
    ]
    assert "Not in this record: picture." in (out / "explanation.html").read_text()


def test_a_planted_pixel_of_a_picture_among_other_parts_is_found(tmp_path: Path) -> None:
    study = CASES["fusion"].study
    network = random_weights(study)
    data = write(tmp_path / "r.npz", study)
    arrays = dict(np.load(data))
    arrays["p"][:] = 1.0
    arrays["p"][0, 5, 3] = 9.0
    np.savez(data, **arrays)
    found = explain(save(tmp_path / "m", study, network), data, (1,))
    part = found.layout.parts[-1]
    for values in found.records[0].values.values():
        row, column = np.unravel_index(abs(values[part.cells]).argmax(), part.layout.shape)
        assert abs(row - 5) <= 1
        assert abs(column - 3) <= 1
