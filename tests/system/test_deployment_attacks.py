"""Five hospitals and a coordinator at work as processes, and what each refuses.

A lie of the coordinator is told by its own program, with one thing bent, over the folder of the
honest one: it has every key that a coordinator has. After each attack the honest rounds go on.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import random
import re
import shutil
import socket
import sqlite3
import ssl
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, RecordDict

from client.fleet import BEAT, PULL, PUSH, NodeKey, create_key, load_key
from client.journal import Journal
from privacy.keys import identity as from_secret
from privacy.roster import Member
from server import desk
from server.books import Books
from server.certificates import issue
from server.folder import BOOKS, open_folder
from server.office import AUTHORITY_PATH
from shared_models import letters
from shared_models.invitation import read_token, write_token
from shared_models.roster_file import read_roster, roster_bytes, sign_roster
from shared_models.study import load_study
from tests.server.conftest import DOCUMENT
from tests.system.deployment import Deployment, Ended, Process

SITES = ("bonn", "ulm", "jena", "graz", "kiel")  # so that t = 4, and three are too few
STUDY: dict[str, Any] = {
    **DOCUMENT,
    "rounds": 5000,  # it is never over here
    "aggregation": {"spare_attempts": 500, "deadline_s": 5.0},
    "evaluation": {"every": 5000},
    "privacy": {**DOCUMENT["privacy"], "noise_multiplier": 60.0},
}
OUTSIDE = ("/v1/control/list-runs", "/v1/control/register-node", "/v1/runtime/acquire-task",
           "/v1/fleet/register-node", "/v1/fleet/get-fab", "/v1/fleet/pull-object",
           "/v1/fleet/confirm-message-received", "/docs", "/")  # fmt: skip


class System:
    """The deployment, and a hand at its door.

    Its first coordinator is honest but for Flower's run, which has a bundle of planted code.
    """

    def __init__(self, folder: Path) -> None:
        self.deployment = Deployment(folder, STUDY, SITES)
        self.path, self.port = folder, self.deployment.port
        self.processes: dict[str, Process] = {}
        self.planted = folder / "it-ran"
        self.deployment.found(f"planted={self.planted}")

    # --- hospitals

    def records(self, site: str) -> Path:
        draw = random.Random(site)
        rows = [f"{draw.randint(20, 90)},{draw.choice(('yes', 'no'))}" for _ in range(30)]
        path = self.path / f"{site}.csv"
        path.write_text("\n".join(["age,ill", *rows]) + "\n")
        return path

    def begin(self) -> None:
        enrolled = self.deployment.enrol(data=self.records)
        assert not any(one.code for one in enrolled.values()), enrolled
        self.plan = self.deployment.server("seal").out.strip()
        for site in SITES:
            self.start(site)
        self.go_on()

    def start(self, site: str) -> None:
        self.processes[site] = self.deployment.start(site, self.plan)

    def log(self, site: str) -> str:
        path = self.path / site / "site.log"
        return path.read_text() if path.exists() else ""

    def rounds(self, site: str) -> list[int]:
        return [int(one) for one in re.findall(r"round (\d+) of", self.log(site))]

    def go_on(self, *sites: str) -> None:
        """Wait until the sites have done two rounds more."""
        there = sites or tuple(self.processes)
        before = {site: len(self.rounds(site)) for site in there}
        self.deployment.until(
            lambda: all(len(self.rounds(site)) >= before[site] + 2 for site in there),
            self.deployment.coordinator,
            *(self.processes[site] for site in there),
        )

    def refusals(self, site: str) -> list[str]:
        return re.findall(r"WARNING (\w+) was refused: (.*)", self.log(site))

    def sent(self, site: str, message: str) -> int:
        """How many messages of a kind a site has sent, by its own log; `cohort` has the vector."""
        with Journal(self.path / site / "journal.db") as journal:
            notes = [one for one in journal.rows() if one.kind == "sent"]
        return sum(one.facts["message"] == message for one in notes)

    def vectors(self) -> dict[str, int]:
        return {site: self.sent(site, "cohort") for site in SITES}

    # --- the coordinator

    def stop(self) -> None:
        self.deployment.coordinator.kill()
        self.deployment.coordinator.wait()

    @contextlib.contextmanager
    def lying(self, bend: str) -> Iterator[None]:
        """Put a bent coordinator in the place of the honest one, for a while."""
        self.stop()
        liar = self.deployment.serve(bend)
        try:
            yield
        finally:
            liar.kill()
            liar.wait()
            self.deployment.coordinator = self.deployment.serve()

    def peak_mb(self) -> float:
        status = Path(f"/proc/{self.deployment.coordinator.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    # --- the door

    def node(self, site: str) -> int:
        number: int = json.loads((self.path / site / "site.json").read_text())["node"]
        return number

    def key(self, site: str) -> NodeKey:
        return load_key(self.path / site / "node.key")

    def line(self) -> ssl.SSLSocket:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(self.path / "coordinator" / "tls" / "authority.pem")
        raw = socket.create_connection(("127.0.0.1", self.port), 30)
        return tls.wrap_socket(raw, server_hostname="127.0.0.1")

    def ask(self, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> int:
        """The status of one request of somebody who has the authority's certificate."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.sock = self.line()
        more = {"content-type": "application/protobuf", **(headers or {})}
        connection.request("POST", path, body, more)
        status = connection.getresponse().status
        connection.close()
        return status


