"""Reads PNG pictures, a folder a class or a folder a column; size and mode are the study's.

Pictures in folders of columns are those that a mask belongs to, or whose answer nobody knows.
"""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data import ceiling
from client.data.faults import Faults, fault
from client.data.folders import read_folders
from client.data.table import Table
from privacy.errors import DataError, StudyError
from shared_models.contract import CategoryColumn, Data, ImageColumn, MaskColumn

MODES = {1: ("L", "I;16"), 3: ("RGB",), 4: ("RGBA",)}  # channels: modes of Pillow
PARSER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    OverflowError,
    zlib.error,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def read_png(root: Path, data: Data, faults: Faults) -> Table:
    """Read every ``root/CLASS/*.png``; the folder's name is the target, other files are left.

    With a mask as the target, or none, every ``root/COLUMN/*.png``.

    Raises:
        DataError: no such folders or pictures, or a class that the study does not know; or a
            picture that is damaged, of another size or mode, unless such are left out.
        StudyError: the study has other columns than one image and a category target.
    """
    answer = data.targets[0]
    target = data.columns.get(answer)
    if target is None or isinstance(target, MaskColumn):
        return read_folders(root, data, faults, (".png",), _checked)
    name, image = _image_column(data)
    if len(data.targets) > 1 or not isinstance(target, CategoryColumn):
        raise StudyError("data.target: expected a category column with folders of PNG")
    _check_modes(image)
    paths = _pictures(root, target)
    taken = ceiling.fit(len(paths), image.height * image.width * image.channels * 4, root, faults)
    if taken < len(paths):  # by the names alone: of no class there are none left
        first = set(sorted(paths, key=lambda path: (path.name, path))[:taken])
        paths = [path for path in paths if path in first]
    kind = np.uint8 if image.high <= 255 else np.uint16
    pictures = np.empty((len(paths), image.height, image.width, image.channels), dtype=kind)
    whole: list[Path] = []
    for path in paths:
        try:
            pictures[len(whole)] = _picture(path, image)
        except DataError as error:
            faults.add([error])
            continue
        whole.append(path)
    classes = np.empty(len(whole), dtype=object)
    classes[:] = [path.parent.name for path in whole]
    return Table(
        length=len(whole),
        columns={name: pictures[: len(whole)], answer: classes},
        place=lambda row: str(whole[row]),
        faults=faults,
    )


def _image_column(data: Data) -> tuple[str, ImageColumn]:
    others = {name: column for name, column in data.columns.items() if name not in data.targets}
    if len(others) == 1:
        name, column = others.popitem()
        if isinstance(column, ImageColumn):
            return name, column
    raise StudyError("data.columns: expected one image and the target with folders of PNG")


def _check_modes(image: ImageColumn) -> None:
    if image.channels not in MODES or image.depth is not None:
        raise StudyError("data.columns: expected a picture of 1, 3 or 4 channels with PNG")


def _checked(path: Path, column: ImageColumn) -> npt.NDArray[np.generic]:
    _check_modes(column)
    return _picture(path, column)


def _pictures(root: Path, target: CategoryColumn) -> list[Path]:
    """Return the files of each class, in the order of their names."""
    try:
        folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
        # The name of a folder that is no class stays unsaid: it may be a patient's.
        if not folders or not {folder.name for folder in folders} <= set(target.values):
            raise DataError(
                f"{root}: expected folders named {', '.join(map(repr, target.values))}, "
                f"found {'others' if folders else 'none'}; nothing was read"
            )
        return [
            path
            for folder in folders
            for path in sorted(folder.iterdir())
            if path.suffix.lower() == ".png" and not path.name.startswith(".")
        ]
    except OSError as error:
        raise ceiling.unreadable(root, error) from error


def _picture(path: Path, column: ImageColumn) -> npt.NDArray[np.generic]:
    """Return (H, W, C); size and mode are checked before the pixels are unpacked."""
    ceiling.check_file(path)
    modes = MODES[column.channels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as picture:
                if picture.size != (column.width, column.height):
                    raise fault(
                        f"{path}: expected {column.width} x {column.height} pixels, found "
                        f"{picture.width} x {picture.height}"
                    )
                if picture.mode not in modes or (picture.mode == "I;16" and column.high <= 255):
                    raise fault(f"{path}: expected mode {' or '.join(modes)}, found {picture.mode}")
                pixels = np.asarray(picture)
    except PARSER_ERRORS as error:
        raise fault(f"{path}: expected a whole PNG picture") from error
    return pixels.reshape(column.height, column.width, column.channels)
