"""How every program ends: an error is one line on stderr, a hint, and an exit code; a bug is 1.

It knows no command and no option. What the codes mean is told by ``privacy.errors``.
"""

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
    except KeyboardInterrupt:
        _fail(program, "interrupted; what is done is kept", after_interrupt, INTERRUPTED)
    except typer.Exit:
        raise
    except Exception as bug:
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


def _fail(program: str, message: str, hint: str, code: int) -> NoReturn:
    _complain(program, message, hint)
    raise typer.Exit(code)


def _complain(program: str, message: str, hint: str) -> None:
    line = " ".join(message.split())
    sys.stderr.write(f"{program}: error: {line}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")
