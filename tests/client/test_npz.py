"""NPZ arrays become columns; what is damaged, huge or holds objects is refused unread."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from client.data import ceiling
from client.data.faults import Faults
from client.data.npz import read_npz
from privacy.errors import DataError, StudyError
from shared_models.contract import Data

Y = {"kind": "category", "values": ["0", "1"]}


def contract(parts: tuple[str, ...] = (), **columns: object) -> Data:
    document = {"target": "y", "columns": {"y": Y, **columns}, "parts": parts}
    return Data.model_validate_json(json.dumps(document))


def write(folder: Path, **arrays: object) -> Path:
    path = folder / "ward.npz"
    np.savez_compressed(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def write_member(folder: Path, header: dict[str, object], content: bytes) -> Path:
    """Write an archive with an array "y" whose header says what it likes."""
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, header)
    path = folder / "ward.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y.npy", raw.getvalue() + content)
    return path


def refusal(path: Path, data: Data) -> str:
    with pytest.raises(DataError) as caught:
        list(read_npz(path, data, Faults()))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_columns_are_arrays_or_columns_of_arrays(tmp_path: Path) -> None:
    age = {"kind": "number", "low": 0, "high": 99, "array": "static", "index": 1}
    path = write(tmp_path, y=[[0], [1]], static=[[1.0, 63.0], [2.0, 64.0]])
    (table,) = read_npz(path, contract(age=age), Faults())
    assert table.columns["y"].tolist() == [0, 1]
    assert table.columns["age"].tolist() == [63, 64]


def test_parts_are_tables_of_their_own(tmp_path: Path) -> None:
    data = contract(("train", "test"), y=Y | {"array": "{part}_y"})
    path = write(tmp_path, train_y=[0, 1], test_y=[1])
    first, second = read_npz(path, data, Faults())
    assert (first.length, second.length) == (2, 1)
    assert second.public == {"part": "test"}
    assert second.place(0) == f"{path}: part 'test', row 1"


def test_texts_are_stripped_and_marked(tmp_path: Path) -> None:
    (table,) = read_npz(write(tmp_path, y=[" 1 ", ""]), contract(), Faults())
    assert table.columns["y"].tolist() == ["1", None]


def test_bytes_are_texts(tmp_path: Path) -> None:
    (table,) = read_npz(write(tmp_path, y=np.array([b"1", b"0"])), contract(), Faults())
    assert table.columns["y"].tolist() == ["1", "0"]


def test_objects_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, y=np.array([1, None], dtype=object))
    assert "array 'y': expected numbers or texts, found an array of objects" in refusal(
        path, contract()
    )


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", [("a", "i4")]])
def test_other_types_are_refused(tmp_path: Path, dtype: object) -> None:
    path = write(tmp_path, y=np.zeros(2, dtype=dtype))  # type: ignore[call-overload]
    assert "array 'y': expected numbers or texts" in refusal(path, contract())


def test_an_absent_array_is_named(tmp_path: Path) -> None:
    assert "expected arrays 'y'" in refusal(write(tmp_path, poe=[1]), contract())


def test_arrays_of_another_length_are_refused(tmp_path: Path) -> None:
    age = {"kind": "number", "low": 0, "high": 99}
    message = refusal(write(tmp_path, y=[0, 1], age=[5]), contract(age=age))
    assert "array 'age', column 'age'" in message


def test_a_column_beyond_the_array_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, y=[[0], [1]]), contract(y=Y | {"index": 3}))
    assert "array 'y': expected more than 3 columns" in message


@pytest.mark.parametrize("y", [7, [[0, 1], [1, 0]]])
def test_more_or_less_than_one_value_a_record_is_refused(tmp_path: Path, y: object) -> None:
    assert "array 'y': expected one value a record" in refusal(write(tmp_path, y=y), contract())


def test_declared_sizes_above_the_ceiling_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, y=np.zeros(1_000_000, dtype=np.uint8), other=np.zeros(1_000_000))
    assert path.stat().st_size < 1 << 16
    monkeypatch.setattr(ceiling, "BYTES_MAX", 1 << 16)
    assert "at most 65,536 bytes" in refusal(path, contract())
    monkeypatch.setattr(ceiling, "BYTES_MAX", 1 << 20)  # arrays that nobody names do not count
    assert len(list(read_npz(path, contract(), Faults()))) == 1


def test_arrays_together_stay_below_the_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = contract(age={"kind": "number", "low": 0, "high": 1})
    path = write(tmp_path, y=np.zeros(1000, np.uint8), age=np.zeros(1000, np.uint8))
    monkeypatch.setattr(ceiling, "BYTES_MAX", 2000)  # each array has 1128 bytes with its header
    assert "at most 2,000 bytes, found 2,256" in refusal(path, data)


def test_a_header_of_a_huge_shape_is_refused_before_it_is_believed(tmp_path: Path) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)}
    assert "at most" in refusal(write_member(tmp_path, header, bytes(8)), contract())


@pytest.mark.parametrize("shape", [(3,), (1,), (-2,)])
def test_a_header_that_does_not_fit_its_bytes_is_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    path = write_member(tmp_path, header, bytes(2))
    assert "array 'y'" in refusal(path, contract())


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ward.npz"
    path.write_bytes(b"secret")
    assert "expected an NPZ file" in refusal(path, contract())


def test_every_cut_of_an_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, y=np.arange(400) % 2)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        refusal(path, contract())


def test_every_broken_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = write(tmp_path, y=np.arange(100) % 2)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            (table,) = read_npz(path, contract(), Faults())
        except DataError:
            continue
        assert table.columns["y"].tolist() == [0, 1] * 50


def test_parts_without_arrays_of_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="part"):
        list(read_npz(write(tmp_path, y=[1]), contract(("train", "test")), Faults()))


def test_arrays_of_parts_without_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"data\.parts"):
        list(read_npz(write(tmp_path, y=[1]), contract(y=Y | {"array": "{part}_y"}), Faults()))
