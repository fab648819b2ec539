"""JSON Lines become cells and arrays, or one error that names file, row and column and no value."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from client.data import ceiling
from client.data.faults import Faults
from client.data.jsonl import read_jsonl
from privacy.errors import DataError
from shared_models.contract import Data

AGE = {"kind": "number", "low": 0, "high": 120}
SERIES = {"kind": "series", "steps": 2, "variables": {"hr": {"low": 0, "high": 200}}}
IMAGE = {"kind": "image", "height": 1, "width": 2}


def contract(**columns: object) -> Data:
    document = {"target": "age", "columns": {"age": AGE, **columns}, "missing": ["", "?"]}
    return Data.model_validate_json(json.dumps(document))


def write(folder: Path, text: str, name: str = "ward.jsonl") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def refusal(path: Path, data: Data) -> str:
    with pytest.raises(DataError) as caught:
        read_jsonl(path, data, Faults())
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_numbers_texts_and_booleans_become_cells(tmp_path: Path) -> None:
    lines = '{"age": 63}\n{"age": 1.50}\n{"age": " 7 "}\n{"age": true}\n'
    table = read_jsonl(write(tmp_path, lines), contract(), Faults())
    assert table.columns["age"].tolist() == ["63", "1.5", "7", "true"]


def test_null_nan_marks_and_absent_keys_are_missing(tmp_path: Path) -> None:
    lines = '{"age": 1}\n{"age": null}\n{"age": NaN}\n{"age": "?"}\n{"ward": 3}\n'
    table = read_jsonl(write(tmp_path, lines), contract(), Faults())
    assert table.columns["age"].tolist() == ["1", None, None, None, None]


def test_gzip_is_unpacked(tmp_path: Path) -> None:
    table = read_jsonl(write(tmp_path, '{"age": 63}\n', "ward.jsonl.gz"), contract(), Faults())
    assert table.columns["age"].tolist() == ["63"]


def test_rows_are_counted_with_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, '\n{"age": 1}\n  \n{"age": 2}')
    table = read_jsonl(path, contract(), Faults())
    assert [table.place(row) for row in range(2)] == [f"{path}: row 2", f"{path}: row 4"]


def test_lists_become_series_with_gaps(tmp_path: Path) -> None:
    path = write(tmp_path, '{"age": 1, "x": [[60], [null]]}\n{"age": 2, "x": null}\n')
    x = read_jsonl(path, contract(x=SERIES), Faults()).columns["x"]
    np.testing.assert_array_equal(x, [[[60], [np.nan]], [[np.nan], [np.nan]]])


@pytest.mark.parametrize("x", ["[[5, 6]]", "[[[5], [6]]]"])
def test_lists_become_pictures_of_one_channel(tmp_path: Path, x: str) -> None:
    path = write(tmp_path, f'{{"age": 1, "x": {x}}}\n')
    assert read_jsonl(path, contract(x=IMAGE), Faults()).columns["x"].tolist() == [[[[5], [6]]]]


@pytest.mark.parametrize("x", ["[[77]]", '[[77], ["seventy"]]', "[[77], 77]", "77", "{}"])
def test_lists_of_another_shape_are_refused(tmp_path: Path, x: str) -> None:
    message = refusal(write(tmp_path, f'{{"age": 1, "x": {x}}}\n'), contract(x=SERIES))
    assert "row 1, column 'x': expected lists of numbers of shape (2, 1)" in message
    assert "7" not in message.removeprefix(str(tmp_path))
    assert "seventy" not in message


@pytest.mark.parametrize(
    "line", ["[77]", "77", '{"age": 77', '{"age": Infinity}', "seventy", "[" * 100_000]
)
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: str) -> None:
    message = refusal(write(tmp_path, '{"age": 1}\n' + line + "\n"), contract())
    assert "row 2: expected one JSON object" in message
    assert "77" not in message.removeprefix(str(tmp_path))


def test_a_list_in_a_number_column_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, '{"age": [77]}\n'), contract())
    assert "row 1, column 'age': expected a text or a number" in message


def test_a_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, '{"age": 1, "poe": 2}\n'), contract(ward=AGE))
    assert "'ward'" in message
    assert "poe" not in message


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert "empty file" in refusal(write(tmp_path, text), contract())


def test_a_gzip_bomb_stops_at_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "BYTES_MAX", 1 << 20)
    path = write(tmp_path, '{"age": 1}\n' + "\n" * (8 << 20), "bomb.jsonl.gz")
    assert path.stat().st_size < 1 << 14
    assert "at most 1,048,576 bytes" in refusal(path, contract())


@pytest.mark.parametrize("damage", [slice(0, -9), slice(5, None)])
def test_a_damaged_gzip_is_refused(tmp_path: Path, damage: slice) -> None:
    path = write(tmp_path, '{"age": 1}\n' * 1000, "ward.jsonl.gz")
    path.write_bytes(path.read_bytes()[damage])
    assert "whole gzip file" in refusal(path, contract())


def test_too_many_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "CELLS_MAX", 5)
    path = write(tmp_path, '{"age": 1, "x": [[1], [2]]}\n' * 2)
    assert "at most 5 cells" in refusal(path, contract(x=SERIES))
