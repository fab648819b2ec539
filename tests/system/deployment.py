"""A coordinator and hospitals as processes of their own, through the commands that people type.

It asserts nothing but that a command which must end does end.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import tomli_w

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FEDWARD_DATA", ROOT.parent / "shared" / "data")) / "heart"
SITES = ("cleveland", "hungarian", "switzerland", "va")
BENT = Path(__file__).with_name("bent.py")
WAIT_S = 120.0  # nothing here takes so long, unless it hangs
Process = subprocess.Popen[str]


def heart(rounds: int) -> dict[str, Any]:
    """The example study, for so many rounds, as it may run between hospitals."""
    document = tomllib.loads((ROOT / "examples" / "heart" / "study.toml").read_text())
    document["rounds"] = rounds
    del document["simulation"]["seed"]
    return document


class Ended:
    """A command that has ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"Ended({self.code}, {self.out!r}, {self.err!r})"


class Deployment:
    """One study between hospitals, all in one folder: coordinator/, and a folder a site."""

    def __init__(self, folder: Path, study: dict[str, Any], sites: Sequence[str] = SITES) -> None:
        self.folder, self.sites = folder, sites
        self._running: list[tuple[Process, IO[str]]] = []
        (folder / "study.toml").write_text(tomli_w.dumps(study))
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]

    def path(self, name: str) -> Path:
        return self.folder / name

    def server(self, *arguments: str) -> Ended:
        return self.ended(self.begin("fedward-server", *arguments, where="coordinator"))

    def site(self, name: str, *arguments: str) -> Ended:
        return self.ended(self.begin("fedward-site", *arguments, where=name))

    def begin(self, program: str, *arguments: str, where: str, bend: str = "") -> Process:
        """Start a command on the folder ``where``, its words kept in a file.

        Args:
            program: its name, and ``arguments`` without the folder.
            where: the folder.
            bend: what is not as it should be with it (tests/system/bent.py).
        """
        command = [sys.executable, str(BENT), bend, program] if bend else [str(BIN / program)]
        return self._begin([*command, *arguments, "--dir", where], f"{where}.{arguments[0]}.err")

    def _begin(self, command: list[str], words: str) -> Process:
        err = (self.folder / words).open("a+")
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            start_new_session=True,
        )
        self._running.append((process, err))
        return process

    def ended(self, process: Process, within_s: float = WAIT_S) -> Ended:
        out, _ = process.communicate(timeout=within_s)
        err = next(file for one, file in self._running if one is process)
        err.seek(0)
        return Ended(process.returncode, out, err.read())

    def found(self, bend: str = "") -> None:
        """Init, and start to serve."""
        made = self.server("init", "study.toml", "--host", "127.0.0.1", "--port", str(self.port))
        if made.code:
            raise AssertionError(made)
        self.coordinator = self.serve(bend)

    def serve(self, bend: str = "") -> Process:
        process = self.begin("fedward-server", "start", where="coordinator", bend=bend)
        self.until(lambda: self._listens(), process)
        return process

    def enrol(self, *, data: Callable[[str], Path]) -> dict[str, Ended]:
        """Invite and enrol every site, all at once."""
        invited = {
            site: self.begin("fedward-server", "invite", site, where="coordinator")
            for site in self.sites
        }
        tokens = {site: self.ended(process).out.strip() for site, process in invited.items()}
        begun = {
            site: self.begin("fedward-site", "enrol", token, "--data", str(data(site)), where=site)
            for site, token in tokens.items()
        }
        return {site: self.ended(process) for site, process in begun.items()}

    def start(self, site: str, plan: str, confirmed: str = "all", bend: str = "") -> Process:
        typed = ("--approve", plan, "--confirmed", confirmed)
        return self.begin("fedward-site", "start", *typed, where=site, bend=bend)

    def predict(self, site: str, records: Path) -> Process:
        """Use the model that a site took home, on records; the one command without a folder."""
        out = ("--out", str(self.path(site) / "predictions.csv"))
        typed = ("predict", str(self.path(site) / "model"), "--data", str(records), *out)
        return self._begin([str(BIN / "fedward-site"), *typed], f"{site}.predict.err")

    def until(self, holds: Callable[[], bool], *alive: Process) -> None:
        end = time.monotonic() + WAIT_S
        while not holds():
            for process in alive:
                if process.poll() is not None:
                    raise AssertionError(self.ended(process))
            if time.monotonic() > end:
                raise TimeoutError("waited too long")
            time.sleep(0.05)

    def close(self) -> None:
        for process, err in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            err.close()

    def _listens(self) -> bool:
        with socket.socket() as one:
            one.settimeout(1.0)
            return one.connect_ex(("127.0.0.1", self.port)) == 0
