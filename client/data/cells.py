"""Cells to numbers, category indices and texts, checked against their column's contract."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from client.data.table import Mask, Table
from privacy.errors import DataError
from shared_models.contract import CategoryColumn, NumberColumn, SeriesColumn, Variable, number_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Refuse = Callable[[Mask, str, str], None]  # bad cells, what was expected of them and what found

SHOWN = 12  # allowed values that an error lists

_NONE = "a value (the study refuses missing ones)"


def numbers(table: Table, name: str, column: NumberColumn, refuse_missing: bool = False) -> Floats:
    """Return (N,) values in the column's units, NaN where missing and that is allowed.

    Raises:
        DataError: a cell is no finite number, is outside the range, or is missing and refused.
    """
    values = _floats(table, name)
    return _checked(
        values,
        column,
        table.columns[name].dtype,
        refuse_missing=refuse_missing or column.missing == "refuse",
        clamp=column.outside == "clamp",
        refuse=lambda bad, expected, found: table.refuse(bad, name, expected, found),
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
        values[:, :, index] = _checked(
            values[:, :, index],  # (n, T)
            contract,
            cells.dtype,
            refuse_missing=column.missing == "refuse",
            clamp=column.outside == "clamp",
            refuse=_refuse_steps(table, name, variable, rows.start),
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
    table.refuse((indices < 0) & (codes >= 0), name, f"one of {allowed}", "another value")
    if refuse_missing or column.missing == "refuse":
        table.refuse(codes < 0, name, _NONE, "none")
    return indices


def texts(table: Table, name: str) -> npt.NDArray[np.object_]:
    """Return (N,) texts; whole numbers are written without a decimal point.

    Raises:
        DataError: a cell is missing, or is neither a text nor a number.
    """
    cells = table.columns[name]
    if cells.dtype.kind == "f":
        cells = _floats(table, name)
    missing = pd.isna(cells)
    table.refuse(missing, name, _NONE, "none")
    found = np.full(table.length, "", dtype=object)
    found[~missing] = [_text(cell) for cell in cells[~missing].tolist()]
    return found


def _text(cell: str | float) -> str:
    return str(int(cell)) if not isinstance(cell, str) and cell == int(cell) else str(cell)


def _floats(table: Table, name: str) -> Floats:
    """Return (N,) finite numbers, NaN where missing, or where a record is left out."""
    cells = table.columns[name]
    if cells.dtype == object:
        values = np.full(table.length, np.nan)
        there = ~pd.isna(cells)
        values[there] = pd.to_numeric(pd.Series(cells[there], dtype=object), errors="coerce")
        table.refuse(there & ~np.isfinite(values), name, "a number", "a text")
    elif cells.dtype.kind not in "biuf" or cells.shape != (table.length,):
        raise table.fault(0, name, "an array of one number a record", "another array")
    else:
        values = cells.astype(np.float64)
        table.refuse(np.isinf(values), name, "a finite number", "infinity")
    values[np.isinf(values)] = np.nan
    return values


def _checked(
    values: Floats,
    contract: NumberColumn | Variable,
    dtype: np.dtype[Any],
    *,
    refuse_missing: bool,
    clamp: bool,
    refuse: Refuse,
) -> Floats:
    """Return ``values``, (N, ...), inside the range; NaN stays, and stands for what was refused."""
    if refuse_missing:
        refuse(np.isnan(values), _NONE, "none")
    refuse(np.isinf(values), "a finite number", "infinity")
    low, high = _bounds(dtype, contract)
    if clamp:
        return np.clip(values, low, high)
    outside = (values < low) | (values > high)
    refuse(outside, f"a number from {contract.low:g} to {contract.high:g}", "a number outside")
    return np.where(outside, np.nan, values)


def _bounds(dtype: np.dtype[Any], contract: NumberColumn | Variable) -> tuple[float, float]:
    """Return the range, widened to what an array's own precision makes of its ends."""
    if dtype.kind != "f":
        return contract.low, contract.high
    with np.errstate(over="ignore"):
        low, high = dtype.type(contract.low), dtype.type(contract.high)
    return min(contract.low, float(low)), max(contract.high, float(high))


def _refuse_steps(table: Table, name: str, variable: str, start: int) -> Refuse:
    """Return what refuses the records of (n, T) bad cells, the first of them record ``start``."""

    def refuse(bad: Mask, expected: str, found: str) -> None:
        def fault(row: int) -> DataError:
            step = int(np.argmax(bad[row - start])) + 1
            return table.fault(row, f"{name}, step {step}, {variable}", expected, found)

        table.leave(start + np.flatnonzero(bad.any(axis=1)), fault)

    return refuse


def _index(values: Sequence[str]) -> Callable[[str | float], int]:
    """Return a function from a text or a number to its index in ``values``, -1 for another."""
    index = {number_of(value): place for place, value in enumerate(values)}

    def index_of(value: str | float) -> int:
        return index.get(number_of(value) if isinstance(value, str) else float(value), -1)

    return index_of
