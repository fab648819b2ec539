"""Flower as it comes: a SuperLink, SuperNodes and `flwr run`, with plain FedAvg of one vector.

Nothing of it is changed: default isolation, default waits, no TLS, no masks, nobody trains. The app
that it runs is written here, since Flower wants a folder of its own for one.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

START_S = 60.0  # until a port answers
RUN_S = 300.0  # for all rounds of a run
_SUPERLINK = "flower-superlink"

_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "plain"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "plain.server:app"
clientapp = "plain.client:app"

[tool.flwr.app.config]
values = 0
sites = 0
rounds = 0
marks = ""
"""

_SERVER = '''
"""FedAvg over all nodes; the clock is read where the strategy asks for an evaluation."""

import time

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    asked = context.run_config
    sites, marks = asked["sites"], asked["marks"]

    def mark(number, arrays):
        with open(marks, "a") as file:
            file.write(f"{time.time()}\\n")

    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=sites, min_evaluate_nodes=sites,
        min_available_nodes=sites,
    )
    first = ArrayRecord([np.zeros(asked["values"], dtype=np.float32)])
    strategy.start(grid, first, num_rounds=asked["rounds"], evaluate_fn=mark)
'''

_CLIENT = '''
"""A site that gives back what it got."""

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    content = RecordDict({
        "arrays": message.content["arrays"],
        "metrics": MetricRecord({"num-examples": 1}),
    })
    return Message(content, reply_to=message)
'''


class StockFlower:
    """One SuperLink and its SuperNodes on this machine, until `close`."""

    def __init__(self, folder: Path, sites: int, values: int) -> None:
        """Start them.

        Raises:
            RuntimeError: Flower's commands are not there, or one of them ended.
        """
        self._folder, self._sites, self._values = folder, sites, values
        found = shutil.which(_SUPERLINK, path=_paths())
        if found is None:
            raise RuntimeError(f"{_SUPERLINK} is not installed")
        self._bin = Path(found).parent
        _write_app(folder / "app")
        self._running: list[subprocess.Popen[bytes]] = []
        port = free_port()
        home = self._home("user")
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n'
            f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        try:
            quiet = "--disable-runtime-dependency-installation"  # nothing is downloaded
            self._begin(_SUPERLINK, "--insecure", quiet, "--port", str(port))
            _await_port(port, self._running)
            for index in range(sites):
                where = ("--superlink", f"127.0.0.1:{port}", "--port", str(free_port()))
                self._begin("flower-supernode", "--insecure", *where, name=f"node{index}")
        except BaseException:
            self.close()
            raise

    def rounds(self, rounds: int) -> list[float]:
        """Return the wall seconds of each round of a new run; its start is not in them."""
        marks = self._folder / "marks"
        marks.unlink(missing_ok=True)
        asked = {"values": self._values, "sites": self._sites, "rounds": rounds}
        config = " ".join(f"{name}={value}" for name, value in asked.items())
        ended = subprocess.run(
            [self._bin / "flwr", "run", "app", "-c", f'{config} marks="{marks}"'],
            cwd=self._folder,
            env=self._environment("user"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )
        if ended.returncode:
            raise RuntimeError(f"flwr run: {ended.stdout}{ended.stderr}")
        end = time.monotonic() + RUN_S
        while len(times := _read_marks(marks)) <= rounds:
            if time.monotonic() > end or any(one.poll() is not None for one in self._running):
                raise RuntimeError(f"Flower ended no round in time: see {self._folder}")
            time.sleep(0.1)
        return [later - earlier for earlier, later in pairwise(times)]

    def close(self) -> None:
        """End all of them, and what they started."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _begin(self, program: str, *arguments: str, name: str = "link") -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running.append(
                subprocess.Popen(
                    [self._bin / program, *arguments],
                    cwd=self._folder,
                    env=self._environment(name),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _home(self, name: str) -> Path:
        return self._folder / "home" / name

    def _environment(self, name: str) -> dict[str, str]:
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        own = {"FLWR_HOME": str(self._home(name)), "PATH": f"{self._bin}:{os.environ['PATH']}"}
        return {**os.environ, **quiet, **threads, **own}


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def _paths() -> str:
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"


def _write_app(folder: Path) -> None:
    package = folder / "plain"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PROJECT)
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text(_SERVER)
    (package / "client.py").write_text(_CLIENT)


def _read_marks(path: Path) -> Sequence[float]:
    text = path.read_text() if path.exists() else ""
    return [float(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _await_port(port: int, running: Sequence["subprocess.Popen[bytes]"]) -> None:
    end = time.monotonic() + START_S
    while True:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > end or running[-1].poll() is not None:
            raise RuntimeError("expected Flower's SuperLink to listen, it does not")
        time.sleep(0.1)
