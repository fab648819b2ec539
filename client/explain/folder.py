"""The folder of an explanation: refused with something else in it, its files for its owner alone.

It knows no picture and no page.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from privacy.errors import DataError

PAGE, SUMMARY = "explanation.html", "explanation.json"
IMPORTANCE = "importance.png"
_OWN = re.compile(r"explanation\.(html|json)|importance\.png|record-\d+(-[a-z]+)?\.png")


def record_name(number: int, part: str = "") -> str:
    """Return the name of a record's picture, or of that of one of its parts."""
    return f"record-{number}-{part}.png" if part else f"record-{number}.png"


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier explanation. Nothing is changed.

    Raises:
        DataError: it does, or is none.
    """
    try:
        if not folder.exists() and not folder.is_symlink():
            return
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder, found a file; nothing was written")
        found = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    if found and (SUMMARY not in found or not all(_OWN.fullmatch(name) for name in found)):
        raise DataError(
            f"{folder}: expected a new folder, or one with an explanation alone, found something "
            "else; nothing was written",
            "name another folder with --out",
        )


def keep(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write an explanation, each file with mode 0600, in place of an earlier one.

    The summary, by which an earlier explanation is known, goes first.

    Raises:
        DataError: the folder holds something else, or a file cannot be written.
    """
    check_folder(folder)
    path = folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = [folder / path.name for path in folder.iterdir() if path.name != SUMMARY]
        for path in others:
            path.unlink()
        for name in sorted(files, key=lambda name: name != SUMMARY):
            path = folder / name
            path.unlink(missing_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(files[name])
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
