"""A program's log for people: one line each, in UTC, in a file that its owner alone may read.

It is no proof: what must not be lost is written elsewhere, and a disk that is full ends the program
there. It decides nothing of what is logged.
"""

import logging
import time
from contextlib import suppress
from pathlib import Path

from privacy.errors import DataError


class LogFile(logging.FileHandler):
    """A handler that appends to the file."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, creating it with mode 0600; DataError when it cannot be written."""
        try:
            path.touch(mode=0o600)
            super().__init__(path, encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error
        form = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        form.converter = time.gmtime
        self.setFormatter(form)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Leave the line out, where logging itself would print how it failed on the screen."""

    def close(self) -> None:
        """Close the file, whatever of the last lines it still takes."""
        with suppress(OSError):
            super().close()