@pytest.fixture(scope="module")
def open_roster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A coordinator that invites."""
    made = System(tmp_path_factory.mktemp("attacks"))
    yield made
    made.deployment.close()


@pytest.fixture(scope="module")
def running(open_roster: System) -> System:
    """All five at work in rounds."""
    open_roster.begin()
    return open_roster


# --- tokens, before the roster is sealed ---------------------------------------------------------


def enrolments(system: System, tokens: Mapping[str, str]) -> dict[str, Ended]:
    """What becomes of each token, in the folder that it stands beside."""
    data = str(system.records("visitor"))
    begun = {
        folder: system.deployment.begin(
            "fedward-site", "enrol", token, "--data", data, where=folder
        )
        for folder, token in tokens.items()
    }
    return {folder: system.deployment.ended(one) for folder, one in begun.items()}


def test_a_token_is_of_one_site_once_and_in_time(open_roster: System) -> None:
    system = open_roster
    folder = open_folder(system.path / "coordinator")
    with contextlib.closing(Books(folder / BOOKS)) as books:
        tokens = {
            name: desk.invite(folder, books, name, 1)[0] for name in ("first", "late", "third")
        }
        with sqlite3.connect(folder / BOOKS, timeout=30) as own:
            own.execute("UPDATE invitations SET expires = 1 WHERE site = 'late'")
        own.close()  # the server's own clock counts, whatever a token says
        ended = enrolments(system, {"first": tokens["first"]})["first"]
        assert ended.code == 0, ended
        said = read_token(tokens["third"])
        secret = bytes([said.secret[0] ^ 1]) + said.secret[1:]
        wrong = {
            "used": tokens["first"],
            "late": tokens["late"],
            "altered": write_token(replace(said, secret=secret)),
            "another": write_token(replace(read_token(tokens["late"]), site="third")),
        }
        for name, ended in enrolments(system, wrong).items():
            assert ended.code == 2, ended
            words = "the token has expired" if name == "late" else "the token is not valid"
            assert f"refused by the coordinator: {words}" in ended.err
            assert not (system.path / name / "site.json").exists()
        states = {one.name: one.state for one in books.page().news()}
        assert states == {"first": "enrolled", "late": "invited", "third": "invited"}
        for name in tokens:
            desk.revoke(folder, books, name)
        ended = enrolments(system, {"first": tokens["first"]})["first"]
        assert ended.code == 2, ended  # with its own keys: it was revoked
        assert "refused by the coordinator" in ended.err


# --- the door ------------------------------------------------------------------------------------


def test_an_outsider_with_the_authoritys_certificate_is_refused_everywhere(
    running: System, tmp_path: Path
) -> None:
    for path in OUTSIDE:
        assert running.ask(path) == 404, path
    stranger = create_key(tmp_path / "stranger.key")
    body = PullMessagesRequest(node=Node(node_id=running.node("bonn"))).SerializeToString()
    public = running.key("bonn").headers()["flwr-public-key"]
    for path in (PULL, PUSH, BEAT):
        for headers in ({}, stranger.headers(), {**stranger.headers(), "flwr-public-key": public}):
            assert running.ask(path, body, headers) == 401
    assert running.ask("/fedward/letters", b"x" * 100) == 400
    running.go_on()


def test_nothing_but_the_one_port_is_listened_on(running: System) -> None:
    """Flower's control and runtime have no socket at all, and a hospital listens on none."""
    assert listening(running.deployment.coordinator.pid) == {running.port}
    for process in running.processes.values():
        assert listening(process.pid) == set()


def listening(pid: int) -> set[int]:
    own = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            own.add(os.readlink(link))
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and f"socket:[{cells[9]}]" in own:
                ports.add(int(cells[1].rpartition(":")[2], 16))
    return ports


