"""Files that are there whole or not at all, whatever ends the program or the machine."""

import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file aside, sync it, rename it over ``path`` and sync the folder."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
