"""Reads the arrays of an NPZ file that the study names; arrays of objects are refused.

Sizes are checked before an array is read: those that the archive declares, and the array's own.
"""

import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from client.data import ceiling
from client.data.faults import Faults
from client.data.table import Cells, Mask, Table, cell_of
from privacy.errors import DataError, StudyError
from shared_models.contract import AnyColumn, Data, ImageColumn, MaskColumn, SeriesColumn

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


def read_npz(path: Path, data: Data, faults: Faults) -> Iterator[Table]:
    """Yield one table a part of the study, or one, from the arrays that the columns name.

    Raises:
        DataError: the file cannot be read, or an array is absent, damaged, above the ceiling, of
            objects, or not of the records' length; or a text is none, unless such are left out.
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
            arrays = {name: array.replace("{part}", part) for name, array in names.items()}
            yield _table(path, archive, data, arrays, part, faults)


def _table(
    path: Path,
    archive: zipfile.ZipFile,
    data: Data,
    names: dict[str, str],
    part: str,
    faults: Faults,
) -> Table:
    arrays = {array: _array(path, archive, array) for array in set(names.values())}
    marks = frozenset(mark.strip() for mark in data.missing)
    columns: dict[str, Cells] = {}
    garbled: dict[str, Mask] = {}
    for name, column in data.columns.items():
        columns[name] = _column(path, names[name], arrays[names[name]], column)
        if columns[name].dtype.kind in "US":
            columns[name], garbled[name] = _texts(columns[name], marks)
    first = data.targets[0] if data.targets[0] in columns else next(iter(columns))
    length = len(columns[first])  # without an answer, where a model is used
    for name, cells in columns.items():
        if len(cells) != length:
            raise DataError(
                f"{path}: array {names[name]!r}, column {name!r}: expected as many records as "
                f"{first!r} has ({length}), found {len(cells)}; no record was used"
            )
    inside = f"part {part!r}, " if part else ""
    table = Table(
        length,
        columns,
        lambda row: f"{path}: {inside}row {row + 1}",
        {"part": part} if part else {},
        faults,
    )
    for name, bad in garbled.items():
        table.refuse(bad, name, "ASCII bytes or text")
    return table


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


def _column(path: Path, name: str, array: Cells, column: AnyColumn) -> Cells:
    where = f"{path}: array {name!r}"
    if column.index is not None:
        if array.ndim < 2 or array.shape[1] <= column.index:
            raise DataError(f"{where}: expected more than {column.index} columns, found fewer")
        array = array[:, column.index]
    if array.ndim == 0:
        raise DataError(f"{where}: expected one value a record, found a single value")
    if isinstance(column, SeriesColumn | ImageColumn | MaskColumn):
        # Texts become what is of no number type: the contract refuses it.
        return np.empty(len(array), dtype=object) if array.dtype.kind in "US" else array
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]  # (N, 1) -> (N,)
    if array.ndim != 1:
        raise DataError(f"{where}: expected one value a record, found shape {array.shape[1:]}")
    return array


def _texts(array: Cells, marks: frozenset[str]) -> tuple[Cells, Mask]:
    """Return (N,) texts, and where they are none: bytes that are not ASCII, or no letters."""
    width, last = (1, 0x7F) if array.dtype.kind == "S" else (4, sys.maxunicode)
    native = array.astype(array.dtype.newbyteorder("="))
    codes = np.frombuffer(native.tobytes(), f"u{width}")
    garbled: Mask = np.any(codes.reshape(len(native), native.itemsize // width) > last, axis=1)
    native[garbled] = ""
    cells = np.empty(len(native), dtype=object)
    cells[:] = [cell_of(text, marks) for text in native.astype(str).tolist()]
    return cells, garbled
