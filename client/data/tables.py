"""Reads CSV and TSV files, with or without a header, into cells of text; it guesses no types.

The csv module reads them rather than pandas, which fills short rows in silence and loses the line
numbers that an error has to name.
"""

import csv
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from client.data import ceiling
from client.data.table import Table
from privacy.errors import DataError, StudyError
from shared_models.contract import Data, ImageColumn, SeriesColumn


def read_table(path: Path, data: Data, separator: str) -> Table:
    """Read one file of cells between ``separator``; columns that the study does not name are left.

    Raises:
        DataError: the file cannot be read, is empty, lacks a column, or a row has too few or many.
        StudyError: a column of the study does not fit into a cell.
    """
    for name, column in data.columns.items():
        if isinstance(column, SeriesColumn | ImageColumn):
            raise StudyError(
                f"data.columns.{name}: kind {column.kind!r} expects npz or jsonl, found {path}"
            )
    lines: list[int] = []
    rows: list[tuple[str, ...]] = []
    with ceiling.text_of(path) as text:
        numbered = _rows(path, text, separator)
        width, positions = _layout(path, numbered, data)
        pick = itemgetter(*positions) if len(positions) > 1 else lambda row: (row[positions[0]],)
        for line, row in numbered:
            if len(row) != width:
                if len(row) == 1 and not row[0].strip():
                    continue  # a line of blanks
                raise DataError(
                    f"{path}: row {line}: expected {width} columns, found {len(row)}; "
                    "no record was used"
                )
            lines.append(line)
            rows.append(pick(row))
            ceiling.check_cells(len(rows) * len(positions), path)
    if not rows and not data.header:
        raise _empty(path)
    marks = frozenset(mark.strip() for mark in data.missing)
    columns = {}
    for index, name in enumerate(data.columns):
        cells = np.empty(len(rows), dtype=object)
        # cell_of, written out: a call for each of millions of cells takes as long as the parser
        cells[:] = [None if (cell := row[index].strip()) in marks else cell for row in rows]
        columns[name] = cells
    return Table(len(rows), columns, lambda row: f"{path}: row {lines[row]}")


def _rows(path: Path, text: Iterator[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield every row with the number of its first line, as an editor counts; blank lines not."""
    reader = csv.reader(text, delimiter=separator, skipinitialspace=True, strict=True)
    before = 0
    try:
        for row in reader:
            line, before = before + 1, reader.line_num
            if row:
                yield line, row
    except csv.Error as error:
        raise DataError(
            f"{path}: row {reader.line_num}: expected cells of at most {csv.field_size_limit():,} "
            "characters, with every quote closed; no record was used"
        ) from error


def _layout(
    path: Path, rows: Iterator[tuple[int, list[str]]], data: Data
) -> tuple[int, tuple[int, ...]]:
    """Return how many columns the file has, and where those of the study are."""
    if not data.header:
        return len(data.columns), tuple(range(len(data.columns)))
    header = next(((line, row) for line, row in rows if any(cell.strip() for cell in row)), None)
    if header is None:
        raise _empty(path)
    line, names = header[0], [name.strip() for name in header[1]]
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
