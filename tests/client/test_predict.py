"""fedward-site predict: a model that was taken home says what its network says, or is refused."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import safetensors.numpy

from client.predict import load_model
from shared_models.metrics import exact_metrics
from shared_models.model_file import DESCRIPTION, MODEL, description, json_bytes, model_bytes
from shared_models.registry import build_network
from shared_models.strategies import first_state
from shared_models.study import Study
from shared_models.weights import vector_of
from tests.client.steward import Program, refused, site_program
from tests.server.conftest import study_of

AGES = (20.25, 47.5, 55.0, 88.5)
LIVED = {"target": "years", "columns": {
    "age": {"kind": "number", "low": 0, "high": 100},
    "years": {"kind": "number", "low": 10, "high": 30},
}}  # fmt: skip


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    return site_program(monkeypatch, capfd)


def saved(folder: Path, study: Study, weight: float = 2.0, bias: float = 0.5) -> Path:
    """A model of one input whose weights are known: outputs are weight * x + bias, x in [-1, 1]."""
    vector = vector_of(build_network(study, 1))
    vector[:] = [weight, bias]
    folder.mkdir()
    (folder / MODEL).write_bytes(model_bytes(study, first_state(study.aggregation, vector)))
    (folder / DESCRIPTION).write_bytes(json_bytes(description(study, {})))
    return folder


def records(path: Path, answers: str = "yes no yes yes") -> Path:
    rows = [f"{age},{ill}" for age, ill in zip(AGES, answers.split(), strict=True)]
    path.write_text("\n".join(["age,ill", *rows]) + "\n")
    return path


def chances() -> np.ndarray:
    """By hand: the network scales the contract's range to [-1, 1], and has one logit."""
    logits = 2.0 * (np.array(AGES) / 50 - 1) + 0.5
    ill = 1 / (1 + np.exp(-logits))
    return np.stack([1 - ill, ill], axis=1)


def test_one_line_a_record_in_order_with_the_chance_of_each_class(
    program: Program, tmp_path: Path
) -> None:
    model = saved(tmp_path / "model", study_of())
    ended = program("predict", model, "--data", records(tmp_path / "records.csv"))
    assert ended.code == 0, ended
    head, *lines = csv.reader(ended.out.splitlines())
    assert head == ["record", "ill", "p(no)", "p(yes)"]
    assert [(line[0], line[1]) for line in lines] == [
        ("1", "no"), ("2", "yes"), ("3", "yes"), ("4", "yes"),
    ]  # fmt: skip
    found = np.array([[float(cell) for cell in line[2:]] for line in lines])
    assert np.abs(found - chances()).max() < 1e-6  # six digits are printed


