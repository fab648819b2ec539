"""The site's log for people: one line each, in UTC, in a file of the site; most of it is told too.

It holds no value of a record. The proof of what left is another file, `client.journal`.
"""

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from shared_models.log_file import LogFile

Tell = Callable[[str], None]
KEPT = logging.getLogger("fedward.site.kept")  # what is in the file alone


@contextlib.contextmanager
def logged(path: Path, tell: Tell) -> Iterator[None]:
    """Write into ``path`` what is logged while the context lasts, and tell it, but for `KEPT`.

    Raises:
        DataError: the file cannot be written.
    """
    lines = LogFile(path)
    told = _Told(tell)
    log = logging.getLogger("fedward")
    before, log.level = log.level, logging.INFO
    for each in (lines, told):
        log.addHandler(each)
    try:
        yield
    finally:
        for each in (lines, told):
            log.removeHandler(each)
        log.level = before
        lines.close()


def once(tell: Tell) -> Tell:
    """Tell a line unless it is the one that was told last."""
    last = ""

    def told(words: str) -> None:
        nonlocal last
        if words != last:
            last = words
            tell(words)

    return told


def keep_bug(bug: Exception) -> None:
    """Log where the program failed, without the words of the error: they may quote a record."""
    KEPT.error(
        "an answer failed by a fault of the program: %s\n%s",
        type(bug).__name__,
        "".join(traceback.format_tb(bug.__traceback__)).rstrip(),
    )


class _Told(logging.Handler):
    """Tells what is logged for whoever watches."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one line."""
        if record.name != KEPT.name:
            self._tell(record.getMessage())
