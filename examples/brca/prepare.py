"""Writes one CSV of the three files of Fed-TCGA-BRCA: features, split and region of each patient.

python examples/brca/prepare.py FOLDER OUT.csv

The region is that of the centre whose code is in the patient's barcode (TCGA-XX-...); the eight
patients who are in neither part of the official split are left out, as FLamby does.
"""

import csv
import sys
from pathlib import Path


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    folder, out = map(Path, sys.argv[1:])
    try:
        tables = {name: rows(folder / f"{name}.csv") for name in NAMES}
        lines = joined(*(tables[name] for name in NAMES))
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, lines[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except (KeyError, IndexError):
        print(f"{folder}: expected the three files of Fed-TCGA-BRCA, found others", file=sys.stderr)
        return 2
    print(f"{out}: {len(lines)} patients", file=sys.stderr)
    return 0


NAMES = ("brca", "train_test_split", "centers")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def joined(
    patients: list[dict[str, str]], split: list[dict[str, str]], centers: list[dict[str, str]]
) -> list[dict[str, str]]:
    fold = {row["pid"]: row["fold"] for row in split}
    region = {row["TSS Code"]: row["Region"] for row in centers}
    return [
        {**row, "region": region[row["pid"].split("-")[1]], "fold": fold[row["pid"]]}
        for row in patients
        if row["pid"] in fold
    ]


if __name__ == "__main__":
    sys.exit(main())
