"""Reads JSON Lines, also gzip: one object a line, its keys the study's columns."""

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data import ceiling
from client.data.faults import Faults, fault
from client.data.table import Cells, Table, cell_of
from privacy.errors import DataError, StudyError
from shared_models.contract import AnyColumn, Data, ImageColumn, MaskColumn, SeriesColumn

Cell = str | None | npt.NDArray[np.float64]


def read_jsonl(path: Path, data: Data, faults: Faults) -> Table:
    """Read one file; a key that is absent or null is a missing value, other keys are left.

    Raises:
        DataError: the file cannot be read or is empty, or a column is in no line; or a line is not
            an object, or a cell not what its column wants, unless such are left out.
        StudyError: the study has a mask, which no line holds.
    """
    for name, column in data.columns.items():
        if isinstance(column, MaskColumn):
            raise StudyError(f"data.columns.{name}: kind 'mask' expects npz, png or nifti")
    marks = frozenset(mark.strip() for mark in data.missing)
    places: list[int] = []
    cells: dict[str, list[Cell]] = {name: [] for name in data.columns}
    absent, empty = set(data.columns), True
    size = sum(math.prod(_shape(column)) for column in data.columns.values())
    with ceiling.text_of(path, faults) as text:
        for line, content in enumerate(text, 1):
            if content.isspace():
                continue
            empty = False
            if ceiling.full((len(places) + 1) * size, path, faults):
                break
            try:
                record = _object(path, line, content)
                absent.difference_update(record)
                row = _row(path, line, record, data, marks)
            except DataError as error:
                faults.add([error])
                continue
            places.append(line)
            for name, cell in zip(cells, row, strict=True):
                cells[name].append(cell)
    if empty:
        raise DataError(f"{path}: expected records, found an empty file")
    if absent and places:
        raise DataError(
            f"{path}: expected the study's columns, found none for "
            f"{', '.join(repr(name) for name in cells if name in absent)} in any row; "
            "no record was used"
        )
    columns = {name: _column(cells.pop(name), column) for name, column in data.columns.items()}
    return Table(len(places), columns, lambda row: f"{path}: row {places[row]}", faults=faults)


def _object(path: Path, line: int, content: str) -> dict[str, object]:
    if not ceiling.is_text(content):
        raise ceiling.not_text(path, line)
    try:
        record = json.loads(content, parse_constant=_constant)
    except (ValueError, RecursionError):
        record = None  # the parser's own message may quote the line
    if not isinstance(record, dict):
        raise fault(f"{path}: row {line}: expected one JSON object")
    return record


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError("expected finite numbers")


def _row(
    path: Path, line: int, record: dict[str, object], data: Data, marks: frozenset[str]
) -> list[Cell]:
    """Return the cells of one record in the study's order."""
    row = []
    for name, column in data.columns.items():
        try:
            row.append(_cell(record.get(name), column, marks))
        except ValueError as error:
            raise fault(f"{path}: row {line}, column {name!r}: expected {error}") from None
    return row


def _cell(value: object, column: AnyColumn, marks: frozenset[str]) -> Cell:
    """Return what one key holds; a ValueError says what was expected of it."""
    if isinstance(column, SeriesColumn | ImageColumn):
        return _array(value, _shape(column))
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return cell_of(value, marks)
    raise ValueError("a text or a number")


def _array(value: object, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return (steps, variables) or (*sizes, channels); all NaN for a missing value."""
    if value is None:
        return np.full(shape, np.nan)
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape not in {shape, shape[:-1] if shape[2:][-1:] == (1,) else shape}:
        raise ValueError(f"lists of numbers of shape {shape}")
    return array.reshape(shape)


def _shape(column: AnyColumn) -> tuple[int, ...]:
    """Return the shape of one record's value; () for one value."""
    if isinstance(column, SeriesColumn):
        return (column.steps, len(column.variables))
    if isinstance(column, ImageColumn):
        return (*column.sizes, column.channels)
    return ()


def _column(cells: list[Cell], column: AnyColumn) -> Cells:
    if isinstance(column, SeriesColumn | ImageColumn):
        arrays = [np.asarray(cell, dtype=np.float64) for cell in cells]
        return np.stack(arrays) if arrays else np.empty((0, *_shape(column)))
    texts = np.empty(len(cells), dtype=object)
    texts[:] = cells
    return texts
