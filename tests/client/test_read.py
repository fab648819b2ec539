"""A path becomes records: by suffix or the study's format, one file, a folder, or a file a site."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.data import ceiling
from client.data.read import read_records, read_sites, read_words
from privacy.errors import DataError, StudyError
from shared_models.study import Study, parse_study

COLUMNS: dict[str, Any] = {
    "age": {"kind": "number", "low": 0, "high": 100},
    "y": {"kind": "category", "values": ["0", "1"]},
}


def study_of(columns: dict[str, Any] = COLUMNS, task: str = "tabular", **data: Any) -> Study:
    return parse_study(
        {
            "name": "ward",
            "task": task,
            "rounds": 1,
            "data": {"target": "y", "columns": columns, **data},
            "model": {"name": "mlp" if task == "tabular" else "cnn"},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": {"mode": "none"},
        }
    )


def write(path: Path, *ages: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("age,y\n" + "".join(f"{age},1\n" for age in ages))
    return path


def ages_of(inputs: Any) -> list[int]:
    return [round(50 * value + 50) for value in inputs.ravel().tolist()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "age,y\n7,1\n"),
        ("a.CSV", "age,y\n7,1\n"),
        ("a.tsv", "age\ty\n7\t1\n"),
        ("a.jsonl", '{"age": 7, "y": 1}\n'),
        ("a.csv.gz", "age,y\n7,1\n"),
        ("a.jsonl.gz", '{"age": 7, "y": 1}\n'),
    ],
)
def test_the_name_of_a_file_tells_its_format(tmp_path: Path, name: str, text: str) -> None:
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    records = read_records(study_of(), tmp_path / name)
    assert ages_of(records.inputs) == [7]
    assert records.targets.tolist() == [1]
    assert ages_of(read_records(study_of(), tmp_path).inputs) == [7]


def test_the_format_of_the_study_goes_before_the_name(tmp_path: Path) -> None:
    path = write(tmp_path / "ward.data", 7)
    assert ages_of(read_records(study_of(format="csv"), path).inputs) == [7]
    with pytest.raises(StudyError, match=r"data\.format"):
        read_records(study_of(), path)


def test_a_folder_is_read_in_the_order_of_names_with_its_files_public(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", 2, 3)
    write(tmp_path / "a.b.csv", 1)
    write(tmp_path / ".hidden.csv", 9)
    (tmp_path / "notes.txt").write_text("left")
    records = read_records(study_of(), tmp_path)
    assert ages_of(records.inputs) == [1, 2, 3]
    assert records.public["file"].tolist() == ["a.b", "b", "b"]


def test_files_says_which_files_of_a_folder_are_meant(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 1)
    write(tmp_path / "b.data", 2)
    records = read_records(study_of(files="*.data", format="csv"), tmp_path)
    assert ages_of(records.inputs) == [2]
    assert "file" not in records.public


@pytest.mark.parametrize("keys", [{}, {"files": "*.data", "format": "csv"}, {"format": "npz"}])
def test_a_folder_without_such_files_is_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    (tmp_path / "notes.txt").write_text("left")
    with pytest.raises(DataError, match="found none") as caught:
        read_records(study_of(**keys), tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("files", ["../*.csv", "/etc/*", "a/../../b"])
def test_files_outside_the_folder_are_refused(tmp_path: Path, files: str) -> None:
    with pytest.raises(StudyError, match=r"data\.files"):
        read_records(study_of(files=files), tmp_path)


def test_an_absent_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a file"):
        read_records(study_of(), tmp_path / "none.csv")


def test_one_broken_file_of_many_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 1)
    path = write(tmp_path / "b.csv", 1, 7777)
    with pytest.raises(DataError) as caught:
        read_records(study_of(), tmp_path)
    assert str(caught.value).startswith(f"{path}: row 3, column 'age': ")
    assert "7777" not in str(caught.value)


def test_files_together_stay_below_the_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.csv", *range(8))
    write(tmp_path / "b.csv", *range(8))
    monkeypatch.setattr(ceiling, "BYTES_MAX", 63)  # 16 records of one float32 are 64
    with pytest.raises(DataError, match="at most 63 bytes"):
        read_records(study_of(), tmp_path)


def test_one_patient_in_two_files_is_one_patient(tmp_path: Path) -> None:
    columns = COLUMNS | {"who": {"kind": "id"}}
    for name, who in (("a", "x"), ("b", "y"), ("c", "x")):
        (tmp_path / f"{name}.csv").write_text(f"age,y,who\n1,1,{who}\n")
    records = read_records(study_of(columns, patient="who"), tmp_path)
    assert records.patients is not None
    assert records.patients.tolist() == [0, 1, 0]


def test_parts_of_an_npz_are_one_set_with_a_public_column(tmp_path: Path) -> None:
    columns = {
        "age": COLUMNS["age"] | {"array": "{part}_x"},
        "y": COLUMNS["y"] | {"array": "{part}_y"},
    }
    path = tmp_path / "ward.npz"
    np.savez(path, train_x=[1, 2], train_y=[0, 1], test_x=[3], test_y=[1])
    records = read_records(study_of(columns, parts=["train", "test"]), path)
    assert ages_of(records.inputs) == [1, 2, 3]
    assert records.public["part"].tolist() == ["train", "train", "test"]


def test_builtin_records_need_no_path() -> None:
    columns = {
        "mean radius": {"kind": "number", "low": 0, "high": 50},
        "y": {"kind": "category", "values": ["benign", "malignant"]},
    }
    records = read_records(study_of(columns, builtin="breast_cancer"), None)
    assert records.inputs.shape == (569, 1)
    assert records.targets.sum() == 212


def test_a_path_goes_before_builtin_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 7)
    assert len(read_records(study_of(builtin="digits"), path)) == 1


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(path)


def test_folders_of_pictures_are_one_set_or_a_site_each(tmp_path: Path) -> None:
    columns = {"x": {"kind": "image", "height": 2, "width": 2}, "y": COLUMNS["y"]}
    study = study_of(columns, task="image", format="png")
    for site in "abc":
        picture(tmp_path / site / "0" / "p.png")
        picture(tmp_path / site / "1" / "p.png")
    assert read_records(study, tmp_path / "a").targets.tolist() == [0, 1]
    unnamed = study_of(columns, task="image")
    assert read_records(unnamed, tmp_path / "a").targets.tolist() == [0, 1]
    assert [(name, len(own)) for name, own in read_sites(study, tmp_path)] == [
        ("a", 2), ("b", 2), ("c", 2),
    ]  # fmt: skip
    with pytest.raises(DataError, match="expected a folder"):
        read_records(study, tmp_path / "a" / "0" / "p.png")


def test_one_file_a_site(tmp_path: Path) -> None:
    for name in ("north", "south", "west.old"):
        write(tmp_path / f"{name}.csv", len(name))
    sites = read_sites(study_of(), tmp_path)
    assert [name for name, _ in sites] == ["north", "south", "west.old"]
    assert [ages_of(records.inputs) for _, records in sites] == [[5], [5], [8]]


def test_one_folder_a_site(tmp_path: Path) -> None:
    for name in ("north", "south", "west"):
        write(tmp_path / name / "a.csv", 1)
        write(tmp_path / name / "b.csv", 2)
    sites = read_sites(study_of(), tmp_path)
    assert [name for name, _ in sites] == ["north", "south", "west"]
    assert [len(records) for _, records in sites] == [2, 2, 2]


def test_a_site_without_records_is_a_site(tmp_path: Path) -> None:
    for name, ages in (("a", [1]), ("b", []), ("c", [1, 2])):
        write(tmp_path / f"{name}.csv", *ages)
    assert [len(records) for _, records in read_sites(study_of(), tmp_path)] == [1, 0, 2]


def test_two_sites_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 1)
    write(tmp_path / "b.csv", 1)
    with pytest.raises(DataError, match=">= 3 sites, found 2"):
        read_sites(study_of(), tmp_path)


def test_two_sites_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "b.tsv"):
        write(tmp_path / name, 1)
    with pytest.raises(DataError, match="name of its own"):
        read_sites(study_of(), tmp_path)


def test_a_file_is_no_folder_of_sites(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder"):
        read_sites(study_of(), write(tmp_path / "a.csv", 1))


def test_the_words_of_records_stand_where_their_ids_do(tmp_path: Path) -> None:
    columns = {**COLUMNS, "note": {"kind": "words", "buckets": 99, "length": 3}}
    del columns["age"]
    study = study_of(columns, "sequence", files="*.jsonl")
    (tmp_path / "a.jsonl").write_text('{"note": "No pain, No FEVER today", "y": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"note": "pain", "y": 0}\n')
    ids = read_records(study, tmp_path).inputs
    found = read_words(study, tmp_path, "note")
    assert found == [("no", "pain", "no"), ("pain",)]
    assert ids[0, 0] == ids[0, 2] != ids[0, 1]
    assert ids[0, 1] == ids[1, 0]
    assert ids[1, 1:].tolist() == [0, 0]