def test_a_hospital_that_speaks_for_another_is_refused(running: System) -> None:
    thief, victim = running.node("graz"), running.node("bonn")
    key = running.key("graz")
    body = PullMessagesRequest(node=Node(node_id=victim)).SerializeToString()

    def said(path: str, body: bytes) -> int:
        """The status, once graz itself is not sending anything: one answer at a time is taken."""
        while (status := running.ask(path, body, key.headers())) == 429:
            time.sleep(0.1)
        return status

    assert said(PULL, body) == 403
    assert said(BEAT, body) == 403
    for node, source in ((thief, victim), (victim, thief), (victim, victim)):
        assert said(PUSH, answer(node, source)) == 403
    assert said(PUSH, answer(thief, thief)) == 410  # nobody asked that
    assert said("/v1/fleet/confirm-message-received", body) == 404
    running.go_on()


def answer(node: int, source: int) -> bytes:
    value = ConfigRecord.Item(key="payload", value=ConfigRecordValue(bytes=b"forged"))
    record = RecordDict.Item(key="fedward", config_record=ConfigRecord(items=[value]))
    message = Message(
        metadata=Metadata(src_node_id=source, dst_node_id=1, reply_to_message_id="0" * 64),
        content=RecordDict(items=[record]),
    )
    return PushMessagesRequest(node=Node(node_id=node), messages_list=[message]).SerializeToString()


def test_a_replayed_request_is_refused(running: System) -> None:
    headers = running.key("graz").headers()
    body = PullMessagesRequest(node=Node(node_id=running.node("graz"))).SerializeToString()
    assert running.ask(PULL, body, headers) == 200
    for path in (PULL, BEAT, PUSH):
        assert running.ask(path, body, headers) == 401
    running.go_on()


def test_a_gigabyte_costs_the_server_no_memory(running: System) -> None:
    """The bound is many times a payload of this study, and a thirtieth of what was offered."""
    before = running.peak_mb()
    key = running.key("graz")
    declared, pieces = {"content-length": str(1 << 30)}, {"transfer-encoding": "chunked"}
    for path in (PUSH, PULL, BEAT):
        assert poured(running, path, declared) == 413
        assert poured(running, path, {**declared, **key.headers()}) == 413
        status = 429  # the site itself sends an answer just now: one at a time
        while status == 429:
            status = poured(running, path, {**pieces, **key.headers()})
        assert status == 413, path
        assert poured(running, path, pieces) == 401
    for path in (letters.PATH, AUTHORITY_PATH):  # whoever enrols has no key yet
        assert poured(running, path, declared) == 413
        assert poured(running, path, pieces) == 413
    assert running.peak_mb() - before < 32
    running.go_on()


def poured(system: System, path: str, headers: Mapping[str, str]) -> int:
    """Send a gigabyte, or as much of it as is taken; return the status."""
    piece = b"x" * (1 << 20)
    if "transfer-encoding" in headers:
        piece = b"100000\r\n" + piece + b"\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with system.line() as line:
        line.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        with contextlib.suppress(OSError):  # it hung up
            for _ in range(1 << 10):
                line.sendall(piece)
        return int(line.recv(64).split()[1])


def test_a_hundred_idle_connections_stop_no_round(running: System) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(100):
            if number % 3:  # a third says nothing at all, a third hello, a third half a head
                line: socket.socket = stack.enter_context(running.line())
                if number % 3 == 2:
                    line.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n")
            else:
                stack.enter_context(socket.create_connection(("127.0.0.1", running.port), 30))
        running.go_on()


def test_a_wrong_authority_is_never_spoken_to(running: System) -> None:
    """The site whose pinned authority is not the server's does not begin, and waits for nobody."""
    folder = running.path / "moved"
    shutil.copytree(running.path / "graz", folder, ignore=shutil.ignore_patterns("lock"))
    other = issue(running.path / "other", ["127.0.0.1"])
    shutil.copy(other.authority, folder / "authority.pem")
    ended = running.deployment.site("moved", "start")
    assert ended.code == 2, ended
    assert "the server's certificate is not signed by" in ended.err
    assert "found certificate failed; nothing was begun" in ended.err


def test_planted_code_in_the_run_is_never_run(running: System) -> None:
    """All rounds until here were of that run, and each hospital has sent vectors for it."""
    database = running.path / "coordinator" / "flower.db"
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as flower:
        bundles = flower.execute("SELECT hex(content) FROM fab").fetchall()
        runs = flower.execute("SELECT DISTINCT fab_hash FROM run").fetchall()
    content = bytes.fromhex(bundles[0][0])
    assert str(running.planted).encode() in zipfile.ZipFile(io.BytesIO(content)).read(
        "client/app.py"
    )
    assert runs == [(hashlib.sha256(content).hexdigest(),)]
    assert min(running.vectors().values()) > 0
    assert not running.planted.exists()


