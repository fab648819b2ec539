"""Raw columns of one source as a format reader hands them on, before the contract is checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from privacy.errors import DataError

Cells = npt.NDArray[Any]  # (N,) objects, str or None; or (N, ...) of a number type, NaN = missing


@dataclass(frozen=True)
class Table:
    """N records of one source.

    Attributes:
        length: N.
        columns: the cells of every column of the study. Text cells are stripped, and None where
            they hold a mark of a missing value.
        place: where a person finds record i: "ward.csv: row 12".
        public: what the source says of all its records, such as their part.
    """

    length: int
    columns: Mapping[str, Cells]
    place: Callable[[int], str]
    public: Mapping[str, str] = field(default_factory=dict)

    def fault(self, row: int, column: str, expected: str, found: str = "") -> DataError:
        """Return the error for one cell: where it is and what was expected, never what it holds."""
        but = f", found {found}" if found else ""
        return DataError(
            f"{self.place(row)}, column {column!r}: expected {expected}{but}; no record was used",
            "correct the file, or ask for a study whose data contract fits it",
        )


def cell_of(text: str, marks: frozenset[str]) -> str | None:
    """Return ``text`` without blanks around it, or None where it is a mark of a missing value."""
    text = text.strip()
    return None if text in marks else text
