"""Raw columns of one source as a format reader hands them on, before the contract is checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from client.data.faults import Faults, fault
from privacy.errors import DataError

Cells = npt.NDArray[Any]  # (N,) objects, str or None; or (N, ...) of a number type, NaN = missing
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Table:
    """N records of one source, and which of them broke the contract so far.

    Attributes:
        length: N.
        columns: the cells of every column of the study. Text cells are stripped, and None where
            they hold a mark of a missing value.
        place: where a person finds record i: "ward.csv: row 12".
        public: what the source says of all its records, such as their part.
        faults: refuses a record, or counts it.
    """

    length: int
    columns: Mapping[str, Cells]
    place: Callable[[int], str]
    public: Mapping[str, str] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    @cached_property
    def broken(self) -> Mask:
        """(N,) True for the records that are left out."""
        return np.zeros(self.length, dtype=np.bool_)

    def first(self, count: int) -> "Table":
        """Return the table of the first ``count`` records alone."""
        if count == self.length:
            return self
        columns = {name: cells[:count] for name, cells in self.columns.items()}
        table = replace(self, length=count, columns=columns)
        table.broken[:] = self.broken[:count]
        return table

    def fault(self, row: int, column: str, expected: str, found: str = "") -> DataError:
        """Return the error for one cell: where it is and what was expected, never what it holds."""
        but = f", found {found}" if found else ""
        return fault(
            f"{self.place(row)}, column {column!r}: expected {expected}{but}",
            "correct the file, or ask for a study whose data contract fits it",
        )

    def refuse(self, bad: Mask, column: str, expected: str, found: str = "") -> None:
        """Refuse the records whose cell is bad, (N,), or leave them out.

        Raises:
            DataError: of the first, where records are not left out.
        """
        rows = np.flatnonzero(bad)
        self.leave(rows, lambda row: self.fault(row, column, expected, found))

    def leave(self, rows: npt.NDArray[np.int64], of: Callable[[int], DataError]) -> None:
        """Refuse the records at ``rows``, or leave them out; ``of`` gives the error of a row."""
        fresh = rows[~self.broken[rows]]  # a record is counted once, by its first fault
        self.broken[fresh] = True
        self.faults.add(map(of, fresh.tolist()), len(fresh))

    def kept(self) -> slice | npt.NDArray[np.int64]:
        """Return an index of the records that keep the contract.

        Where records are left out it is one even when none was: that costs a copy, and so takes no
        longer for the first broken record.
        """
        return np.flatnonzero(~self.broken) if self.faults.leave_out else slice(None)


def cell_of(text: str, marks: frozenset[str]) -> str | None:
    """Return ``text`` without blanks around it, or None where it is a mark of a missing value."""
    text = text.strip()
    return None if text in marks else text
