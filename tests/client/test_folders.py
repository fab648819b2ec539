"""Folders of a column each: pictures and volumes meet the masks of their names, or are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.data import ceiling
from client.data.encode import encode
from client.data.faults import Faults
from client.data.folders import read_folders
from client.data.nifti import read_nifti
from client.data.png import read_png
from client.data.read import read_records, read_sites
from client.data.table import Table
from privacy.errors import DataError, StudyError
from shared_models.contract import Data
from shared_models.study import Study, parse_study

PICTURE: dict[str, Any] = {"kind": "image", "height": 4, "width": 6}
VOLUME: dict[str, Any] = {**PICTURE, "depth": 2, "high": 1000}
MASK: dict[str, Any] = {"kind": "mask", "values": ["ground", "nucleus"]}


def study(picture: dict[str, Any] = PICTURE, mask: dict[str, Any] = MASK, **data: Any) -> Study:
    columns = {"picture": picture, "nuclei": mask}
    return parse_study(
        {
            "name": "where",
            "task": "segmentation",
            "rounds": 1,
            "data": {"target": "nuclei", "columns": columns, "format": "png", **data},
            "model": {"name": "unet", "channels": [2, 4]},
            "training": {"learning_rate": 0.1},
            "privacy": {"mode": "none"},
        }
    )


def write_png(path: Path, pixels: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def pair(root: Path, name: str, value: int) -> None:
    write_png(root / "picture" / f"{name}.png", np.full((4, 6), value))
    write_png(root / "nuclei" / f"{name}.png", np.arange(24).reshape(4, 6) % 2)


# PNG


def test_a_picture_meets_the_mask_of_its_name(tmp_path: Path) -> None:
    pair(tmp_path, "b", 9)
    pair(tmp_path, "a", 51)
    (tmp_path / "picture" / "notes.txt").write_text("left")
    records = read_records(study(), tmp_path)
    assert records.inputs.shape == (2, 1, 4, 6)
    assert records.inputs[0, 0, 0, 0] == pytest.approx(0.2)  # a, then b
    assert records.targets.dtype == np.uint8
    assert (records.targets == np.arange(24).reshape(4, 6) % 2).all()


def test_levels_are_what_a_mask_holds(tmp_path: Path) -> None:
    pair(tmp_path, "a", 9)
    write_png(tmp_path / "nuclei" / "a.png", np.arange(24).reshape(4, 6) % 2 * 255)
    found = read_records(study(mask={**MASK, "levels": [0, 255]}), tmp_path)
    assert found.targets[0, 0, :2].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"a\.png.*'nuclei': expected points of 0, 1 alone"):
        read_records(study(), tmp_path)


def test_a_site_is_a_folder_of_such_folders(tmp_path: Path) -> None:
    for site in ("one", "two", "three"):
        pair(tmp_path / site, "a", 9)
    assert [name for name, _ in read_sites(study(), tmp_path)] == ["one", "three", "two"]


def test_pictures_of_a_model_at_use_have_no_masks(tmp_path: Path) -> None:
    pair(tmp_path, "a", 9)
    data = study().data
    columns = {"picture": data.columns["picture"]}
    table = read_png(tmp_path, data.model_copy(update={"columns": columns}), Faults())
    assert (table.length, set(table.columns)) == (1, {"picture"})


def test_a_picture_without_its_mask_is_refused(tmp_path: Path) -> None:
    pair(tmp_path, "a", 9)
    path = write_png(tmp_path / "picture" / "b.png", np.zeros((4, 6)))
    with pytest.raises(DataError, match="files of the same names in 'picture', 'nuclei'") as caught:
        read_records(study(), tmp_path)
    assert path.stem not in str(caught.value).split(": expected")[1].split()


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    write_png(tmp_path / "picture" / "a.png", np.zeros((4, 6)))
    with pytest.raises(DataError, match=r"nuclei: expected a folder of files, found none"):
        read_records(study(), tmp_path)


def test_a_file_of_another_size_is_refused_or_left_out_with_its_mask(tmp_path: Path) -> None:
    pair(tmp_path, "a", 9)
    pair(tmp_path, "c", 51)
    pair(tmp_path, "b", 9)
    path = write_png(tmp_path / "nuclei" / "b.png", np.zeros((6, 4)))
    with pytest.raises(DataError, match="expected 6 x 4 pixels, found 4 x 6") as caught:
        read_records(study(), tmp_path)
    assert str(path) in str(caught.value)
    records = read_records(study(), tmp_path, leave_out=True)
    assert records.left_out.count == 1
    assert records.inputs[:, 0, 0, 0] == pytest.approx([9 / 255, 0.2])


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    pair(tmp_path, "a", 9)
    (tmp_path / "picture" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    with pytest.raises(DataError, match="expected a whole PNG picture"):
        read_records(study(), tmp_path)


def test_other_columns_have_no_folder(tmp_path: Path) -> None:
    pair(tmp_path, "a", 9)
    columns = {"picture": PICTURE, "nuclei": MASK, "name": {"kind": "id"}}
    data = Data.model_validate_json(json.dumps({"target": "nuclei", "columns": columns}))
    with pytest.raises(StudyError, match=r"data\.columns\.name: expected an image or a mask"):
        read_png(tmp_path, data, Faults())


def test_volumes_are_no_png(tmp_path: Path) -> None:
    pair(tmp_path, "a", 9)
    with pytest.raises(StudyError, match="expected a picture of 1, 3 or 4 channels with PNG"):
        read_records(study(VOLUME), tmp_path)


def test_folders_above_the_ceiling_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcdefgh":
        pair(tmp_path, name, 9)
    monkeypatch.setattr(ceiling, "BYTES_MAX", 8 * 24 - 1)
    with pytest.raises(DataError, match="at most 191 bytes, found 192"):
        read_folders(tmp_path, study().data, Faults(), (".png",), lambda *_: pytest.fail("read"))


# Masks in a table


def test_masks_of_an_archive_are_whole_numbers_or_booleans(tmp_path: Path) -> None:
    truth = np.arange(48).reshape(2, 4, 6) % 3 == 0
    for masks in (truth, truth.astype(np.int16), truth[..., None].astype(float)):
        table = Table(2, {"picture": np.zeros((2, 4, 6)), "nuclei": masks}, str)
        assert (encode(study(), table).targets == truth).all()


@pytest.mark.parametrize("bad", [2, -1, 0.5, float("nan")])
def test_a_point_that_is_nothing_known_is_refused_by_its_record(bad: float) -> None:
    masks = np.zeros((3, 4, 6))
    masks[1, 2, 3] = bad
    columns = {"picture": np.zeros((3, 4, 6)), "nuclei": masks}
    with pytest.raises(DataError, match=r"^row 1, column 'nuclei': expected points of 0, 1 alone"):
        encode(study(), Table(3, columns, lambda row: f"row {row}"))
    table = Table(3, columns, lambda row: f"row {row}", faults=Faults(leave_out=True))
    assert len(encode(study(), table)) == 2


@pytest.mark.parametrize("shape", [(3, 6, 4), (3, 4), (3, 4, 6, 2)])
def test_masks_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    columns = {"picture": np.zeros((3, 4, 6)), "nuclei": np.zeros(shape)}
    with pytest.raises(DataError, match=r"column 'nuclei': expected masks of shape \(4, 6\)"):
        encode(study(), Table(3, columns, str))


def test_no_records_are_no_records() -> None:
    columns = {"picture": np.zeros((0, 4, 6)), "nuclei": np.zeros((0, 4, 6))}
    assert encode(study(), Table(0, columns, str)).targets.shape == (0, 4, 6)


def test_a_volume_of_colours_has_its_channels_first() -> None:
    given = study({**VOLUME, "channels": 3})
    values = np.random.default_rng(1).integers(0, 1000, (2, 2, 4, 6, 3))
    columns = {"picture": values, "nuclei": np.zeros((2, 2, 4, 6))}
    found = encode(given, Table(2, columns, str)).inputs
    np.testing.assert_allclose(found, np.moveaxis(values, 4, 1) / 1000, rtol=1e-6)


@pytest.mark.parametrize(("suffix", "text"), [("csv", "picture,nuclei\n1,2\n"), ("jsonl", "{}\n")])
def test_a_line_of_text_holds_no_mask(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"ward.{suffix}"
    path.write_text(text)
    with pytest.raises(StudyError, match=r"data\.columns\.(picture|nuclei): kind"):
        read_records(study(format=suffix), path)


# NIfTI


def write_nifti(path: Path, values: np.ndarray, steps: tuple[float, ...] = (1, 1, 1)) -> Path:
    """Write a (W, H, D) or (W, H, D, C) volume; a negative step is an axis that runs backwards."""
    nibabel = pytest.importorskip("nibabel", reason="reading NIfTI wants nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*steps, 1.0])), path)
    return path


def scan(root: Path, name: str = "a", steps: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    values = np.random.default_rng(2).integers(0, 1000, (6, 4, 2)).astype(np.int16)
    write_nifti(root / "picture" / f"{name}.nii.gz", values, steps)
    write_nifti(root / "nuclei" / f"{name}.nii.gz", (values > 500).astype(np.uint8), steps)
    return values


def volumes(**mask: Any) -> Study:
    return study(VOLUME, {**MASK, **mask}, format="nifti")


def test_a_volume_is_depth_height_width(tmp_path: Path) -> None:
    values = scan(tmp_path)
    records = read_records(volumes(), tmp_path)
    assert records.inputs.shape == (1, 1, 2, 4, 6)
    np.testing.assert_allclose(records.inputs[0, 0], values.T / 1000, rtol=1e-6)
    assert (records.targets[0] == (values.T > 500)).all()


def test_an_axis_that_runs_backwards_is_turned(tmp_path: Path) -> None:
    values = scan(tmp_path, steps=(-1, 1, -1))
    records = read_records(volumes(), tmp_path)
    np.testing.assert_allclose(records.inputs[0, 0], values[::-1, :, ::-1].T / 1000, rtol=1e-6)
    assert (records.targets[0] == (values[::-1, :, ::-1].T > 500)).all()


def test_axes_in_another_order_are_the_same_volume(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    values = scan(tmp_path)
    swapped = np.eye(4)[[2, 1, 0, 3]]  # the file's first axis goes to the head
    path = tmp_path / "picture" / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), swapped), path)
    records = read_records(volumes(), tmp_path)
    np.testing.assert_allclose(records.inputs[0, 0], values.T / 1000, rtol=1e-6)


def test_a_scaled_file_holds_what_its_header_says(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    values = scan(tmp_path)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(0.5, 100.0)
    # Stored numbers are written as they are: the header alone says what they mean.
    image = nibabel.Nifti1Image((values * 0.5 + 100.0), np.eye(4), image.header)
    nibabel.save(image, tmp_path / "picture" / "a.nii.gz")
    found = read_records(volumes(), tmp_path).inputs[0, 0]
    np.testing.assert_allclose(found, (values.T * 0.5 + 100) / 1000, atol=1e-3)


def test_the_fourth_axis_becomes_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 1000, (6, 4, 2, 3)).astype(np.int16)
    scan(tmp_path)
    write_nifti(tmp_path / "picture" / "a.nii.gz", values)
    given = study({**VOLUME, "channels": 3}, format="nifti")
    found = read_records(given, tmp_path).inputs
    np.testing.assert_allclose(found[0], np.moveaxis(values.T, 0, 0) / 1000, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 4, 2, 2), (4, 6, 2), (6, 4)])
def test_a_volume_of_another_size_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    scan(tmp_path)
    path = write_nifti(tmp_path / "picture" / "a.nii.gz", np.zeros(shape, dtype=np.int16))
    with pytest.raises(DataError, match="expected 2 x 4 x 6 x 1 voxels") as caught:
        read_records(volumes(), tmp_path)
    assert str(path) in str(caught.value)


def test_voxels_of_another_spacing_are_refused(tmp_path: Path) -> None:
    scan(tmp_path, steps=(1.0, 1.0, 2.2))
    assert len(read_records(volumes(spacing=[2.2, 1.0, 1.0]), tmp_path)) == 1
    with pytest.raises(DataError, match="expected voxels of 1 x 1 x 1, found others"):
        read_records(volumes(spacing=[1.0, 1.0, 1.0]), tmp_path)


@pytest.mark.parametrize("cut", [0, 100, 360, 380])
def test_a_damaged_volume_is_refused(tmp_path: Path, cut: int) -> None:
    values = scan(tmp_path)
    (tmp_path / "picture" / "a.nii.gz").unlink()
    path = write_nifti(tmp_path / "picture" / "a.nii", values)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.nii: expected a whole NIfTI volume"):
        read_records(volumes(), tmp_path)


def test_volumes_above_the_ceiling_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(tmp_path)
    monkeypatch.setattr(ceiling, "BYTES_MAX", 1 << 12)
    big = study({**VOLUME, "depth": 64}, format="nifti")
    with pytest.raises(DataError, match="at most 4,096 bytes"):
        read_records(big, tmp_path)


def test_without_nibabel_the_study_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.data.nifti.find_spec", lambda name: None)
    with pytest.raises(StudyError, match="expected nibabel, found none") as caught:
        read_nifti(tmp_path, volumes().data, Faults())
    assert "fedward[nifti]" in str(caught.value.hint)


def test_pictures_are_no_nifti(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    with pytest.raises(StudyError, match="expected an image with a depth"):
        read_nifti(tmp_path, study().data, Faults())
