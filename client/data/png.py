"""Reads a folder of PNG pictures, one folder a class; size and mode are the study's, or refused."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data import ceiling
from client.data.table import Table
from privacy.errors import DataError, StudyError
from shared_models.contract import CategoryColumn, Data, ImageColumn

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


def read_png(root: Path, data: Data) -> Table:
    """Read every ``root/CLASS/*.png``; the folder's name is the target, other files are left.

    Raises:
        DataError: no such folders or pictures, a class that the study does not know, or a picture
            that is damaged, of another size or mode.
        StudyError: the study has other columns than one image and a category target.
    """
    name, image = _image_column(data)
    target = data.columns[data.target]
    if not isinstance(target, CategoryColumn):
        raise StudyError("data.target: expected a category column with folders of PNG")
    if image.channels not in MODES:
        raise StudyError(f"data.columns.{name}.channels: expected 1, 3 or 4 with PNG")
    paths, labels = _pictures(root, target)
    ceiling.check_bytes(len(paths) * image.height * image.width * image.channels * 4, root)
    kind = np.uint8 if image.high <= 255 else np.uint16
    pictures = np.empty((len(paths), image.height, image.width, image.channels), dtype=kind)
    for row, path in enumerate(paths):
        pictures[row] = _picture(path, image)
    classes = np.empty(len(labels), dtype=object)
    classes[:] = labels
    return Table(
        length=len(paths),
        columns={name: pictures, data.target: classes},
        place=lambda row: str(paths[row]),
    )


def _image_column(data: Data) -> tuple[str, ImageColumn]:
    others = {name: column for name, column in data.columns.items() if name != data.target}
    if len(others) == 1:
        name, column = others.popitem()
        if isinstance(column, ImageColumn):
            return name, column
    raise StudyError("data.columns: expected one image and the target with folders of PNG")


def _pictures(root: Path, target: CategoryColumn) -> tuple[list[Path], list[str]]:
    """Return the files and their classes, both in the order of their names."""
    try:
        folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
        # The name of a folder that is no class stays unsaid: it may be a patient's.
        if not folders or not {folder.name for folder in folders} <= set(target.values):
            raise DataError(
                f"{root}: expected folders named {', '.join(map(repr, target.values))}, "
                f"found {'others' if folders else 'none'}; nothing was read"
            )
        paths = [
            path
            for folder in folders
            for path in sorted(folder.iterdir())
            if path.suffix.lower() == ".png" and not path.name.startswith(".")
        ]
    except OSError as error:
        raise ceiling.unreadable(root, error) from error
    return paths, [path.parent.name for path in paths]


def _picture(path: Path, column: ImageColumn) -> npt.NDArray[np.generic]:
    """Return (H, W, C); size and mode are checked before the pixels are unpacked."""
    ceiling.check_file(path)
    modes = MODES[column.channels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as picture:
                if picture.size != (column.width, column.height):
                    raise DataError(
                        f"{path}: expected {column.width} x {column.height} pixels, found "
                        f"{picture.width} x {picture.height}; no record was used"
                    )
                if picture.mode not in modes or (picture.mode == "I;16" and column.high <= 255):
                    raise DataError(
                        f"{path}: expected mode {' or '.join(modes)}, found {picture.mode}; "
                        "no record was used"
                    )
                pixels = np.asarray(picture)
    except PARSER_ERRORS as error:
        raise DataError(f"{path}: expected a whole PNG picture; no record was used") from error
    return pixels.reshape(column.height, column.width, column.channels)
