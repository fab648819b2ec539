"""How every program ends: an error is one line on stderr, a hint, and an exit code; a bug is 1.

It knows no command and no option. What the codes mean is told by ``privacy.errors``. Where nobody
reads on (`fedward-site predict ... | head`), it ends without a word, as other programs do.
"""

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from types import FrameType
from typing import NoReturn, TextIO

import click
import typer

from privacy.errors import DataError, FedwardError
from privacy.startup import check_packages

INTERRUPTED = 130  # as a shell reports Ctrl-C
UNREAD = 141  # as a shell reports SIGPIPE
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def errors(program: str, after_interrupt: str = "start it again") -> Iterator[None]:
    """Turn what goes wrong in a command into one line, a hint and an exit code.

    Args:
        program: as people typed it.
        after_interrupt: the hint after Ctrl-C.
    """
    try:
        check_packages()
        yield
        sys.stdout.flush()  # here, where it may fail
    except FedwardError as error:
        _fail(program, str(error), error.hint, error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):  # the latter: at a question
        _fail(program, "interrupted; what is done is kept", after_interrupt, INTERRUPTED)
    except typer.Exit:
        raise
    except Exception as bug:
        if _is_unread(bug) or _is_full(bug):
            raise  # to `run`
        with NamedTemporaryFile("w", prefix="fedward-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)  # mode 0600: it may quote what only the user may see
        hint = f"please report it; the details are in {file.name}"
        _fail(program, f"a bug: {type(bug).__name__}", hint, 1)


@contextmanager
def terminable() -> Iterator[None]:
    """Let a stop by the system (SIGTERM) end a program as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(app: typer.Typer, program: str) -> NoReturn:
    """Run a program to its end; a mistake in usage is one line and a hint, as any other error."""
    try:
        sys.exit(app(prog_name=program, standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else program
        _complain(program, error.format_message(), f"`{asked} --help` shows how it is used")
        sys.exit(error.exit_code)
    except (OSError, SystemExit) as end:
        if _is_unread(end):
            _drop(sys.stdout)
            sys.exit(UNREAD)
        if isinstance(end, OSError) and _is_full(end):
            _drop(sys.stdout)
            what = f"{end.filename or 'what was to be written'}: cannot be written ({end.strerror})"
            _complain(program, what, "make room on the disk")
            sys.exit(DataError.exit_code)
        raise


def _is_unread(end: BaseException) -> bool:
    """Say whether a program ends because what it prints is read no more.

    Another pipe, of a process that died, is a bug like any other. rich makes exit 1 of it.
    """
    if isinstance(end, SystemExit):
        return isinstance(end.__context__, BrokenPipeError)
    if not isinstance(end, BrokenPipeError):
        return False
    pipes = select.poll()
    for stream in (sys.stdout, sys.stderr):
        pipes.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def _is_full(end: BaseException) -> bool:
    """Say whether it ends because a disk is full, where nobody could say more of it."""
    return isinstance(end, OSError) and end.errno in _FULL


def _fail(program: str, message: str, hint: str, code: int) -> NoReturn:
    _complain(program, message, hint)
    raise typer.Exit(code)


def _complain(program: str, message: str, hint: str) -> None:
    line = " ".join(message.split())
    try:
        sys.stderr.write(f"{program}: error: {line}\n")
        if hint:
            sys.stderr.write(f"hint: {hint}\n")
        sys.stderr.flush()
    except OSError:  # nobody reads, or the disk under it is full: the code tells it still
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Let what a stream could not write go nowhere: the interpreter would try again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
