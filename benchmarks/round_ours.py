"""One study between hospitals on this machine, by the real commands over TLS, seen from outside.

It measures processes by what the system says of them: the clock, /proc, and bytes through a relay.
"""

import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.system.deployment import Deployment, Process  # noqa: E402 - a folder beside this one

VALUES = 999_987  # of an MLP 1-1000-995-2
RECORDS = 20  # of each site
ROUNDS = 2000  # more than are ever run
LOOK_S = 0.005  # between two looks at the clock
BEHIND = "127.0.0.2"  # where the coordinator listens behind the relay

STUDY: dict[str, Any] = {
    "name": "benchmark",
    "task": "tabular",
    "rounds": ROUNDS,
    "data": {
        "target": "y",
        "columns": {
            "x": {"kind": "number", "low": 0, "high": 1},
            "y": {"kind": "category", "values": ["no", "yes"]},
        },
    },
    "model": {"name": "mlp", "hidden": [1000, 995]},
    "training": {"learning_rate": 0.1, "local_steps": 1},
    "privacy": {
        "mode": "local",
        "noise_multiplier": 100.0,
        "delta": 1e-5,
        "clipping_norm": 1.0,
        "sampling_rate": 1.0,
        "expected_batch": RECORDS,
    },
    "aggregation": {"spare_attempts": 10, "deadline_s": 120.0},
    "evaluation": {"every": ROUNDS},
}


class Ours:
    """A coordinator and its sites, sealed and not yet started; all end with the context."""

    def __init__(self, folder: Path, sites: int, *, relayed: bool = False) -> None:
        """Init, enrol and seal.

        Args:
            folder: empty.
            sites: how many.
            relayed: whether the sites reach the coordinator through a relay that counts bytes.

        Raises:
            RuntimeError: a command failed.
        """
        names = [f"site{index:02}" for index in range(sites)]
        self._deployment = Deployment(folder, STUDY, names)
        self._relay = Relay(self._deployment.port) if relayed else None
        self._rows = folder / "coordinator" / "metrics.csv"
        self.sites: dict[str, Process] = {}
        try:
            port = str(self._deployment.port)
            _well(
                self._deployment.server("init", "study.toml", "--host", "127.0.0.1", "--port", port)
            )
            self._serve()
            for ended in self._deployment.enrol(data=self._records).values():
                _well(ended)
            self._plan = _well(self._deployment.server("seal")).out.strip()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs."""
        self._deployment.close()
        if self._relay is not None:
            self._relay.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(self._deployment.sites)

    @property
    def coordinator(self) -> Process:
        """The process that runs the rounds."""
        return self._coordinator

    def start(self, name: str) -> None:
        """Start a site, which approves."""
        self.sites[name] = self._deployment.start(name, self._plan)

    def start_all(self) -> float:
        """Start coordinator and sites at one moment; return the seconds until a round is done."""
        self._coordinator.send_signal(signal.SIGTERM)
        self._coordinator.wait()
        began = time.monotonic()
        self._coordinator = self._begin()
        for name in self._deployment.sites:
            self.start(name)
        self.round_seconds(0)
        return time.monotonic() - began

    def round_seconds(self, rounds: int) -> list[float]:
        """Return the wall seconds of each of so many rounds; they begin when one has just ended.

        Raises:
            RuntimeError: a round was not one of all sites, or a process ended.
        """
        ends: list[float] = []
        seen = self._size()
        while len(ends) <= rounds:
            time.sleep(LOOK_S)
            size = self._size()
            if size != seen:
                seen = size
                if size:
                    ends.append(time.monotonic())
            for process in (self._coordinator, *self.sites.values()):
                if process.poll() is not None:
                    raise RuntimeError(str(self._deployment.ended(process)))
        lines = self._rows.read_text().splitlines()
        column = lines[0].split(",").index("sites")
        if {line.split(",")[column] for line in lines[1:]} != {str(len(self._deployment.sites))}:
            raise RuntimeError("expected all sites in all rounds")
        return [later - earlier for earlier, later in pairwise(ends)]

    def bytes_sent(self) -> tuple[int, int]:
        """Return the bytes that all sites sent and got through the relay, TLS and all."""
        return (0, 0) if self._relay is None else (self._relay.up, self._relay.down)

    def await_work(self, names: Sequence[str]) -> None:
        """Wait until these sites are connected and have nothing to do."""
        logs = [self._deployment.path(name) / "site.log" for name in names]

        def at_work() -> bool:
            return all("connected to" in log.read_text() for log in logs if log.exists())

        self._deployment.until(
            lambda: all(log.exists() for log in logs) and at_work(), *self.sites.values()
        )

    def _size(self) -> int:
        with suppress(FileNotFoundError), self._rows.open("rb") as file:
            return max(0, sum(1 for _ in file) - 1)
        return 0

    def _begin(self) -> Process:
        listen = () if self._relay is None else ("--listen", BEHIND)
        return self._deployment.begin("fedward-server", "start", *listen, where="coordinator")

    def _serve(self) -> None:
        self._coordinator = self._begin()
        host = "127.0.0.1" if self._relay is None else BEHIND
        self._deployment.until(lambda: _answers(host, self._deployment.port), self._coordinator)

    def _records(self, site: str) -> Path:
        draw = random.Random(site)
        path = self._deployment.path(f"{site}.csv")
        lines = [f"{draw.random():.3f},{draw.choice(['no', 'yes'])}" for _ in range(RECORDS)]
        path.write_text("\n".join(["x,y", *lines]) + "\n")
        return path


class Relay:
    """Passes bytes between the sites and the coordinator, and counts them."""

    def __init__(self, port: int) -> None:
        self.up = self.down = 0
        self._port = port
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", port), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                site, _ = self._socket.accept()
                try:
                    server = socket.create_connection((BEHIND, self._port))
                except OSError:
                    site.close()
                    continue
                for one in (site, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(site, server, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, site, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 18):
                with self._lock:
                    if up:
                        self.up += len(piece)
                    else:
                        self.down += len(piece)
                target.sendall(piece)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _well(ended: Any) -> Any:
    if ended.code:
        raise RuntimeError(str(ended))
    return ended


def _answers(host: str, port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1.0)
        return one.connect_ex((host, port)) == 0
