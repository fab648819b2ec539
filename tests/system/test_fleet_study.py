"""A masked private study over TLS gives the bytes that it gives in one process."""

import threading
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from client.app import Answer, make_app
from client.channel import Address
from client.fleet import Fleet, create_key
from server.certificates import issue
from server.gateway import serve
from server.hub import Hub
from server.listener import Door
from server.rounds import Exchange
from shared_models.study import parse_study
from simulations import federation
from simulations.run import simulate

PAYLOAD_BYTES = 1 << 20


class Wire:
    """Stands for the local grid: one fleet a virtual site, all before one hub."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.refused = folder, 0
        self.hub = Hub(None, folder)
        self._certificates = issue(folder / "tls", ["127.0.0.1"])
        self._door = serve(self.hub, Door("127.0.0.1", 0, self._certificates), PAYLOAD_BYTES)
        self._port = self._door.__enter__()
        self._turn = threading.Lock()  # the sites of a simulation share their network
        self._stop = threading.Event()
        self._nodes: list[int] = []
        self._threads: list[threading.Thread] = []

    def make_app(self, kinds: Sequence[str], answer: Answer) -> tuple[Sequence[str], Answer]:
        return kinds, answer

    def grid(self, made: tuple[Sequence[str], Answer], nodes: Iterable[int], _: int) -> "Wire":
        kinds, answer = made
        authority = self._certificates.authority.read_bytes()
        for place in nodes:

            def at_place(kind: str, node: int, message: bytes, place: int = place) -> bytes:
                with self._turn:
                    return answer(kind, place, message)

            key = create_key(self.folder / str(place) / "node.key")
            self._nodes.append(self.hub.admit(key.public))
            address = Address("127.0.0.1", self._port, authority)
            fleet = Fleet(address, key, self._nodes[-1], PAYLOAD_BYTES, self.folder)
            work = (make_app(kinds, at_place), kinds, self._stop)
            self._threads.append(threading.Thread(target=fleet.serve, args=work))
            self._threads[-1].start()
        return self

    def exchange(self, _: object, nodes: Mapping[str, int]) -> Exchange:
        def count(site: str, kind: str, code: int) -> None:
            self.refused += 1

        return self.hub.exchange({s: self._nodes[place - 1] for s, place in nodes.items()}, count)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self._door.__exit__(None, None, None)
        self.hub.close()


def test_a_masked_study_gives_the_same_bytes_over_the_wire(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tomllib.loads((folder / "study.toml").read_text())
    document["rounds"] = 3
    document["aggregation"]["masking"] = "fsa1"
    study = parse_study(document)
    records = folder / "toy.csv"
    local = simulate(study, records, tmp_path / "local")

    wire = Wire(tmp_path)
    monkeypatch.setattr(federation, "make_app", wire.make_app)
    monkeypatch.setattr(federation, "LocalGrid", wire.grid)
    monkeypatch.setattr(federation, "make_exchange", wire.exchange)
    try:
        wired = simulate(study, records, tmp_path / "wired")
    finally:
        wire.close()
    assert wired.model == local.model
    assert wired.checkpoint.spent_attempts == 0
    assert wire.refused == 0
