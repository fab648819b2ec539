"""Reads folders of NIfTI volumes and their masks, turned to one orientation; nibabel is an extra.

Whatever order and directions a scanner stored, a record's axes are depth from the feet to the head,
height from back to front, width from left to right.
"""

import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client.data import ceiling
from client.data.faults import Faults, fault
from client.data.folders import read_folders
from client.data.table import Table
from privacy.errors import DataError, StudyError
from shared_models.contract import Data, ImageColumn, MaskColumn

SUFFIXES = (".nii.gz", ".nii")
TOLERANCE = 0.01  # of a spacing: scanners write it in float32, and round it
PARSER_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
    ArithmeticError,
    zlib.error,
)


def read_nifti(root: Path, data: Data, faults: Faults) -> Table:
    """Read ``root/COLUMN/NAME.nii`` or ``.nii.gz`` of the image and of the mask.

    The fourth axis of a file, such as time, becomes the image's channels.

    Raises:
        DataError: as `folders.read_folders`; a volume has another size, or a mask's spacing.
        StudyError: nibabel is not there, or the study has no volumes.
    """
    if find_spec("nibabel") is None:
        raise StudyError(
            "data.format: 'nifti' expected nibabel, found none", "pip install 'fedward[nifti]'"
        )
    if data.image.depth is None:
        raise StudyError("data.columns: expected an image with a depth with folders of NIfTI")
    spacing = next((c.spacing for c in data.columns.values() if isinstance(c, MaskColumn)), ())
    return read_folders(
        root, data, faults, SUFFIXES, lambda path, image: _volume(path, image, spacing)
    )


def _volume(path: Path, image: ImageColumn, spacing: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return (D, H, W, C); the header is checked before a value is unpacked."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    ceiling.check_file(path)
    wanted = (*image.sizes, image.channels)
    try:
        file: Any = nibabel.load(path)
        if not isinstance(file, nibabel.Nifti1Image):
            raise fault(f"{path}: expected a NIfTI volume")
        shape = tuple(int(size) for size in file.shape)
        shape = (*shape, *(1,) * (4 - len(shape)))
        if len(shape) != 4 or shape[3] != wanted[3] or sorted(shape[:3]) != sorted(wanted[:3]):
            raise _size(path, wanted)
        if file.get_data_dtype().kind not in "biuf":
            raise fault(f"{path}: expected numbers as voxels")
        file = nibabel.as_closest_canonical(file)  # axes to the right, the front, the head
        steps = tuple(float(step) for step in file.header.get_zooms()[:3])
        values = np.asarray(file.dataobj, dtype=np.float32)
    except (*PARSER_ERRORS, ImageFileError, HeaderDataError) as error:
        raise fault(f"{path}: expected a whole NIfTI volume") from error
    values = values.reshape(*values.shape[:3], -1).transpose(2, 1, 0, 3)  # (W, H, D, C) -> (D, ...)
    if values.shape != wanted:
        raise _size(path, wanted)
    if spacing and not np.allclose(steps[::-1], spacing, rtol=TOLERANCE):
        told = " x ".join(f"{step:g}" for step in spacing)
        raise fault(f"{path}: expected voxels of {told}, found others", "resample the volume")
    return values


def _size(path: Path, wanted: tuple[int, ...]) -> DataError:
    told = " x ".join(map(str, wanted))
    return fault(f"{path}: expected {told} voxels (depth, height, width, values), found others")