def test_where_the_answers_are_known_they_are_compared(program: Program, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", study_of())
    data = records(tmp_path / "records.csv")
    ended = program("predict", model / MODEL, "--data", data, "--json")  # the file names it too
    found = json.loads(ended.out)
    wanted = exact_metrics("binary", ("no", "yes"), np.array([1, 0, 1, 1]), chances())
    assert found["study_digest"] == study_of().digest()
    assert found["classes"] == ["no", "yes"]
    assert found["metrics"].keys() == wanted.keys()
    for name, one in wanted.items():
        assert found["metrics"][name]["value"] == pytest.approx(one.value, abs=1e-6)
        assert found["metrics"][name]["n"] == one.n
    assert "accuracy" in ended.err


def test_records_without_their_answers_are_predicted_all_the_same(
    program: Program, tmp_path: Path
) -> None:
    model = saved(tmp_path / "model", study_of())
    (tmp_path / "new.csv").write_text("age\n" + "\n".join(map(str, AGES)) + "\n")
    ended = program("predict", model, "--data", tmp_path / "new.csv", "--json")
    assert ended.code == 0, ended
    found = json.loads(ended.out)
    assert np.abs(np.array(found["predictions"]) - chances()).max() < 1e-6
    assert found["metrics"] is None
    assert "no figures, since the records' own answers cannot be read" in ended.err


def test_a_number_is_told_in_the_unit_of_the_target(program: Program, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", study_of(data=LIVED, evaluation={}), weight=0.5, bias=0.25)
    (tmp_path / "new.csv").write_text("age\n50\n75\n")
    ended = program("predict", model, "--data", tmp_path / "new.csv")
    # x = 0 and 0.5, so that outputs are 0.25 and 0.5 of half the range around 20 years.
    assert ended.out.splitlines() == ["record,years", "1,22.5", "2,25.0"]


def test_a_file_is_written_whole(program: Program, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", study_of())
    data, out = records(tmp_path / "records.csv"), tmp_path / "told.csv"
    ended = program("predict", model, "--data", data, "--out", out)
    assert (ended.code, ended.out) == (0, "")
    assert len(out.read_text().splitlines()) == 1 + len(AGES)
    ended = program("predict", model, "--data", data, "--out", tmp_path / "no" / "told.csv")
    assert "cannot be written" in refused(ended, 2)


def test_a_record_that_breaks_the_contract_is_named_by_its_place(
    program: Program, tmp_path: Path
) -> None:
    model = saved(tmp_path / "model", study_of())
    (tmp_path / "records.csv").write_text("age,ill\n47.5,yes\n431.75,no\n")
    ended = program("predict", model, "--data", tmp_path / "records.csv")
    line = refused(ended, 2)
    assert "records.csv" in line
    assert "3" in line  # the row
    assert "431.75" not in ended.err


@pytest.mark.parametrize("lost", [MODEL, DESCRIPTION])
def test_half_a_model_is_none(program: Program, tmp_path: Path, lost: str) -> None:
    model = saved(tmp_path / "model", study_of())
    (model / lost).unlink()
    ended = program("predict", model, "--data", records(tmp_path / "records.csv"))
    assert f"{model / lost}: cannot be read" in refused(ended, 2)
    assert "hint: a model is a folder with model.safetensors and model.json" in ended.err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (DESCRIPTION, b"{}"),
        (DESCRIPTION, b"[" * 100_000),
        (DESCRIPTION, b"[1]"),
        (DESCRIPTION, b"x" * (1 << 22 | 1)),
        (MODEL, b""),
        (MODEL, b"\xff" * 64),
    ],
    ids=["no study", "deep", "a list", "long", "empty", "noise"],
)
def test_what_is_no_model_is_refused(
    program: Program, tmp_path: Path, name: str, content: bytes
) -> None:
    model = saved(tmp_path / "model", study_of())
    (model / name).write_bytes(content)
    ended = program("predict", model, "--data", records(tmp_path / "records.csv"))
    assert "expected" in refused(ended, 2)


def test_weights_of_another_study_are_refused(program: Program, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", study_of())
    other = saved(tmp_path / "other", study_of(rounds=4))
    (model / MODEL).write_bytes((other / MODEL).read_bytes())
    ended = program("predict", model, "--data", records(tmp_path / "records.csv"))
    assert "expected weights of the model's study, found another's" in refused(ended, 2)


def test_a_description_that_was_edited_is_refused(program: Program, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", study_of())
    text = (model / DESCRIPTION).read_text()
    assert text.count('"high": 100') == 1
    (model / DESCRIPTION).write_text(text.replace('"high": 100', '"high": 200'))
    ended = program("predict", model, "--data", records(tmp_path / "records.csv"))
    assert "expected weights of the model's study, found another's" in refused(ended, 2)


@pytest.mark.parametrize("change", ["nan", "float64", "another shape", "one more"])
def test_weights_that_do_not_fit_are_refused(program: Program, tmp_path: Path, change: str) -> None:
    study = study_of()
    model = saved(tmp_path / "model", study)
    tensors = safetensors.numpy.load_file(model / MODEL)
    name = next(iter(tensors))
    if change == "nan":
        tensors[name] = np.full_like(tensors[name], np.nan)
    elif change == "float64":
        tensors[name] = tensors[name].astype(np.float64)
    elif change == "another shape":
        tensors[name] = np.zeros((7, 7), np.float32)
    else:
        tensors["more"] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(tensors, model / MODEL, {"study_digest": study.digest()})
    ended = program("predict", model, "--data", records(tmp_path / "records.csv"))
    assert "weights" in refused(ended, 2)


def begun(model: Path, data: Path, stdout: int | IO[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [Path(sys.executable).parent / "fedward-site", "predict", model, "--data", data],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "", "OMP_NUM_THREADS": "1", "TMPDIR": str(data.parent)},
    )


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(tmp_path: Path) -> None:
    """As in `fedward-site predict ... | head -2`, with more lines than a pipe holds."""
    model = saved(tmp_path / "model", study_of())
    (tmp_path / "new.csv").write_text("age\n" + "50\n" * 20_000)
    for closing in (2, 0):  # after two lines; at once, before a line is written
        process = begun(model, tmp_path / "new.csv", subprocess.PIPE)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(closing)]
        process.stdout.close()
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (141, "")
        assert lines == ["record,ill,p(no),p(yes)\n", "1,yes,0.377541,0.622459\n"][:closing]
    assert not list(tmp_path.glob("fedward-*.txt"))  # no details of a bug


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("records", [2, 20_000])  # within a buffer, and beyond
def test_a_full_disk_under_the_output_is_no_bug(tmp_path: Path, records: int) -> None:
    model = saved(tmp_path / "model", study_of())
    (tmp_path / "new.csv").write_text("age\n" + "50\n" * records)
    with Path("/dev/full").open("w") as full:
        process = begun(model, tmp_path / "new.csv", full)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    *_, line, hint = err.splitlines()
    assert line == (
        "fedward-site: error: what was to be written: cannot be written (No space left on device)"
    )
    assert hint == "hint: make room on the disk"
    assert "Traceback" not in err


def test_a_model_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    study, network = load_model(saved(tmp_path / "model", study_of()))
    assert study == study_of()
    assert vector_of(network).tolist() == [2.0, 0.5]
    assert not network.training
