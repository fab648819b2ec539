"""The folder of a run: new, or the same run again; never one that holds something else.

It decides before anything is computed and writes nothing over.
"""

import shutil
from pathlib import Path

from privacy.errors import DataError
from shared_models.study import Study

MARK = "run.digest"
DEPLOY = "deploy"  # of a run as a deployment, and in it:
STUDY = "study.toml"  # as it runs, with its seed
COORDINATOR = "coordinator"  # the folder of fedward-server
SITES = "sites"  # of fedward-site, a folder each
TOKENS = "tokens"  # by which they enrol
STATES = "states"  # of the evaluated rounds
LOGS = "logs"  # what the processes wrote to stderr


def claim(folder: Path, study: Study, *, resume: bool, replace: bool = False) -> None:
    """Make ``folder`` ready for a run of ``study``.

    Args:
        folder: where results go.
        study: as it will run.
        resume: the folder must hold the same study.
        replace: an earlier run of a study of this name is removed (the demo).

    Raises:
        DataError: the folder holds another run or other files, or cannot be written.
    """
    mark = folder / MARK
    try:
        if replace and mark.is_file() and _name(mark) == study.name:
            shutil.rmtree(folder)
        # A folder with the mark alone is of a run whose records were refused: nothing is lost.
        if not folder.exists() or {path.name for path in folder.iterdir()} <= {MARK}:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(f"{study.digest()} {study.name}\n")
            return
        found = mark.read_text().split()[0] if mark.is_file() else None
        writable = folder / ".writable"
        writable.touch()
        writable.unlink()
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); nothing was run",
            "give another --out folder",
        ) from error
    if found is None:
        raise DataError(
            f"{folder}: expected an empty or new folder, found other files; nothing was run",
            "give another --out folder",
        )
    if not resume:
        raise DataError(
            f"{folder}: holds a run already; nothing was run",
            "give another --out folder, or --resume to go on with that run",
        )
    if found != study.digest():
        raise DataError(
            f"{folder}: expected the study that was started there, found a changed one",
            "give another --out folder",
        )


def _name(mark: Path) -> str:
    return mark.read_text().split()[-1]
