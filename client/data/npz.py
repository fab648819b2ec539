"""Reads the arrays of an NPZ file that the study names; arrays of objects are refused.

Sizes are checked before an array is read: those that the archive declares, and the array's own.
"""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from client.data import ceiling
from client.data.table import Cells, Table, cell_of
from privacy.errors import DataError, StudyError
from shared_models.contract import AnyColumn, Data, ImageColumn, SeriesColumn

KINDS = "biufUS"  # booleans, numbers and texts
PARSER_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    KeyError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
    OverflowError,
    RuntimeError,  # an encrypted member
    NotImplementedError,  # an unknown compression
)


def read_npz(path: Path, data: Data) -> Iterator[Table]:
    """Yield one table a part of the study, or one, from the arrays that the columns name.

    Raises:
        DataError: the file cannot be read, or an array is absent, damaged, above the ceiling, of
            objects, or not of the records' length.
        StudyError: parts and arrays of the study do not fit.
    """
    names = {name: column.array or name for name, column in data.columns.items()}
    if data.parts and not any("{part}" in array for array in names.values()):
        raise StudyError("data.columns: expected an array with '{part}' when there are parts")
    if not data.parts and any("{part}" in array for array in names.values()):
        raise StudyError("data.parts: missing, expected with '{part}' in an array's name")
    ceiling.check_file(path)
    try:
        archive = zipfile.ZipFile(path)
    except PARSER_ERRORS as error:
        raise DataError(f"{path}: expected an NPZ file; nothing was read") from error
    with archive:
        wanted = {
            array.replace("{part}", part)
            for array in names.values()
            for part in data.parts or ("",)
        }
        _check_members(path, archive, wanted)
        for part in data.parts or ("",):
            yield _table(
                path, archive, data, {n: a.replace("{part}", part) for n, a in names.items()}, part
            )


def _table(
    path: Path, archive: zipfile.ZipFile, data: Data, names: dict[str, str], part: str
) -> Table:
    arrays = {array: _array(path, archive, array) for array in set(names.values())}
    marks = frozenset(mark.strip() for mark in data.missing)
    columns = {
        name: _column(path, names[name], arrays[names[name]], column, marks)
        for name, column in data.columns.items()
    }
    length = len(columns[data.target])
    for name, cells in columns.items():
        if len(cells) != length:
            raise DataError(
                f"{path}: array {names[name]!r}, column {name!r}: expected as many records as the "
                f"target has ({length}), found {len(cells)}; no record was used"
            )
    inside = f"part {part!r}, " if part else ""
    return Table(
        length,
        columns,
        lambda row: f"{path}: {inside}row {row + 1}",
        {"part": part} if part else {},
    )


def _check_members(path: Path, archive: zipfile.ZipFile, wanted: set[str]) -> None:
    members = [info for info in archive.infolist() if info.filename.removesuffix(".npy") in wanted]
    ceiling.check_bytes(sum(info.file_size for info in members), path)
    absent = sorted(wanted - {info.filename.removesuffix(".npy") for info in members})
    if absent:
        raise DataError(
            f"{path}: expected arrays {', '.join(map(repr, absent))}, found none; nothing was read"
        )
    if len(members) > len(wanted):
        raise DataError(f"{path}: expected every array once, found one again; nothing was read")


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> Cells:
    """Return one array, after its header has been checked."""
    where = f"{path}: array {name!r}"
    member = name if name in archive.namelist() else f"{name}.npy"
    try:
        with archive.open(member) as file:
            _check_header(where, file, archive.getinfo(member).file_size)
        with archive.open(member) as file:
            array: Cells = np.lib.format.read_array(file, allow_pickle=False)
    except PARSER_ERRORS as error:
        raise DataError(f"{where}: expected a whole NumPy array; no record was used") from error
    return array


def _check_header(where: str, file: IO[bytes], size: int) -> None:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise DataError(f"{where}: expected NPY version 1 or 2; no record was used")
    if dtype.hasobject:
        raise DataError(
            f"{where}: expected numbers or texts, found an array of objects; nothing was read",
            "save it with numpy.savez from an array of a number type",
        )
    if dtype.kind not in KINDS:
        raise DataError(f"{where}: expected numbers or texts, found another type")
    count = dtype.itemsize
    for length in shape:
        count *= length
    ceiling.check_bytes(count, where)
    if count != size - file.tell():
        raise DataError(f"{where}: expected as many bytes as its shape says; nothing was read")


def _column(path: Path, name: str, array: Cells, column: AnyColumn, marks: frozenset[str]) -> Cells:
    where = f"{path}: array {name!r}"
    if column.index is not None:
        if array.ndim < 2 or array.shape[1] <= column.index:
            raise DataError(f"{where}: expected more than {column.index} columns, found fewer")
        array = array[:, column.index]
    if array.ndim == 0:
        raise DataError(f"{where}: expected one value a record, found a single value")
    if not isinstance(column, SeriesColumn | ImageColumn):
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]  # (N, 1) -> (N,)
        if array.ndim != 1:
            raise DataError(f"{where}: expected one value a record, found shape {array.shape[1:]}")
    if array.dtype.kind not in "US":
        return array
    try:
        texts = array.astype(str).tolist()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected ASCII bytes or text; no record was used") from error
    cells = np.empty(len(texts), dtype=object)
    if isinstance(column, SeriesColumn | ImageColumn):
        return cells  # of no number type: the contract refuses it
    cells[:] = [cell_of(text, marks) for text in texts]
    return cells
