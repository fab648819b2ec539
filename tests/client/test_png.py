"""Folders of PNG become pictures and classes; size, mode and unpacked size are checked first."""

import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data import ceiling
from client.data.faults import Faults
from client.data.png import read_png
from privacy.errors import DataError, StudyError
from shared_models.contract import Data

Y = {"kind": "category", "values": ["healthy", "ill"]}


def contract(channels: int = 1, high: float = 255, **columns: object) -> Data:
    x = {"kind": "image", "height": 2, "width": 3, "channels": channels, "high": high}
    document = {"target": "y", "columns": {"x": x, "y": Y, **columns}, "format": "png"}
    return Data.model_validate_json(json.dumps(document))


def write(path: Path, pixels: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def grey(value: int = 9, dtype: str = "u1") -> np.ndarray:  # type: ignore[type-arg]
    return np.full((2, 3), value, dtype=dtype)


def refusal(root: Path, data: Data) -> str:
    with pytest.raises(DataError) as caught:
        read_png(root, data, Faults())
    message = str(caught.value)
    assert str(root) in message
    assert "\n" not in message
    return message


def test_folders_are_classes_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "ill" / "b.png", grey(2))
    write(tmp_path / "ill" / "a.PNG", grey(1))
    path = write(tmp_path / "healthy" / "c.png", grey(3))
    (tmp_path / "ill" / "notes.txt").write_text("left")
    (tmp_path / ".cache").mkdir()
    table = read_png(tmp_path, contract(), Faults())
    assert table.columns["y"].tolist() == ["healthy", "ill", "ill"]
    assert table.columns["x"][:, 0, 0, 0].tolist() == [3, 1, 2]
    assert table.place(0) == str(path)


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_keep_their_order(tmp_path: Path, channels: int) -> None:
    pixels = np.arange(6 * channels, dtype=np.uint8).reshape(2, 3, channels)
    write(tmp_path / "ill" / "a.png", pixels)
    assert (read_png(tmp_path, contract(channels), Faults()).columns["x"][0] == pixels).all()


def test_sixteen_bits_are_read_where_the_range_has_them(tmp_path: Path) -> None:
    write(tmp_path / "ill" / "a.png", grey(60_000, "u2"))
    assert read_png(tmp_path, contract(high=65_535), Faults()).columns["x"].max() == 60_000
    assert "expected mode L" in refusal(tmp_path, contract())


def test_another_size_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ill" / "a.png", grey().T)
    assert f"{path}: expected 3 x 2 pixels, found 2 x 3" in refusal(tmp_path, contract())


def test_another_mode_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ill" / "a.png", grey())
    assert f"{path}: expected mode RGB, found L" in refusal(tmp_path, contract(3))


def test_a_class_that_the_study_does_not_know_is_refused_unnamed(tmp_path: Path) -> None:
    write(tmp_path / "ill" / "a.png", grey())
    write(tmp_path / "Poe" / "a.png", grey())
    message = refusal(tmp_path, contract())
    assert "expected folders named 'healthy', 'ill'" in message
    assert "Poe" not in message


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    assert "found none" in refusal(tmp_path, contract())


@pytest.mark.parametrize("kept", [0, 30, 50])
def test_a_damaged_picture_is_refused(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "ill" / "a.png", np.arange(6, dtype=np.uint8).reshape(2, 3))
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: expected a whole PNG" in refusal(tmp_path, contract())


def test_another_format_under_the_name_of_png_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ill" / "a.png", grey())
    Image.fromarray(grey()).save(path, format="BMP")
    assert "expected a whole PNG" in refusal(tmp_path, contract())


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "ill").mkdir()
    pixels = struct.pack(">I", 8) + b"IDAT" + bytes(12)
    for side in (10_000, 100_000):  # Pillow warns of the one and refuses the other
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        (tmp_path / "ill" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + pixels)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert "a.png: expected a whole PNG" in refusal(tmp_path, contract())
        assert told == []


def test_too_many_pictures_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ill").mkdir()
    for name in "abc":
        (tmp_path / "ill" / f"{name}.png").write_bytes(b"")
    monkeypatch.setattr(ceiling, "BYTES_MAX", 71)  # three pictures of 2 x 3 floats are 72
    assert "at most 71 bytes" in refusal(tmp_path, contract())


@pytest.mark.parametrize("columns", [{"age": {"kind": "number", "low": 0, "high": 1}}, {"x": Y}])
def test_other_columns_are_a_fault_of_the_study(tmp_path: Path, columns: dict[str, object]) -> None:
    with pytest.raises(StudyError, match="one image and the target"):
        read_png(tmp_path, contract(**columns), Faults())  # type: ignore[arg-type]
