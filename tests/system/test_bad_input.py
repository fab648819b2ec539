"""Wrong studies, records and options, given to the console script: one line, exit 2, no harm."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simulations.folder import MARK

Finish = Callable[..., "subprocess.CompletedProcess[str]"]
RUN = ("run", "study.toml", "--data", "toy.csv", "--out", "out")
SECRET = "31337"  # stands for a patient's value: no message may show it


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def refused(result: "subprocess.CompletedProcess[str]", code: int = 2) -> str:
    """Check the form of a refusal and return its one line."""
    lines = result.stderr.splitlines()
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert lines[0].startswith("fedward-sim: error: "), result.stderr
    assert len(lines) <= 2, result.stderr
    assert all(line.startswith("hint: ") for line in lines[1:]), result.stderr
    assert "Traceback" not in result.stderr
    return lines[0].removeprefix("fedward-sim: error: ")


def edited(folder: Path, old: str, new: str) -> None:
    path = folder / "study.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


STUDIES = {
    "missing key": ("delta = 1e-5\n", "", "privacy.delta: missing"),
    "unknown key": ("delta = 1e-5\n", "delta = 1e-5\ncolour = 1\n", "privacy.colour: unknown key"),
    "epsilon 0": ("epsilon = 2.0", "epsilon = 0", "privacy.epsilon: expected greater than 0"),
    "epsilon -1": ("epsilon = 2.0", "epsilon = -1", "privacy.epsilon: expected greater than 0"),
    "epsilon nan": ("epsilon = 2.0", "epsilon = nan", "privacy.epsilon: expected a finite number"),
    "sampling_rate 0": ("_rate = 1.0", "_rate = 0", "privacy.sampling_rate: expected greater"),
    "sampling_rate 1.5": ("_rate = 1.0", "_rate = 1.5", "privacy.sampling_rate: expected less"),
    "two sites": ("sites = 3", "sites = 2", "simulation.sites: expected greater than or equal"),
    "unknown task": ('"tabular"', '"surgery"', "task: expected 'tabular'"),
    "no mode": ('mode = "local"\n', "", "privacy.mode: missing, the study must say it"),
    "weights of records": (
        'masking = "none"',
        'masking = "none"\nweighting = "records"',
        "aggregation.weighting: 'records' expects privacy.mode = 'none'",
    ),
    "folds": (
        "[simulation]",
        "[evaluation]\nfolds = 3\n[simulation]",
        "evaluation.folds: expected only with privacy.mode = 'none'",
    ),
    "not TOML": ("[privacy]", "[privacy", "expected TOML"),
}


@pytest.mark.parametrize("mistake", list(STUDIES))
def test_a_wrong_study_is_refused_and_leaves_nothing(
    mistake: str, folder: Path, fedward_sim: Finish
) -> None:
    old, new, said = STUDIES[mistake]
    edited(folder, old, new)
    before = contents(folder)
    assert said in refused(fedward_sim(*RUN))
    assert contents(folder) == before


OPTIONS = {
    "engine": (("--engine", "ray"), "--engine: expected local or deploy, found 'ray'"),
    "sites": (("--sites", "2"), "simulation.sites"),
    "partition": (("--partition", "banana"), "simulation.partition"),
    "no such option": (("--banana",), "No such option"),
    "workers": (("--workers", "0"), "--workers"),
    "no key": (("--set", "rounds"), "--set: expected KEY=VALUE, found 'rounds'"),
}


@pytest.mark.parametrize("mistake", list(OPTIONS))
def test_a_wrong_option_is_refused_and_leaves_nothing(
    mistake: str, folder: Path, fedward_sim: Finish
) -> None:
    words, said = OPTIONS[mistake]
    before = contents(folder)
    assert said in refused(fedward_sim(*RUN, *words))
    assert contents(folder) == before


@pytest.mark.parametrize("study", ["absent.toml", ".", "toy.csv/study.toml", "/dev/null"])
def test_a_study_that_cannot_be_read_is_refused(
    study: str, folder: Path, fedward_sim: Finish
) -> None:
    before = contents(folder)
    assert refused(fedward_sim("run", study, "--out", "out")).startswith(f"{study}: ")
    assert contents(folder) == before


@pytest.mark.parametrize("out", ["toy.csv", "toy.csv/out", "/proc/self/out"])
def test_an_out_folder_that_cannot_be_written_is_refused(
    out: str, folder: Path, fedward_sim: Finish
) -> None:
    before = contents(folder)
    assert "cannot be written" in refused(fedward_sim(*RUN[:-1], out))
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_out_folder_without_permission_is_refused(folder: Path, fedward_sim: Finish) -> None:
    (folder / "locked").mkdir(mode=0o500)
    assert "cannot be written" in refused(fedward_sim(*RUN[:-1], "locked/out"))


# From here on torch is imported before the mistake is found: seconds each, so one of a kind.


def test_a_text_in_a_number_column_is_refused_by_row_and_column_without_its_value(
    folder: Path, fedward_sim: Finish
) -> None:
    lines = (folder / "toy.csv").read_text().splitlines()
    lines[7] = f"{SECRET}-old,0.5,yes"
    (folder / "toy.csv").write_text("\n".join(lines) + "\n")
    before = contents(folder)
    result = fedward_sim(*RUN)
    said = refused(result)
    assert "toy.csv: row 8, column 'age': expected a number" in said
    assert SECRET not in result.stderr
    after = contents(folder)
    assert set(after) - set(before) == {f"out/{MARK}"}
    assert {name: after[name] for name in before} == before


def test_an_npz_of_objects_is_refused(folder: Path, fedward_sim: Finish) -> None:
    ages = np.array([{"age": 3}] * 4, dtype=object)
    np.savez(folder / "toy.npz", age=ages, marker=np.ones(4), ill=np.array(["yes"] * 4))
    said = refused(fedward_sim("run", "study.toml", "--data", "toy.npz", "--out", "out"))
    assert "array 'age'" in said
    assert "an array of objects" in said


def test_a_folder_of_another_run_is_refused_and_untouched(
    folder: Path, fedward_sim: Finish
) -> None:
    (folder / "out").mkdir()
    (folder / "out" / MARK).write_text("0" * 64 + "\n")
    (folder / "out" / "results.json").write_text("{}")
    before = contents(folder)
    assert "holds a run already" in refused(fedward_sim(*RUN))
    assert "found a changed one" in refused(fedward_sim(*RUN, "--resume"))
    assert contents(folder) == before
