"""One finding of the doctor, and checks that end in time, whatever they wait for.

It checks nothing itself.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from client.channel import OutdatedError, UntrustedError
from client.policy import ALLOW
from privacy.errors import AbsentError, FedwardError

Verdict = Literal["ok", "warning", "failed"]
_RESTORE = "restore the file from your own copy; docs/operations.md says what else to do"
_COORDINATOR = "call the coordinator: is it that program which answers there, of the same version?"
_TO_DO = {  # by the name of a check: when an error itself does not say
    "files": "start the program as the owner of the folder and of its files",
    "enrolment": "restore the folder's file from your own copy; a key that is lost does not come "
    "back: docs/operations.md, Keys",
    "policy": ALLOW,
    "versions": _RESTORE,
    "disk": "look at the folder's disk",
    "memory": "look at the machine's memory",
    "records": "look at the files that were named at `fedward-site enrol`, and at who may read "
    "them",
    "masks": "install the program and its packages anew, with constraints.txt",
    "proxy": "look at HTTPS_PROXY and NO_PROXY",
    "name": _COORDINATOR,
    "port": _COORDINATOR,
    "certificate": _COORDINATOR,
    "clock": _COORDINATOR,
    "echo": _COORDINATOR,
    "code": _COORDINATOR,
}
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        name: of the check.
        verdict: a warning does not keep the site from working.
        text: what was found, in one line.
        hint: what to do about it; empty when it is ok.
        absent: whether it failed because the server was not reached.
        passes: whether it may pass while nothing is done to this site's folder, as it is waited
            out by a site that works: the server is away, a clock is off, memory is taken.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str = ""
    absent: bool = False
    passes: bool = False


def found(
    name: str, limit_s: float | None, check: Callable[[], Finding], *, remote: bool = False
) -> Finding:
    """Return the check's finding, or that it failed or did not end in time.

    Args:
        name: of the check.
        limit_s: after which it is left alone; None: never.
        check: an error of fedward that it raises is its finding.
        remote: whether it waits for nothing but other machines, which are then away.
    """
    try:
        return within(limit_s, check)
    except FedwardError as error:
        return failed(name, error)
    except TimeoutError:
        hint = "look at what it waits for: a disk or a network that does not answer"
        text = f"no result within {limit_s:g} s"
        return Finding(name, "failed", text, hint, absent=remote, passes=True)


def failed(name: str, error: FedwardError) -> Finding:
    """Return the finding that an error is; where it does not say what to do, its check does."""
    absent = isinstance(error, AbsentError) and not isinstance(error, UntrustedError)
    passes = absent or isinstance(error, OutdatedError)
    return Finding(name, "failed", str(error), error.hint or _TO_DO[name], absent, passes)


def within(limit_s: float | None, work: Callable[[], T]) -> T:
    """Return what ``work`` returns, or raise what it raises, within so many seconds, if any.

    Names are resolved, and files of a lost network disk are read, by calls that nothing ends. They
    are left behind in a thread that does not keep the program from ending.

    Raises:
        TimeoutError: it has not ended.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again below, in the thread that asked
            errors.append(error)

    thread = threading.Thread(target=run, name="fedward-check", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]
    return results[0]