# --- a coordinator that lies ---------------------------------------------------------------------


def test_another_threshold_than_was_approved_gets_no_vector(running: System) -> None:
    """No approval holds for its plan; when it counts the old ones all the same, it asks in vain."""
    with running.lying("threshold"):
        before = running.vectors()
        running.deployment.until(lambda: moved_approvals(running) != running.plan)
        # What it is greeted with is of the plan that was approved: it comes to no round.
        greeted = {site: running.sent(site, "hello") for site in SITES}
        running.deployment.until(
            lambda: all(running.sent(site, "hello") > one + 1 for site, one in greeted.items())
        )
    assert running.vectors() == before
    moved_approvals(running, running.plan)
    running.go_on()


def moved_approvals(system: System, plan: str = "") -> str:
    """Let the approvals in the books be of another plan, or of the one that stands there now."""
    with sqlite3.connect(system.path / "coordinator" / "books.db", timeout=30) as books:
        plan = plan or books.execute("SELECT plan FROM study").fetchone()[0]
        books.execute("UPDATE approvals SET plan = ?", (plan,))
    books.close()
    return plan


def test_one_victim_and_two_colluders_of_a_larger_roster_are_too_few(running: System) -> None:
    victim = {"bonn", "graz", "kiel"}
    refused = {site: len(running.refusals(site)) for site in victim}
    with running.lying("surround=bonn,graz,kiel"):
        before = running.vectors()
        running.deployment.until(
            lambda: all(len(running.refusals(site)) > count for site, count in refused.items())
        )
        assert running.vectors() == before
    assert "at least 4 sites" in running.refusals("bonn")[-1][1]
    running.go_on()


def test_a_revoked_site_ends_and_does_not_come_back(running: System) -> None:
    assert running.deployment.server("revoke", "kiel").code == 0
    ended = running.deployment.ended(running.processes.pop("kiel"))
    assert ended.code == 3, ended
    assert "the site was revoked" in ended.err
    again = running.deployment.ended(running.deployment.start("kiel", running.plan))
    assert again.code == 3, again
    body = PullMessagesRequest(node=Node(node_id=running.node("kiel"))).SerializeToString()
    assert running.ask(PULL, body, running.key("kiel").headers()) == 401
    running.go_on()  # the other four need no new approval


def test_a_roster_that_grew_after_the_approval_ends_the_work(running: System) -> None:
    """Signed by the coordinator's own key, and put into its books."""
    folder = open_folder(running.path / "coordinator")
    with sqlite3.connect(folder / "books.db", timeout=30) as books:
        row = books.execute("SELECT file FROM rosters ORDER BY version DESC").fetchone()
        roster = read_roster(bytes(row[0]))
        sites = [Member(one.name, bytes.fromhex(one.public), one.revoked) for one in roster.sites]
        sites.append(Member("mars", from_secret(bytes([9]) * 32).public))
        grown = sign_roster(roster.study, roster.version + 1, sites, folder.identity())
        books.execute("INSERT INTO rosters VALUES (?, ?)", (grown.version, roster_bytes(grown)))
    books.close()
    for site, process in running.processes.items():
        ended = running.deployment.ended(process)
        assert ended.code == 3, (site, ended)
        assert "stays in force" in ended.err
        assert "mars" not in (running.path / site / "roster.json").read_text()
    running.stop()
    with sqlite3.connect(folder / "books.db", timeout=30) as books:  # nothing was ever wrong
        books.execute("DELETE FROM rosters WHERE version = ?", (grown.version,))
        books.execute("UPDATE study SET ended = NULL, why = NULL")
    books.close()


def test_a_study_that_was_changed_after_the_approval_is_not_served(running: System) -> None:
    """By the coordinator's own program, and by whoever makes the digests fit. Nobody works now."""
    folder = running.path / "coordinator"
    study = (folder / "study.toml").read_text()
    changed = study.replace("noise_multiplier = 60.0", "noise_multiplier = 1.0")
    assert changed != study
    (folder / "study.toml").write_text(changed)
    ended = running.deployment.server("start")
    assert ended.code == 2, ended
    assert "expected the study that the folder was made for" in ended.err
    settings = json.loads((folder / "coordinator.json").read_text())
    settings["study"] = load_study(folder / "study.toml").digest()
    (folder / "coordinator.json").write_text(json.dumps(settings))
    running.deployment.coordinator = running.deployment.serve()
    before = running.vectors()
    ended = running.deployment.ended(running.deployment.start("ulm", running.plan))
    assert ended.code == 2, ended
    assert "the coordinator runs another study" in ended.err
    assert running.vectors() == before
