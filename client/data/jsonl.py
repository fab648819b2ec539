"""Reads JSON Lines, also gzip: one object a line, its keys the study's columns."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data import ceiling
from client.data.table import Cells, Table, cell_of
from privacy.errors import DataError
from shared_models.contract import AnyColumn, Data, ImageColumn, SeriesColumn

Cell = str | None | npt.NDArray[np.float64]


def read_jsonl(path: Path, data: Data) -> Table:
    """Read one file; a key that is absent or null is a missing value, other keys are left.

    Raises:
        DataError: the file cannot be read or is empty, a line is not an object, a cell is not what
            its column wants, or a column is in no line.
    """
    marks = frozenset(mark.strip() for mark in data.missing)
    lines: list[int] = []
    cells: dict[str, list[Cell]] = {name: [] for name in data.columns}
    present = dict.fromkeys(data.columns, False)
    size = sum(_size(column) for column in data.columns.values())
    with ceiling.text_of(path) as text:
        for line, content in enumerate(text, 1):
            if content.isspace():
                continue
            record = _object(path, line, content)
            lines.append(line)
            ceiling.check_cells(len(lines) * size, path)
            for name, column in data.columns.items():
                present[name] |= name in record
                try:
                    cells[name].append(_cell(record.get(name), column, marks))
                except ValueError as error:
                    raise DataError(
                        f"{path}: row {line}, column {name!r}: expected {error}; no record was used"
                    ) from None
    if not lines:
        raise DataError(f"{path}: expected records, found an empty file")
    absent = [name for name, found in present.items() if not found]
    if absent:
        raise DataError(
            f"{path}: expected the study's columns, found none for "
            f"{', '.join(map(repr, absent))} in any row; no record was used"
        )
    columns = {name: _column(cells.pop(name), column) for name, column in data.columns.items()}
    return Table(len(lines), columns, lambda row: f"{path}: row {lines[row]}")


def _object(path: Path, line: int, content: str) -> dict[str, object]:
    try:
        record = json.loads(content, parse_constant=_constant)
    except (ValueError, RecursionError):
        record = None  # the parser's own message may quote the line
    if not isinstance(record, dict):
        raise DataError(f"{path}: row {line}: expected one JSON object; no record was used")
    return record


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError("expected finite numbers")


def _cell(value: object, column: AnyColumn, marks: frozenset[str]) -> Cell:
    """Return what one key holds; a ValueError says what was expected of it."""
    if isinstance(column, SeriesColumn | ImageColumn):
        return _array(value, column)
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return cell_of(value, marks)
    raise ValueError("a text or a number")


def _array(value: object, column: SeriesColumn | ImageColumn) -> npt.NDArray[np.float64]:
    """Return (steps, variables) or (height, width, channels); all NaN for a missing value."""
    if isinstance(column, SeriesColumn):
        shape: tuple[int, ...] = (column.steps, len(column.variables))
    else:
        shape = (column.height, column.width, column.channels)
    if value is None:
        return np.full(shape, np.nan)
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape not in {shape, shape[:2] if shape[2:] == (1,) else shape}:
        raise ValueError(f"lists of numbers of shape {shape}")
    return array.reshape(shape)


def _size(column: AnyColumn) -> int:
    """Return how many cells a record's value counts for."""
    if isinstance(column, SeriesColumn):
        return column.steps * len(column.variables)
    if isinstance(column, ImageColumn):
        return column.height * column.width * column.channels
    return 1


def _column(cells: list[Cell], column: AnyColumn) -> Cells:
    if isinstance(column, SeriesColumn | ImageColumn):
        return np.stack([np.asarray(cell, dtype=np.float64) for cell in cells])
    texts = np.empty(len(cells), dtype=object)
    texts[:] = cells
    return texts
