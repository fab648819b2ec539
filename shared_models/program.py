"""How every program ends: an error is one line on stderr, a hint, and an exit code; a bug is 1.

It knows no command and no option. What the codes mean is told by ``privacy.errors``. Where nobody
reads on (`fedward-site predict ... | head`), it ends without a word, as other programs do.
"""

import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from types import FrameType
from typing import NoReturn

import click
import typer

from privacy.errors import FedwardError
from privacy.startup import check_packages

INTERRUPTED = 130  # as a shell reports Ctrl-C
UNREAD = 141  # as a shell reports SIGPIPE


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
    except FedwardError as error:
        _fail(program, str(error), error.hint, error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):  # the latter: at a question
        _fail(program, "interrupted; what is done is kept", after_interrupt, INTERRUPTED)
    except typer.Exit:
        raise
    except Exception as bug:
        if _is_unread(bug):
            raise
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
        code = app(prog_name=program, standalone_mode=False)
        sys.stdout.flush()  # here, where it may fail
        sys.exit(code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else program
        _complain(program, error.format_message(), f"`{asked} --help` shows how it is used")
        sys.exit(error.exit_code)
    except (BrokenPipeError, SystemExit) as end:
        if not _is_unread(end):
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # the interpreter will flush what is left
        sys.exit(UNREAD)


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


def _fail(program: str, message: str, hint: str, code: int) -> NoReturn:
    _complain(program, message, hint)
    raise typer.Exit(code)


def _complain(program: str, message: str, hint: str) -> None:
    line = " ".join(message.split())
    sys.stderr.write(f"{program}: error: {line}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")
