"""A program of fedward with one thing bent, for tests of what the other end makes of it.

    python bent.py BEND fedward-server|fedward-site ARGUMENTS...

BEND is one of

    keep=FILE       the server puts every body that it reads into FILE
    threshold       the server works with t = 3, and says so in its plan
    surround=A,B,C  the server invites these sites alone, and holds three for enough
    expired         the server's certificate ended a hundred days ago
    planted=FILE    the server's run has a bundle of code that makes FILE wherever it is run
    clock=SECONDS   the site's clock is so far ahead from SIGUSR1 on, and right again from SIGUSR2
"""

import hashlib
import io
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def keep(path: str) -> None:
    import server.gateway as gateway

    read: Any = gateway._read
    file = Path(path).open("ab", buffering=0)  # noqa: SIM115 - as long as the program

    async def kept(*arguments: Any) -> bytes:
        body: bytes = await read(*arguments)
        file.write(body + b"\n")
        return body

    gateway._read = kept


def threshold(_: str) -> None:
    import privacy.roster

    privacy.roster.threshold = lambda n: 3


def surround(names: str) -> None:
    """The plan is the one that was approved, digest and all; what is done is another thing."""
    import privacy.roster
    import server.attendance
    import server.folder

    make: Any = server.folder.make_plan

    class Lower(privacy.roster.Plan):
        t = 3  # type: ignore[assignment]

    def lower(*arguments: Any) -> Lower:
        plan = make(*arguments)
        return Lower(**{name: getattr(plan, name) for name in plan.__dataclass_fields__})

    server.folder.make_plan = lower
    server.attendance.Attendance._gather = lambda *_: frozenset(names.split(","))  # type: ignore[method-assign]


def expired(_: str) -> None:
    import server.folder
    from server.certificates import SERVER_DAYS, Certificates, issue

    def old(folder: Path, hosts: list[str]) -> Certificates:
        (folder / "server.pem").unlink()
        return issue(folder, hosts, datetime.now(UTC) - timedelta(days=SERVER_DAYS + 100))

    server.folder.issue = old  # type: ignore[assignment]


def planted(marker: str) -> None:
    import server.superlink

    server.superlink.SuperLink._begin = lambda link: begin_planted(link._state, marker)  # type: ignore[method-assign]


def begin_planted(state: Any, marker: str) -> tuple[int, int]:
    """Begin a run of Flower's that has a bundle, as stock Flower does; ours never has one."""
    from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
    from flwr.supercore.fab import Fab

    content = bundle(f"open({marker!r}, 'w').close()\n")
    digest = hashlib.sha256(content).hexdigest()
    state.store_fab(Fab(digest, content, {}))
    run = state.create_run(
        "x/x", "1", digest, {}, NOOP_FEDERATION_ID, None, "<id:none>", TaskType.SERVER_APP
    )
    task = state.get_run_info(run_ids=[run])[0].primary_task_id
    assert state.claim_task(task)
    assert state.activate_task(task)
    return run, task


def bundle(code: str) -> bytes:
    """The code under every name that a site could import it by."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as files:
        files.writestr("pyproject.toml", '[project]\nname = "x"\nversion = "1"\n')
        for name in ("client/__init__.py", "client/app.py", "sitecustomize.py", "flwr/__init__.py"):
            files.writestr(name, code)
    return packed.getvalue()


def clock(seconds: str) -> None:
    import client.channel
    import client.fleet

    ahead, true = 0.0, time.time

    def turn(by: float) -> Callable[[int, object], None]:
        def turned(number: int, frame: object) -> None:
            nonlocal ahead
            ahead = by

        return turned

    def now() -> float:
        return true() + ahead

    signal.signal(signal.SIGUSR1, turn(float(seconds)))
    signal.signal(signal.SIGUSR2, turn(0.0))
    time.time = client.channel.clock = now
    client.fleet.now = lambda: datetime.fromtimestamp(now(), UTC)


def main() -> None:
    bend, program = sys.argv[1:3]
    sys.argv = [program, *sys.argv[3:]]
    name, _, value = bend.partition("=")
    bends = {one.__name__: one for one in (keep, threshold, surround, expired, planted, clock)}
    bends[name](value)
    if program == "fedward-server":
        from server.cli import main as run
    else:
        from client.cli import main as run
    run()


if __name__ == "__main__":
    main()
