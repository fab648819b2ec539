"""metrics.csv: one row a round, written as a study goes.

It computes no metric; which columns there are is the caller's to say.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared_models.durable import write_durably


class MetricsFile:
    """metrics.csv: one row a round, flushed as it goes; a resumed run keeps the rows it has."""

    def __init__(self, path: Path, columns: Sequence[str], rounds: int) -> None:
        """Keep the rows of the first ``rounds`` rounds of an earlier run."""
        self._path, self._columns = path, list(columns)
        kept: list[dict[str, str]] = []
        if path.exists() and rounds:
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["round"]) <= rounds]
        self.last = int(kept[-1]["round"]) if kept else 0
        write_rows(path, self._columns, kept)  # in one piece: a kill here must not lose the rows

    def add(self, row: Mapping[str, object]) -> None:
        """Append one row; columns that it lacks stay empty."""
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, extrasaction="ignore").writerow(row)
        self.last = int(str(row["round"]))


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """Return the rows of metrics.csv; an empty field is None."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: float(text) if text else None for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a whole file, or leave the one before."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_durably(path, text.getvalue().encode())
