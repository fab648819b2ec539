"""Reads CSV and TSV files, with or without a header, into cells of text; it guesses no types.

The csv module reads them rather than pandas, which fills short rows in silence and loses the line
numbers that an error has to name.
"""

import csv
from collections import deque
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from client.data import ceiling
from client.data.faults import Faults, fault
from client.data.table import Table
from privacy.errors import DataError, StudyError
from shared_models.contract import Data, ImageColumn, MaskColumn, SeriesColumn

Row = tuple[int, list[str] | DataError]  # the number of its first line; its cells, or their fault


def read_table(path: Path, data: Data, separator: str, faults: Faults) -> Table:
    """Read one file of cells between ``separator``; columns that the study does not name are left.

    Raises:
        DataError: the file cannot be read, is empty or lacks a column; or a row has too few cells
            or many, an open quote, or bytes that are not UTF-8, unless such are left out.
        StudyError: a column of the study does not fit into a cell.
    """
    for name, column in data.columns.items():
        if isinstance(column, SeriesColumn | ImageColumn | MaskColumn):
            raise StudyError(
                f"data.columns.{name}: kind {column.kind!r} expects npz or jsonl, found {path}"
            )
    places: list[int] = []
    rows: list[tuple[str, ...]] = []
    with ceiling.text_of(path, faults) as text:
        lines = _Lines(text)
        width, positions = _layout(path, _rows(path, lines, separator), data)
        pick = itemgetter(*positions) if len(positions) > 1 else lambda row: (row[positions[0]],)
        empty = not data.header
        for line, row in _rows(path, lines, separator, width):
            empty = False
            if isinstance(row, DataError):
                faults.add([row])
                continue
            if ceiling.full((len(rows) + 1) * len(positions), path, faults):
                break
            places.append(line)
            rows.append(pick(row))
    if empty:
        raise _empty(path)
    marks = frozenset(mark.strip() for mark in data.missing)
    columns = {}
    for index, name in enumerate(data.columns):
        cells = np.empty(len(rows), dtype=object)
        # cell_of, written out: a call for each of millions of cells takes as long as the parser
        cells[:] = [None if (cell := row[index].strip()) in marks else cell for row in rows]
        columns[name] = cells
    return Table(len(rows), columns, lambda row: f"{path}: row {places[row]}", faults=faults)


class _Lines(Iterator[str]):
    """The lines of a text; those of the row in hand are kept, so that they can come again."""

    def __init__(self, text: Iterator[str]) -> None:
        self._numbered = enumerate(text, 1)  # as an editor counts
        self._again: deque[tuple[int, str]] = deque()
        self.row: list[tuple[int, str]] = []

    def __next__(self) -> str:
        numbered = self._again.popleft() if self._again else next(self._numbered)
        self.row.append(numbered)
        return numbered[1]

    def go_back(self) -> None:
        """Leave the row in hand its first line; the others come again."""
        self._again.extendleft(reversed(self.row[1:]))
        del self.row[1:]


def _rows(path: Path, lines: _Lines, separator: str, width: int = 0) -> Iterator[Row]:
    """Yield every row, of ``width`` cells where that is not 0; lines of blanks are left.

    A row that does not end where it should costs its first line alone, and the next row begins in
    the line after it: an open quote would take other records away.
    """
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        lines.row.clear()
        wrong = ""
        try:
            row = next(reader, None)
        except csv.Error:
            row = []
            wrong = (
                f"cells of at most {csv.field_size_limit():,} characters, with every quote closed"
            )
        else:
            if row is None:
                return
            if not row or (len(row) == 1 != width and not row[0].strip()):
                continue
            if len(row) != (width or len(row)):
                wrong = f"{width} columns, found {len(row)}"
        if wrong:
            lines.go_back()
        line = lines.row[0][0]
        if not all(ceiling.is_text(content) for _, content in lines.row):
            yield line, ceiling.not_text(path, line)
        elif wrong:
            yield line, fault(f"{path}: row {line}: expected {wrong}")
        else:
            yield line, row


def _layout(path: Path, rows: Iterator[Row], data: Data) -> tuple[int, tuple[int, ...]]:
    """Return how many columns the file has, and where those of the study are."""
    if not data.header:
        return len(data.columns), tuple(range(len(data.columns)))
    for number, row in rows:
        line = number
        if isinstance(row, DataError):
            raise row
        names = [cell.strip() for cell in row]
        if any(names):
            break
    else:
        raise _empty(path)
    absent = [name for name in data.columns if name not in names]
    if absent:
        # Names that the study does not know stay unsaid: without a header they would be a record.
        unknown = sum(name not in data.columns for name in names)
        raise DataError(
            f"{path}: row {line}: expected a header with the study's columns, "
            f"found none for {', '.join(map(repr, absent))} ({unknown} of {len(names)} are not in "
            "the study); no record was used",
            "a file without a header expects header = false in the study",
        )
    for name in data.columns:
        if names.count(name) > 1:
            raise DataError(f"{path}: row {line}: expected column {name!r} once, found it again")
    return len(names), tuple(names.index(name) for name in data.columns)


def _empty(path: Path) -> DataError:
    return DataError(f"{path}: expected records, found an empty file")
