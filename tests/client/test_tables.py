"""CSV and TSV files become cells, or one error that names file, row and column and no value."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import ceiling
from client.data.faults import Faults
from client.data.tables import read_table
from privacy.errors import DataError, StudyError
from shared_models.contract import Data

COLUMNS = {"age": {"kind": "number", "low": 0, "high": 120}, "note": {"kind": "words"}}


def contract(**keys: object) -> Data:
    document = {"target": "age", "columns": COLUMNS, **keys}
    return Data.model_validate_json(json.dumps(document))


def write(folder: Path, text: str | bytes, name: str = "ward.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path, data: Data) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, data, ",", Faults())
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_columns_are_found_by_name_and_others_left(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "note, ward ,age\nfine,7, 63 \n"), contract(), ",", Faults())
    assert table.columns["age"].tolist() == ["63"]
    assert table.columns["note"].tolist() == ["fine"]
    assert "ward" not in table.columns


def test_without_a_header_columns_come_in_the_order_of_the_study(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "63,fine\n"), contract(header=False), ",", Faults())
    assert table.columns["age"].tolist() == ["63"]


def test_tabs_separate_the_cells_of_tsv(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "age\tnote\n63\ta, b\n"), contract(), "\t", Faults())
    assert table.columns["note"].tolist() == ["a, b"]


def test_quotes_hold_separators_and_a_byte_order_mark_is_no_letter(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbfage,note\n63, "a, ""b"""\n')
    assert read_table(path, contract(), ",", Faults()).columns["note"].tolist() == ['a, "b"']


def test_marks_of_the_study_are_missing_values_and_others_are_not(tmp_path: Path) -> None:
    path = write(tmp_path, "age,note\n?, -9\n,x\n")
    table = read_table(path, contract(missing=["?", "-9"]), ",", Faults())
    assert table.columns["age"].tolist() == [None, ""]
    assert table.columns["note"].tolist() == [None, "x"]


def test_rows_are_counted_as_an_editor_counts_lines(tmp_path: Path) -> None:
    path = write(tmp_path, 'age,note\n\n1,"two\nlines"\n   \n2,b\n')
    table = read_table(path, contract(), ",", Faults())
    assert [table.place(row) for row in range(2)] == [f"{path}: row 3", f"{path}: row 6"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_understood(tmp_path: Path, end: str) -> None:
    table = read_table(write(tmp_path, f"age,note{end}1,a{end}2,b{end}"), contract(), ",", Faults())
    assert table.columns["age"].tolist() == ["1", "2"]


def test_a_header_alone_is_no_records(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, "age,note\n"), contract(), ",", Faults()).length == 0


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str, header: bool) -> None:
    assert "empty file" in refusal(write(tmp_path, text), contract(header=header))


def test_a_wrong_header_names_what_lacks_and_not_what_is_there(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "63,Ms Poe\n64,Mr Roe\n"), contract())
    assert "row 1" in message
    assert "'age', 'note'" in message
    assert "Poe" not in message
    assert "63" not in message


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    assert "'age' once" in refusal(write(tmp_path, "age,note,age\n1,a,2\n"), contract())


@pytest.mark.parametrize("row", ["77", "77,a,b"])
def test_a_short_or_long_row_is_refused(tmp_path: Path, row: str) -> None:
    message = refusal(write(tmp_path, f"age,note\n1,a\n{row}\n"), contract())
    assert "row 3: expected 2 columns" in message
    assert "77" not in message.removeprefix(str(tmp_path))  # a folder's number may be the same


def test_another_count_of_columns_without_header_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "77,a,b\n"), contract(header=False))
    assert "row 1: expected 2 columns, found 3" in message


def test_an_open_quote_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, 'age,note\n1,a\n2,"secret\n'), contract())
    assert "row 3" in message
    assert "secret" not in message


def test_other_encodings_than_utf8_are_refused_with_their_row(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, b"age,note\n1,a\n2,M\xfcller\n"), contract())
    assert "row 3: expected UTF-8" in message
    assert "ller" not in message


def test_a_file_above_the_ceiling_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceiling, "BYTES_MAX", 10)
    assert "at most 10 bytes" in refusal(write(tmp_path, "age,note\n1,a\n2,b\n"), contract())


def test_a_table_of_too_many_cells_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceiling, "CELLS_MAX", 4)
    path = write(tmp_path, "age,note\n1,a\n2,b\n")
    assert read_table(path, contract(), ",", Faults()).length == 2
    path = write(tmp_path, "age,note\n1,a\n2,b\n3,c\n")
    assert "at most 4 cells" in refusal(path, contract())


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    assert "expected a file" in refusal(tmp_path / "none.csv", contract())


def test_a_series_does_not_fit_into_a_cell(tmp_path: Path) -> None:
    series = {"kind": "series", "steps": 2, "variables": {"hr": {"low": 0, "high": 1}}}
    data = contract(columns={"age": COLUMNS["age"], "ward": series})
    with pytest.raises(StudyError, match=r"data\.columns\.ward"):
        read_table(write(tmp_path, "age,ward\n1,2\n"), data, ",", Faults())


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=8)


@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6))
def test_cells_come_back_as_a_writer_quoted_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("table") / "ward.csv"
    lines = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_bytes("\n".join(["age,note", *lines]).encode())
    table = read_table(path, contract(), ",", Faults())
    found = zip(table.columns["age"], table.columns["note"], strict=True)
    assert list(found) == [tuple(cell.strip() or None for cell in row) for row in rows]
