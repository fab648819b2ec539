"""The command line within this process: streams, exit codes, records that are refused.

Studies and options that are refused before torch is imported are tested in tests/system.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tomli_w

import simulations.run
from privacy.errors import (
    AbsentError,
    DataError,
    FedwardError,
    PrivacyError,
    ProtocolError,
    StudyError,
)
from simulations import cli
from simulations.folder import MARK
from simulations.outcome import Outcome

SECRET = "31337"  # stands for a patient's value: no message may show it


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Program = Callable[..., Ended]


@pytest.fixture
def program(
    tmp_path: Path,
    toy_document: Callable[..., dict[str, Any]],
    toy_csv: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Program:
    """Run fedward-sim in a folder with study.toml, private.toml and toy.csv."""
    (tmp_path / "study.toml").write_text(tomli_w.dumps(toy_document()))
    (tmp_path / "private.toml").write_text(tomli_w.dumps(toy_document(private=True)))
    (tmp_path / "toy.csv").write_text(toy_csv.read_text())
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedward-sim", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, out, err)

    return run


def refused(ended: Ended, code: int = 2) -> str:
    """Check the form of a refusal and return its one line."""
    lines = ended.err.splitlines()
    assert (ended.code, ended.out) == (code, ""), ended
    assert lines[0].startswith("fedward-sim: error: "), ended.err
    assert len(lines) <= 2, ended.err
    assert all(line.startswith("hint: ") for line in lines[1:]), ended.err
    return lines[0].removeprefix("fedward-sim: error: ")


def one_line(text: str) -> str:
    return " ".join(text.split())


RUN = ("run", "study.toml", "--data", "toy.csv")


# Streams


def test_results_are_on_stdout_with_json_and_words_on_stderr(
    program: Program, tmp_path: Path
) -> None:
    ended = program(*RUN, "--out", "out", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == json.loads((tmp_path / "out" / "results.json").read_text())
    assert "Results in out" in ended.err


def test_stdout_is_empty_without_json(program: Program) -> None:
    ended = program(*RUN, "--out", "out")
    assert (ended.code, ended.out) == (0, "")
    assert "AUC" in ended.err


def test_the_summary_warns_of_missing_protection(program: Program) -> None:
    said = one_line(program(*RUN, "--out", "out").err)
    assert "No differential privacy: a simulation only" in said
    assert "No masking of updates: a simulation only" in said


def test_the_summary_says_epsilon_and_delta(program: Program) -> None:
    ended = program("run", "private.toml", "--data", "toy.csv", "--out", "out", "--json")
    said = re.search(r"epsilon (\S+) at delta 1e-05, each record, mode local", one_line(ended.err))
    assert said is not None
    spent = json.loads(ended.out)["privacy"]["epsilon"]
    assert spent <= float(said[1]) < spent + 0.01  # rounded up: never less than was spent


def test_a_path_with_brackets_and_spaces_is_printed_as_it_is(program: Program) -> None:
    name = "a [bold]long[/bold] path " + "of many words " * 8
    ended = program(*RUN, "--out", name)
    assert f"Results in {name}, report in {name}/report.html" in ended.err


def test_results_go_to_runs_and_the_name_by_default(program: Program, tmp_path: Path) -> None:
    assert program(*RUN).code == 0
    names = {path.name for path in (tmp_path / "runs" / "toy").iterdir()}
    assert names >= {
        "results.json",
        "metrics.csv",
        "model.safetensors",
        "model.json",
        "study.toml",
        "report.html",
        "checkpoint",
    }


def test_options_override_the_study(program: Program) -> None:
    options = ("--sites", "4", "--partition", "quantity:0.7", "--seed", "11", "--out", "out")
    ended = program(*RUN, *options, "--set", "training.learning_rate=0.1", "--json")
    results = json.loads(ended.out)
    study = results["study"]
    assert study["simulation"] == {"sites": 4, "partition": "quantity:0.7", "seed": 11}
    assert study["training"]["learning_rate"] == 0.1
    assert (results["sites"], results["seed"], results["engine"]) == (4, 11, "local")


def test_folds_are_reported(program: Program, tmp_path: Path) -> None:
    ended = program(*RUN, "--set", "evaluation.folds=3", "--out", "out")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_a_finished_run_may_be_resumed(program: Program, tmp_path: Path) -> None:
    assert program(*RUN, "--out", "out").code == 0
    model = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert "holds a run already" in refused(program(*RUN, "--out", "out"))
    assert program(*RUN, "--out", "out", "--resume").code == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model


MASKED = ("--set", "aggregation.masking=fsa1")
UNDEPLOYABLE = {
    "mode none": (3, ("study.toml", *MASKED), "privacy.mode: expected local or distributed"),
    "masking none": (3, ("private.toml",), "aggregation.masking: expected fsa1"),
    "cohort": (3, ("private.toml", *MASKED, "--set", "aggregation.cohort=3"), "cohort: expected 0"),
    "workers": (2, ("private.toml", *MASKED, "--workers", "2"), "--workers: expected none"),
    "device": (2, ("private.toml", *MASKED, "--device", "cuda"), "--device: expected cpu"),
}


@pytest.mark.parametrize("what", list(UNDEPLOYABLE))
def test_what_no_deployment_can_do_is_refused_before_anything_is_made(
    what: str, program: Program, tmp_path: Path
) -> None:
    code, words, said = UNDEPLOYABLE[what]
    options = ("--data", "toy.csv", "--engine", "deploy", "--out", "out")
    ended = program("run", *words, *options)
    assert said in refused(ended, code)
    assert ended.err.endswith("hint: --engine local runs it\n")
    assert not (tmp_path / "out").exists()


def test_a_run_is_resumed_by_the_engine_that_began_it(program: Program, tmp_path: Path) -> None:
    words = ("run", "private.toml", *MASKED, "--data", "toy.csv", "--out", "out")
    assert program(*words).code == 0
    said = refused(program(*words, "--resume", "--engine", "deploy"))
    assert said == "out: expected a run of --engine deploy, found one of local; nothing was run"
    (tmp_path / "out" / "checkpoint").rename(tmp_path / "out" / "deploy")
    said = refused(program(*words, "--resume"))
    assert said == "out: expected a run of --engine local, found one of deploy; nothing was run"


def test_tasks_are_data_on_stdout(program: Program) -> None:
    ended = program("tasks")
    assert (ended.code, ended.err) == (0, "")
    assert "tabular" in ended.out


def test_an_unknown_task_is_refused(program: Program) -> None:
    assert "expected tabular, image, series, sequence" in refused(program("tasks", "surgery"))


# Records that are refused


def line_changed(number: int, text: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [*lines[:number], text, *lines[number + 1 :]]


RECORDS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "wrong header": (
        line_changed(0, "age,mark,ward,ill"),
        "row 1: expected a header with the study's columns, found none for 'marker'",
    ),
    "no header": (lambda lines: lines[1:], "row 1: expected a header with the study's columns"),
    "text for a number": (
        line_changed(4, f"{SECRET}x,0.5,a,no"),
        "row 5, column 'age': expected a number",
    ),
    "above the range": (
        line_changed(4, f"{SECRET},0.5,a,no"),
        "row 5, column 'age': expected a number from 0 to 100",
    ),
    "below the range": (
        line_changed(9, f"40,-{SECRET},a,no"),
        "row 10, column 'marker': expected a number from -5 to 5",
    ),
    "not a number": (line_changed(4, "nan,0.5,a,no"), "row 5, column 'age': expected a number"),
    "infinity": (line_changed(4, "inf,0.5,a,no"), "row 5, column 'age': expected a number"),
    "missing": (line_changed(4, ",0.5,a,no"), "row 5, column 'age': expected a value"),
    "unknown class": (
        line_changed(4, f"40,0.5,a,{SECRET}"),
        "row 5, column 'ill': expected one of 'no', 'yes'",
    ),
    "unknown category": (
        line_changed(4, f"40,0.5,{SECRET},no"),
        "row 5, column 'ward': expected one of 'a', 'b', 'c', 'd'",
    ),
    "missing class": (line_changed(4, "40,0.5,a,"), "row 5, column 'ill': expected a value"),
    "too many cells": (
        line_changed(4, f"40,0.5,a,no,{SECRET}"),
        "row 5: expected 4 columns, found 5",
    ),
    "too few cells": (line_changed(4, SECRET), "row 5: expected 4 columns, found 1"),
    "empty": (lambda lines: [], "expected records, found an empty file"),
    "header alone": (lambda lines: lines[:1], "expected records, found none"),
    "open quote": (line_changed(4, f'40,"{SECRET},a,no'), "with every quote closed"),
}


@pytest.mark.parametrize("fault", list(RECORDS))
def test_wrong_records_are_refused_by_place_and_not_by_value(
    program: Program, tmp_path: Path, fault: str
) -> None:
    change, said = RECORDS[fault]
    path = tmp_path / "toy.csv"
    lines = change(path.read_text().splitlines())
    path.write_text("".join(line + "\n" for line in lines))
    before = path.read_bytes()
    ended = program(*RUN, "--out", "out")
    assert said in refused(ended)
    assert SECRET not in ended.err
    assert path.read_bytes() == before
    assert [file.name for file in (tmp_path / "out").iterdir()] == [MARK]


def test_bytes_that_are_no_text_are_refused(program: Program, tmp_path: Path) -> None:
    with (tmp_path / "toy.csv").open("ab") as file:
        file.write(b"40,0.5,a,\xff\xfe\n")
    assert "row 122: expected UTF-8 text" in refused(program(*RUN, "--out", "out"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"age,marker\n"])
def test_a_file_that_is_no_npz_is_refused(program: Program, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "toy.npz").write_bytes(content)
    ended = program("run", "study.toml", "--data", "toy.npz", "--out", "out")
    assert "toy.npz: expected an NPZ file" in refused(ended)


def test_arrays_of_unequal_length_are_refused(program: Program, tmp_path: Path) -> None:
    arrays = {"age": np.ones(4), "marker": np.ones(3)}
    np.savez(tmp_path / "toy.npz", **arrays, ward=np.array(["a"] * 4), ill=np.array(["no"] * 4))
    ended = program("run", "study.toml", "--data", "toy.npz", "--out", "out")
    assert "expected as many records as 'ill' has (4), found 3" in refused(ended)


@pytest.mark.parametrize("data", ["absent.csv", "absent", "study.toml", "."])
def test_a_path_without_records_is_refused(program: Program, tmp_path: Path, data: str) -> None:
    (tmp_path / "toy.csv").unlink()
    refused(program("run", "study.toml", "--data", data, "--out", "out"))


def test_records_that_are_not_given_are_asked_for(program: Program) -> None:
    ended = program("run", "study.toml", "--out", "out")
    refused(ended)
    assert "hint: give --data PATH" in ended.err


def test_a_network_that_cannot_do_the_task_is_refused(program: Program) -> None:
    ended = program(*RUN, "--set", 'model={name="lstm"}', "--out", "out")
    assert "model.name: task 'tabular' expected mlp, found 'lstm'" in refused(ended)


def test_a_partition_by_an_unknown_column_is_refused(program: Program) -> None:
    ended = program(*RUN, "--partition", "column:colour", "--out", "out")
    assert "one of ill, ward, found 'colour'" in refused(ended)


def test_refused_records_may_be_corrected_in_the_same_folder(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "toy.csv").rename(tmp_path / "kept.csv")
    refused(program(*RUN, "--out", "out"))
    (tmp_path / "kept.csv").rename(tmp_path / "toy.csv")
    assert program(*RUN, "--out", "out").code == 0


# Exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StudyError("a fault", "a way out"), 2),
        (DataError("a fault", "a way out"), 2),
        (PrivacyError("a fault", "a way out"), 3),
        (ProtocolError("a fault", "a way out"), 4),
        (AbsentError("a fault", "a way out"), 5),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    program: Program, monkeypatch: pytest.MonkeyPatch, error: FedwardError, code: int
) -> None:
    def failing(*arguments: object, **options: object) -> Outcome:
        raise error

    monkeypatch.setattr(simulations.run, "simulate", failing)
    ended = program(*RUN, "--out", "out")
    assert refused(ended, code) == "a fault"
    assert ended.err.endswith("hint: a way out\n")


def test_a_bug_is_one_line_and_its_details_are_for_the_user_alone(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(*arguments: object, **options: object) -> Outcome:
        raise KeyError(SECRET)

    monkeypatch.setattr(simulations.run, "simulate", failing)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = program(*RUN, "--out", "out")
    assert refused(ended, 1) == "a bug: KeyError"
    assert SECRET not in ended.err
    (details,) = tmp_path.glob("fedward-*.txt")
    assert str(details) in ended.err
    assert "KeyError: '31337'" in details.read_text()
    assert details.stat().st_mode & 0o777 == 0o600


def test_an_interruption_is_one_line(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulations.run, "simulate", interrupted)
    said = refused(program(*RUN, "--out", "out"), 130)
    assert said == "interrupted; what is done is kept"


def test_an_error_of_several_lines_is_shown_as_one(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object, **options: object) -> Outcome:
        raise DataError("one\ntwo\r\n  three")

    monkeypatch.setattr(simulations.run, "simulate", failing)
    assert refused(program(*RUN, "--out", "out")) == "one two three"


# What is imported


SLOW = ("torch", "flwr", "opacus", "sklearn", "scipy", "pandas", "matplotlib", "numpy")


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], ""),
        (["run", "--help"], ""),
        (["run", "absent.toml"], "numpy"),  # the tasks, which a study is read by, compute with it
        (["banana"], ""),
    ],
)
def test_help_and_usage_errors_import_nothing_slow(
    arguments: list[str], needed: str, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "from simulations.cli import main\n"
        f"sys.argv = ['fedward-sim', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"sys.stderr.write('imported: ' + ','.join(n for n in {SLOW!r} if n in sys.modules))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stderr.splitlines()[-1].endswith(f"imported: {needed}")
