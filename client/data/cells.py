"""Cells to numbers, category indices and texts, checked against their column's contract."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from client.data.table import Cells, Table
from shared_models.contract import CategoryColumn, NumberColumn, SeriesColumn, Variable, number_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SHOWN = 12  # allowed values that an error lists

_NONE = "a value (the study refuses missing ones)"


def numbers(table: Table, name: str, column: NumberColumn, refuse_missing: bool = False) -> Floats:
    """Return (N,) values in the column's units, NaN where missing and that is allowed.

    Raises:
        DataError: a cell is no finite number, is outside the range, or is missing and refused.
    """
    values, (low, high) = _floats(table, name), _bounds(table.columns[name], column)
    if refuse_missing or column.missing == "refuse":
        _refuse(np.isnan(values), lambda row: table.fault(row, name, _NONE, "none"))
    return _in_range(
        values,
        (low, high),
        column.outside == "clamp",
        lambda row: table.fault(row, name, _range(column), "a number outside"),
    )


def series(table: Table, name: str, column: SeriesColumn, rows: slice) -> Floats:
    """Return (n, steps, variables) values of ``rows``, NaN where missing and that is allowed.

    Raises:
        DataError: the array is not of that shape, or a value is outside its variable's range, or
            missing and refused.
    """
    cells = table.columns[name]
    shape = (table.length, column.steps, len(column.variables))
    if cells.dtype.kind not in "biuf" or cells.shape != shape:
        raise table.fault(0, name, f"numbers of shape {shape[1:]}", f"an array {cells.shape[1:]}")
    values = cells[rows].astype(np.float64)  # (n, T, F)
    for index, (variable, contract) in enumerate(column.variables.items()):
        part = values[:, :, index]  # (n, T)
        where = _cell_of_series(table, name, variable, column.steps, rows.start)
        if column.missing == "refuse":
            _refuse(np.isnan(part), where(_NONE, "none"))
        _refuse(np.isinf(part), where("a finite number", "infinity"))
        values[:, :, index] = _in_range(
            part,
            _bounds(cells, contract),
            column.outside == "clamp",
            where(_range(contract), "a number outside"),
        )
    return values


def categories(
    table: Table, name: str, column: CategoryColumn, refuse_missing: bool = False
) -> Ints:
    """Return (N,) indices into the column's values, -1 where missing and that is allowed.

    Equal numbers are equal values: "1.0" is "1".

    Raises:
        DataError: a cell holds a value that the study does not know, or is missing and refused.
    """
    cells = table.columns[name]
    if cells.dtype == object:
        codes, found = pd.factorize(cells)
    else:
        codes, found = pd.factorize(_floats(table, name))
    index_of = _index(column.values)
    known = np.array([index_of(value) for value in found] + [-1], dtype=np.int64)
    indices = known[codes]  # (N,); missing has code -1, which is the last of known
    allowed = ", ".join(map(repr, column.values[:SHOWN]))
    if len(column.values) > SHOWN:
        allowed += f" and {len(column.values) - SHOWN} more"
    _refuse(
        (indices < 0) & (codes >= 0),
        lambda row: table.fault(row, name, f"one of {allowed}", "another value"),
    )
    if refuse_missing or column.missing == "refuse":
        _refuse(codes < 0, lambda row: table.fault(row, name, _NONE, "none"))
    return indices


def texts(table: Table, name: str) -> list[str]:
    """Return N texts; whole numbers are written without a decimal point.

    Raises:
        DataError: a cell is missing, or is neither a text nor a number.
    """
    cells = table.columns[name]
    if cells.dtype != object:
        values = _floats(table, name) if cells.dtype.kind == "f" else cells
        _refuse(pd.isna(values), lambda row: table.fault(row, name, _NONE, "none"))
        return [str(int(value)) if value == int(value) else str(value) for value in values.tolist()]
    _refuse(pd.isna(cells), lambda row: table.fault(row, name, _NONE, "none"))
    return [str(text) for text in cells]


def _floats(table: Table, name: str) -> Floats:
    """Return (N,) finite numbers, NaN where missing."""
    cells = table.columns[name]
    if cells.dtype == object:
        values = np.full(table.length, np.nan)
        there = ~pd.isna(cells)
        values[there] = pd.to_numeric(pd.Series(cells[there], dtype=object), errors="coerce")
        _refuse(
            there & ~np.isfinite(values), lambda row: table.fault(row, name, "a number", "a text")
        )
        return values
    if cells.dtype.kind not in "biuf" or cells.shape != (table.length,):
        raise table.fault(0, name, "an array of one number a record", "another array")
    values = cells.astype(np.float64)
    _refuse(np.isinf(values), lambda row: table.fault(row, name, "a finite number", "infinity"))
    return values


def _bounds(cells: Cells, column: NumberColumn | Variable) -> tuple[float, float]:
    """Return the range, widened to what the array's own precision makes of its ends."""
    if cells.dtype.kind != "f":
        return column.low, column.high
    with np.errstate(over="ignore"):
        low, high = cells.dtype.type(column.low), cells.dtype.type(column.high)
    return min(column.low, float(low)), max(column.high, float(high))


def _in_range(
    values: Floats,
    bounds: tuple[float, float],
    clamp: bool,
    fault: Callable[[int], Exception],
) -> Floats:
    """Return ``values`` inside ``bounds``; NaN stays NaN."""
    low, high = bounds
    if not clamp:
        _refuse((values < low) | (values > high), fault)
        return values
    return np.clip(values, low, high)


def _range(column: NumberColumn | Variable) -> str:
    return f"a number from {column.low:g} to {column.high:g}"


def _refuse(bad: npt.NDArray[np.bool_], fault: Callable[[int], Exception]) -> None:
    """Raise the fault of the first bad cell, if there is one."""
    if bad.any():
        raise fault(int(np.argmax(bad)))


def _cell_of_series(
    table: Table, name: str, variable: str, steps: int, start: int
) -> Callable[[str, str], Callable[[int], Exception]]:
    def where(expected: str, found: str) -> Callable[[int], Exception]:
        def fault(cell: int) -> Exception:  # cell of (n, T), flattened
            inside = f"{name}, step {cell % steps + 1}, {variable}"
            return table.fault(start + cell // steps, inside, expected, found)

        return fault

    return where


def _index(values: Sequence[str]) -> Callable[[str | float], int]:
    """Return a function from a text or a number to its index in ``values``, -1 for another."""
    index = {number_of(value): place for place, value in enumerate(values)}

    def index_of(value: str | float) -> int:
        return index.get(number_of(value) if isinstance(value, str) else float(value), -1)

    return index_of
