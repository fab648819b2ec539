"""The folder of a run is new or the same run's; what else is in it stays as it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from privacy.errors import DataError
from shared_models.study import Study
from simulations.folder import MARK, claim


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def used(toy_study: Callable[..., Study], tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    claim(folder, toy_study(), resume=False)
    (folder / "results.json").write_text("{}")
    return folder


def test_a_new_folder_is_made_with_its_parents(
    toy_study: Callable[..., Study], tmp_path: Path
) -> None:
    claim(tmp_path / "a" / "b", toy_study(), resume=False)
    mark = f"{toy_study().digest()} toy\n".encode()
    assert contents(tmp_path) == {f"a/b/{MARK}": mark}


def test_an_empty_folder_is_taken(toy_study: Callable[..., Study], tmp_path: Path) -> None:
    claim(tmp_path, toy_study(), resume=False)
    assert (tmp_path / MARK).is_file()


def test_a_folder_whose_records_were_refused_is_taken_by_another_study(
    toy_study: Callable[..., Study], tmp_path: Path
) -> None:
    claim(tmp_path, toy_study(), resume=False)
    claim(tmp_path, toy_study(rounds=9), resume=False)
    claim(tmp_path, toy_study(rounds=9), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_foreign_files_is_refused_and_untouched(
    toy_study: Callable[..., Study], tmp_path: Path, resume: bool
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="other files"):
        claim(tmp_path, toy_study(), resume=resume)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_run_is_not_run_again_without_resume(used: Path, toy_study: Callable[..., Study]) -> None:
    before = contents(used)
    with pytest.raises(DataError, match="holds a run already") as refusal:
        claim(used, toy_study(), resume=False)
    assert "--resume" in refusal.value.hint
    assert contents(used) == before


def test_a_changed_study_does_not_resume(used: Path, toy_study: Callable[..., Study]) -> None:
    before = contents(used)
    with pytest.raises(DataError, match="found a changed one"):
        claim(used, toy_study(rounds=9), resume=True)
    assert contents(used) == before


def test_the_same_study_resumes(used: Path, toy_study: Callable[..., Study]) -> None:
    before = contents(used)
    claim(used, toy_study(), resume=True)
    assert contents(used) == before


def test_the_demo_replaces_its_own_run(used: Path, toy_study: Callable[..., Study]) -> None:
    claim(used, toy_study(), resume=False, replace=True)
    assert set(contents(used)) == {MARK}


def test_the_demo_does_not_replace_a_run_of_another_study(
    used: Path, toy_study: Callable[..., Study]
) -> None:
    before = contents(used)
    with pytest.raises(DataError, match="holds a run already"):
        claim(used, toy_study(name="other"), resume=False, replace=True)
    assert contents(used) == before


def test_the_demo_does_not_replace_foreign_files(
    toy_study: Callable[..., Study], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="other files"):
        claim(tmp_path, toy_study(), resume=False, replace=True)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("inside", ["", "x", "x/y"])
def test_a_path_at_or_below_a_file_cannot_be_written(
    toy_study: Callable[..., Study], tmp_path: Path, inside: str
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(DataError, match="cannot be written"):
        claim(file / inside, toy_study(), resume=False)
    assert file.read_text() == "kept"
