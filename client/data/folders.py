"""Reads a folder of files a column: pictures or volumes, and the masks of the same names.

    root/COLUMN/NAME.png        one record a NAME that has a file of every column
    root/COLUMN/NAME.nii.gz

What a file holds is its format's matter; what the points of a mask may be, the contract's.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data import ceiling
from client.data.faults import Faults, fault
from client.data.table import Cells, Table
from privacy.errors import DataError, StudyError
from shared_models.contract import Data, ImageColumn, MaskColumn

Read = Callable[[Path, ImageColumn], npt.NDArray[np.generic]]
"""A file, and the image it should be -> (*sizes, C)."""


def read_folders(
    root: Path, data: Data, faults: Faults, suffixes: tuple[str, ...], read: Read
) -> Table:
    """Read the files of every column of the study, in the order of their names.

    Args:
        suffixes: of the files, in small letters; others are left.
        read: one file of them.

    Raises:
        DataError: a folder is absent or cannot be read, or a record has a file in one folder and
            none in another; or a file is damaged or of another size, unless such are left out.
        StudyError: the study has a column that is neither an image nor a mask.
    """
    images = {name: _as_image(data, name) for name in data.columns}
    files = {name: _files(root / (data.columns[name].array or name), suffixes) for name in images}
    names = sorted(set.intersection(*map(set, files.values())))
    alone = len(set.union(*map(set, files.values()))) - len(names)
    if alone:
        folders = ", ".join(map(repr, files))
        others = f"{root}: expected files of the same names in {folders}, found others"
        faults.add([fault(others)], alone)
    kinds = {
        name: np.dtype(np.float32 if image.depth else np.uint16 if image.high > 255 else np.uint8)
        for name, image in images.items()
    }
    shapes = {name: (*image.sizes, image.channels) for name, image in images.items()}
    size = max(math.prod(shapes[name]) * kinds[name].itemsize for name in images)
    names = names[: ceiling.fit(len(names), size, root, faults)]
    cells: dict[str, Cells] = {
        name: np.empty((len(names), *shapes[name]), dtype=kinds[name]) for name in images
    }
    whole: list[Path] = []
    for stem in names:
        try:
            for name, image in images.items():
                cells[name][len(whole)] = read(files[name][stem], image)
        except DataError as error:
            faults.add([error])
            continue
        whole.append(next(iter(files.values()))[stem])
    return Table(
        length=len(whole),
        columns={name: array[: len(whole)] for name, array in cells.items()},
        place=lambda row: str(whole[row]),
        faults=faults,
    )


def _as_image(data: Data, name: str) -> ImageColumn:
    """Return the image column that a file of this column should be."""
    column = data.columns[name]
    if isinstance(column, ImageColumn):
        return column
    if not isinstance(column, MaskColumn):
        raise StudyError(f"data.columns.{name}: expected an image or a mask with folders of files")
    highest = max(column.levels or (len(column.values) - 1,))
    return data.image.model_copy(update={"channels": 1, "low": 0.0, "high": float(highest)})


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return a column's files by their names without the suffix."""
    found: dict[str, Path] = {}
    try:
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of files, found none; nothing was read")
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ceiling.unreadable(folder, error) from error
    for path in paths:
        suffix = next((one for one in suffixes if path.name.lower().endswith(one)), None)
        if suffix is None:
            continue
        stem = path.name[: -len(suffix)]
        if stem in found:
            raise DataError(f"{folder}: expected each name once, found one again; nothing was read")
        found[stem] = path
    return found
