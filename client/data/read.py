"""From a path to the records of a study: which files, which reader, and one site or many."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePath

import numpy as np

from client.data import ceiling
from client.data.builtin import read_builtin
from client.data.cells import texts
from client.data.encode import encode, patient_indices
from client.data.faults import Faults
from client.data.jsonl import read_jsonl
from client.data.nifti import read_nifti
from client.data.npz import read_npz
from client.data.png import read_png
from client.data.records import Records, join
from client.data.table import Table
from client.data.tables import read_table
from client.data.tokens import words
from privacy.errors import DataError, StudyError
from shared_models.contract import Data, WordsColumn
from shared_models.sections import SITES_MIN
from shared_models.study import Study

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npz": "npz"}
FOLDERS = {"png": read_png, "nifti": read_nifti}  # formats of a folder of folders


def read_records(study: Study, path: Path | None, leave_out: bool = False) -> Records:
    """Read one file, every file of a folder, or the records that ship inside scikit-learn.

    Args:
        study: its data contract decides everything; no value is taken from the records.
        path: None for the study's built-in records.
        leave_out: leave a record out that breaks the contract, and count it, instead of refusing
            all of them; the others are what they would be without it.

    Returns:
        N records in the order of the files' names, perhaps none. Where several files were read,
        public column "file" has the name of each record's file, without its suffix.

    Raises:
        DataError: files are absent, damaged, above the ceiling, or without a column; or a record
            breaks the contract, unless it is left out.
        StudyError: the study does not say how to read them.
    """
    faults = Faults(leave_out)
    records = _read(study, path, faults)
    return replace(records, left_out=faults.left_out())


def read_sites(study: Study, path: Path) -> list[tuple[str, Records]]:
    """Read one file or folder a site, in the order of their names.

    Raises:
        DataError: as for ``read_records``, or fewer than three files or folders.
    """
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder with one file or folder a site")
    sources = [] if study.data.format in FOLDERS else _matching(path, study.data)
    if not sources:
        try:
            sources = sorted(f for f in path.iterdir() if f.is_dir() and f.name[0] != ".")
        except OSError as error:
            raise ceiling.unreadable(path, error) from error
    if len(sources) < SITES_MIN:
        raise DataError(
            f"{path}: expected files or folders of >= {SITES_MIN} sites, found {len(sources)}; "
            "nothing was read",
            "data.files in the study says which files of a folder are meant",
        )
    names = [_stem(source) for source in sources]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: expected a name of its own for every site; nothing was read")
    return [(name, read_records(study, s)) for name, s in zip(names, sources, strict=True)]


def read_words(study: Study, path: Path, name: str) -> list[tuple[str, ...]]:
    """Return the words of each record's text column ``name``, in the order of ``read_records``.

    Those are the words that became token ids: the first of them, as many as the column is long.

    Raises:
        DataError, StudyError: as for ``read_records``.
    """
    column = study.data.columns[name]
    if not isinstance(column, WordsColumn):
        raise ValueError(f"expected a column of words, found {column.kind}")
    return [tuple(islice(words(text), column.length)) for text in read_texts(study, path, name)]


def read_texts(study: Study, path: Path, name: str) -> list[str]:
    """Return each record's text in column ``name``, in the order of ``read_records``.

    Raises:
        DataError, StudyError: as for ``read_records``.
    """
    return [
        text
        for source in _sources(study.data, path)
        for table in _tables(study.data, source, Faults(False))
        for text in texts(table, name)
    ]


def _read(study: Study, path: Path | None, faults: Faults) -> Records:
    data = study.data
    if path is None:
        return encode(study, read_builtin(data, faults))
    sources = _sources(data, path)
    parts = [
        _together([encode(study, table) for table in _tables(data, source, faults)], faults)
        for source in sources
    ]
    if len(parts) > 1:
        parts = [_named(part, _stem(file)) for part, file in zip(parts, sources, strict=True)]
    return _together(parts, faults)


def _sources(data: Data, path: Path) -> list[Path]:
    """Return the files to read, or the one folder that is a source by itself."""
    if not path.is_dir():
        return [path]
    files = [] if data.format in FOLDERS else _matching(path, data)
    if data.format in FOLDERS or (not files and _has_pictures(path, data)):
        return [path]
    if not files:
        raise _no_files(path, data)
    return files


def _together(parts: list[Records], faults: Faults) -> Records:
    """Return one site's records from several sources; one id is one patient in all of them."""
    if len(parts) == 1:
        return parts[0]
    size = sum(part.inputs.nbytes for part in parts) // max(1, sum(map(len, parts)))
    left = ceiling.fit(sum(map(len, parts)), size, "records", faults)
    for number, part in enumerate(parts):
        taken = min(left, len(part))
        left -= taken
        if taken < len(part):
            parts[number] = part.take(np.arange(taken))
    records = join(parts)
    if records.patients is None:
        return records
    return replace(records, patients=patient_indices(records.identities))


def _tables(data: Data, path: Path, faults: Faults) -> Iterator[Table]:
    """Yield the raw columns of one source: one table, or one a part of an NPZ file."""
    if path.is_dir():
        yield FOLDERS[data.format or "png"](path, data, faults)
        return
    kind = data.format or _format(path)
    if kind is None:
        raise StudyError(
            f"data.format: missing, expected csv, tsv, jsonl or npz for {path}, "
            f"whose name ends in none of {', '.join(SUFFIXES)}"
        )
    if kind == "npz":
        yield from read_npz(path, data, faults)
    elif kind == "jsonl":
        yield read_jsonl(path, data, faults)
    elif kind in FOLDERS:
        raise DataError(f"{path}: expected a folder, with folders of {kind} files in it")
    else:
        yield read_table(path, data, "," if kind == "csv" else "\t", faults)


def _named(records: Records, name: str) -> Records:
    return replace(records, public={**records.public, "file": np.full(len(records), name)})


def _format(path: PurePath) -> str | None:
    """Return the format that a file's name says, with .gz after it or not."""
    name = path.with_suffix("") if path.suffix == ".gz" else path
    return SUFFIXES.get(name.suffix.lower())


def _stem(path: Path) -> str:
    """Return a file's name without its suffix, a folder's name whole."""
    if path.is_dir():
        return path.name
    return (path.with_suffix("") if path.suffix == ".gz" else path).stem


def _matching(folder: Path, data: Data) -> list[Path]:
    """Return the files that the study means, in the order of their names."""
    pattern = data.files or "*"
    if PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
        raise StudyError(f"data.files: expected a pattern inside the folder, found {pattern!r}")
    try:
        files = sorted(f for f in folder.glob(pattern) if f.is_file() and f.name[0] != ".")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be searched for {pattern!r}") from error
    if data.files is not None:
        return files
    wanted = {data.format} if data.format else set(SUFFIXES.values())
    return [file for file in files if _format(file) in wanted]


def _has_pictures(folder: Path, data: Data) -> bool:
    """Say whether a study that names no format and no files finds folders of PNG."""
    return data.format is None and data.files is None and any(folder.glob("*/*.png"))


def _no_files(folder: Path, data: Data) -> DataError:
    wanted = repr(data.files) if data.files else f"files of format {data.format or 'known to it'}"
    return DataError(
        f"{folder}: expected {wanted}, found none; nothing was read",
        "data.files and data.format in the study say which files of a folder are meant",
    )
