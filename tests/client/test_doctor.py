"""fedward-site doctor: each check fails for its own reason and says what to do; none hangs."""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

import client.channel
import client.doctor
import client.line_checks
import client.machine_checks
from client import approval, station
from client.finding import failed
from client.hours import DAYS
from client.policy import load_policy
from privacy import secagg_site
from privacy.accounting import Event
from privacy.errors import DataError, PrivacyError
from privacy.ledger import Ledger
from server.certificates import Certificates, issue
from server.gateway import serve
from server.hub import Hub
from server.listener import Door
from server.office import respond
from shared_models import letters
from shared_models.contract import Section
from shared_models.registry import count_parameters
from tests.client.desk import Desk, Hospital, asked_for, join, open_desk, table
from tests.client.steward import Ended, Program, refused, site_program
from tests.server.conftest import free_port

CHECKS = (
    "files", "enrolment", "policy", "versions", "disk", "memory", "records", "masks",
    "proxy", "name", "port", "certificate", "clock", "echo", "code",
)  # fmt: skip
LINE = CHECKS[CHECKS.index("proxy") :]
FAR = "coordinator.example"  # a name that is asked for by way of a proxy
PLENTY = "MemTotal: 99999999 kB\nMemAvailable: 99999999 kB\n"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("desk") / "coordinator", asked_for()) as one:
        yield one


@pytest.fixture(scope="module")
def enrolled(desk: Desk) -> Hospital:
    sites = join(desk, desk.folder.path.parent)
    desk.seal()
    return sites[0]


@pytest.fixture
def site(enrolled: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a healthy site, on a machine that has room, behind no proxy."""
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "meminfo").write_text(PLENTY)
    monkeypatch.setattr(client.machine_checks, "_MEMORY", tmp_path / "meminfo")
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 40)
    monkeypatch.setattr(client.machine_checks.shutil, "disk_usage", lambda _: usage)
    shutil.copytree(enrolled.folder, tmp_path / "bonn")
    return tmp_path / "bonn"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    return site_program(monkeypatch, capfd)


class Found:
    """What the doctor said, by the names of its checks."""

    def __init__(self, ended: Ended) -> None:
        self.code = ended.code
        self.all: dict[str, dict[str, Any]] = {one["name"]: one for one in json.loads(ended.out)}
        self.text = ended.out
        silent = {
            name for name, one in self.all.items() if not one["hint"] and one["verdict"] != "ok"
        }
        assert not silent, f"no word on what to do about {silent}"

    def bad(self) -> dict[str, str]:
        return {name: one["verdict"] for name, one in self.all.items() if one["verdict"] != "ok"}

    def says(self, name: str) -> str:
        return f"{self.all[name]['text']} -> {self.all[name]['hint']}"


@pytest.fixture
def doctor(program: Program, site: Path) -> Callable[[], Found]:
    return lambda: Found(program("doctor", "--dir", site, "--json"))


Doctor = Callable[[], Found]


def edit(site: Path, **changes: object) -> None:
    """Change what the site knows of its membership."""
    path = site / "site.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def not_tried_after(name: str) -> dict[str, str]:
    return dict.fromkeys(LINE[LINE.index(name) + 1 :], "warning")


# --- a healthy site ------------------------------------------------------------------------------


def test_a_site_that_can_work_is_told_so_check_by_check(doctor: Doctor) -> None:
    found = doctor()
    assert (tuple(found.all), found.bad(), found.code) == (CHECKS, {}, 0)
    assert "1,000 made numbers went there and back, signed" in found.says("echo")
    assert "SHA-256" in found.says("certificate")


def test_on_a_terminal_each_line_has_its_verdict_and_what_to_do(
    program: Program, site: Path
) -> None:
    site.chmod(0o755)
    ended = program("doctor", "--dir", site)
    assert ended.code == 2
    assert "failed" in ended.out.splitlines()[0]
    assert "to do: chmod 700" in ended.out


def test_nothing_of_a_record_is_sent(desk: Desk, doctor: Doctor, site: Path) -> None:
    table(Path(json.loads((site / "site.json").read_text())["data"]), first="61.4375,yes")
    desk.asked.clear()
    assert doctor().code == 0
    assert len(desk.asked) == 1
    assert b"61.4375" not in desk.sent


# --- this machine --------------------------------------------------------------------------------


def test_a_folder_that_others_may_enter(doctor: Doctor, site: Path) -> None:
    site.chmod(0o755)
    found = doctor()
    assert (found.bad(), found.code) == ({"files": "failed"}, 2)
    assert "chmod 700" in found.says("files")


@pytest.mark.parametrize("name", ["identity.key", "node.key", "split.key"])
def test_a_key_that_others_may_read(doctor: Doctor, site: Path, name: str) -> None:
    (site / name).chmod(0o640)
    found = doctor()
    assert found.bad()["files"] == "failed"
    assert found.code == 2
    assert f"chmod 600 {site / name}" in found.says("files")


def test_a_file_of_another_user(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.getuid()
    monkeypatch.setattr(client.machine_checks.os, "getuid", lambda: mine + 1)
    found = doctor()
    assert (found.bad(), found.code) == ({"files": "warning"}, 0)
    assert "belongs to another user" in found.says("files")


@pytest.mark.parametrize("name", ["site.json", "study.json", "identity.key"])
def test_a_folder_of_nobody_ends_it(doctor: Doctor, site: Path, name: str) -> None:
    (site / name).unlink()
    found = doctor()
    assert (tuple(found.all), found.bad(), found.code) == (
        ("files", "enrolment"), {"enrolment": "failed"}, 2,
    )  # fmt: skip
    lost = "a key that is lost does not come back" in found.says("enrolment")
    assert lost == (name == "identity.key")


def test_a_study_that_was_edited(doctor: Doctor, site: Path) -> None:
    text = (site / "study.json").read_text()
    (site / "study.json").write_text(text.replace('"rounds":3', '"rounds":4'))
    assert "the study that was enrolled in, found another" in doctor().says("enrolment")


def test_a_policy_that_refuses_the_study(doctor: Doctor, site: Path) -> None:
    text = (site / "policy.toml").read_text()
    (site / "policy.toml").write_text(text.replace("min_sites = 3", "min_sites = 5"))
    found = doctor()
    assert (found.bad(), found.code) == ({"policy": "failed"}, 2)
    assert "min_sites: expected >= 5" in found.says("policy")


def test_a_policy_that_the_ledger_has_not(doctor: Doctor, site: Path) -> None:
    text = (site / "policy.toml").read_text()
    (site / "policy.toml").write_text(f"cpu_threads = 1\n{text}")
    found = doctor()
    assert (found.bad(), found.code) == ({"policy": "warning"}, 0)
    assert "`fedward-site policy` shows what differs" in found.says("policy")


def test_hours_in_which_the_site_does_not_work(doctor: Doctor, site: Path) -> None:
    other = DAYS[(datetime.now().weekday() + 3) % 7]
    text = (site / "policy.toml").read_text()
    (site / "policy.toml").write_text(f'hours = ["{other} 10:00-11:00"]\n{text}')
    with Ledger(site / "ledger.db") as ledger:
        ledger.adopt(load_policy(site / "policy.toml").canonical())
    found = doctor()
    assert (found.bad(), found.code) == ({"policy": "warning"}, 0)
    assert f"outside of its hours: works again from {other} 10:00" in found.says("policy")


def test_code_of_another_version_than_was_approved(
    desk: Desk,
    enrolled: Hospital,
    doctor: Doctor,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roster = desk.books.page().roster
    assert roster is not None
    plan = desk.folder.plan(roster.roster())
    given = approval.sign(enrolled.identity, desk.folder.study, plan, roster, (), datetime.now(UTC))
    approval.keep(given, site / "approval.json")
    assert doctor().bad() == {}
    monkeypatch.setattr(client.machine_checks, "code_digest", lambda: "c0de" * 16)
    found = doctor()
    assert (found.bad(), found.code) == ({"versions": "warning"}, 0)
    assert f"{given.code[:12]} was approved -> install" in found.says("versions")


def test_packages_of_another_version_than_the_study_was_debited_under(
    desk: Desk, doctor: Doctor, site: Path
) -> None:
    debit = Event(
        study=desk.folder.study.digest(),
        dataset="records",
        unit="record",
        sampling_rate=1.0,
        noise_multiplier=9.0,
        clipping_norm=1.0,
        steps=2,
        denominator=16.0,
        mode="local",
        versions={"fedward": version("fedward"), "torch": "1.0", "opacus": version("opacus")},
    )
    with Ledger(site / "ledger.db") as ledger:
        ledger.debit(debit, "1")
    found = doctor()
    assert (found.bad(), found.code) == ({"versions": "warning"}, 0)
    assert "the study was debited under torch 1.0 ->" in found.says("versions")


def test_a_disk_that_has_too_little_room(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    study = asked_for()
    need = client.machine_checks.disk_need(study, count_parameters(study))
    for free, verdict in ((need - 1, "failed"), (need, "warning")):
        usage = shutil.disk_usage("/")._replace(free=free)
        monkeypatch.setattr(client.machine_checks.shutil, "disk_usage", lambda _, it=usage: it)
        found = doctor()
        assert (found.bad(), found.code) == ({"disk": verdict}, 2 if verdict == "failed" else 0)
        assert "make room on the disk" in found.says("disk")


def test_a_disk_that_takes_no_more(doctor: Doctor) -> None:
    """As by a quota: the system refuses to write, whatever it says is free."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, before[1]))
    try:
        found = doctor()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (found.bad(), found.code) == ({"disk": "failed"}, 2)
    assert "1,048,576 bytes cannot be written (File too large)" in found.says("disk")


def test_a_machine_with_too_little_memory(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = 5 << 20  # KiB
    monkeypatch.setattr(client.machine_checks, "memory_need", lambda *_: need << 10)
    monkeypatch.setattr(client.machine_checks, "_held", lambda: 0)
    for free, verdict in ((need - 1, "failed"), (need, "warning"), (4 * need, "ok")):
        (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {free} kB\n")
        found = doctor()
        assert found.all["memory"]["verdict"] == verdict
        assert found.code == (2 if verdict == "failed" else 0)
        assert ("close other programs" in found.says("memory")) == (verdict != "ok")
    (tmp_path / "meminfo").unlink()
    found = doctor()
    assert (found.bad(), found.code) == ({"memory": "warning"}, 0)
    assert "what is free is not known" in found.says("memory")


def test_a_small_study_needs_the_memory_of_the_program_itself(doctor: Doctor) -> None:
    said = doctor().says("memory")
    needed = re.search(r"available, (\d+) MiB needed", said)
    assert needed is not None, said
    script = "import client.station, torch; print(open('/proc/self/status').read())"
    status = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    held = int(status.split("VmHWM:")[1].split()[0]) >> 10
    assert held / 2 < int(needed[1]) < 2 * held


def data_of(site: Path, tmp_path: Path) -> Path:
    """A file in the place of the site's records, which the other tests need."""
    edit(site, data=str(tmp_path / "records.csv"))
    return tmp_path / "records.csv"


def test_records_that_are_not_there(doctor: Doctor, site: Path, tmp_path: Path) -> None:
    data = data_of(site, tmp_path)
    found = doctor()
    assert (found.bad(), found.code) == ({"records": "failed"}, 2)
    assert str(data) in found.says("records")


def test_records_that_break_the_contract(doctor: Doctor, site: Path, tmp_path: Path) -> None:
    data = data_of(site, tmp_path)
    table(data, 40, first="431.75,yes")
    found = doctor()
    assert (found.bad(), found.code) == ({"records": "warning"}, 0)
    assert "39 keep the study's data contract, 1 does not and is left out" in found.says("records")
    table(data, 1, first="431.75,yes")
    found = doctor()
    assert (found.bad(), found.code) == ({"records": "failed"}, 2)
    assert "found none; the first that does not: " in found.says("records")
    assert "records.csv the right one?" in found.says("records")
    assert "431.75" not in found.text
    data.write_text("age,other\n1,2\n")
    assert doctor().bad() == {"records": "failed"}


def test_a_disk_that_does_not_answer_is_not_waited_for(
    doctor: Doctor, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a network is lost: the records' disk, and then the folder's own."""
    answered = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(client.machine_checks, "read_records", lambda *_, **__: answered.wait(60))
        patch.setattr(client.machine_checks, "RECORDS_S", 0.5)
        found = doctor()
    answered.set()
    assert (found.bad(), found.code) == ({"records": "failed"}, 2)
    assert "no result within 0.5 s" in found.says("records")
    monkeypatch.setattr(client.doctor, "FILES_S", 0.5)
    (site / "study.json").unlink()
    os.mkfifo(site / "study.json")  # nobody writes into it
    found = doctor()
    (site / "study.json").open("w").close()
    assert (found.bad(), found.code) == ({"enrolment": "failed"}, 2)
    assert "cannot be read in time" in found.says("enrolment")


def test_masks_that_do_not_cancel(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = secagg_site.mask

    def wrong(shared: Any, values: Any, lanes: Any) -> Any:
        return mask(shared, values + 1, lanes)

    monkeypatch.setattr(secagg_site, "mask", wrong)
    found = doctor()
    assert (found.bad(), found.code) == ({"masks": "failed"}, 2)
    assert "expected the sum of three made vectors" in found.says("masks")


# --- the way to the server -----------------------------------------------------------------------


def test_a_proxy_of_another_kind(
    doctor: Doctor, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(site, host=FAR)
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    found = doctor()
    assert (found.bad(), found.code) == ({"proxy": "failed"} | not_tried_after("proxy"), 2)
    assert "look at HTTPS_PROXY" in found.says("proxy")


def test_a_proxy_that_is_away_is_named(
    doctor: Doctor, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(site, host=FAR)
    port = free_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret-word@127.0.0.1:{port}")
    found = doctor()
    assert (found.bad(), found.code) == ({"port": "failed"} | not_tried_after("port"), 5)
    assert f"127.0.0.1:{port} is asked to connect to {FAR}" in found.says("proxy")
    assert f"127.0.0.1:{port} cannot be reached (Connection refused)" in found.says("port")
    assert "secret-word" not in found.text


def test_a_proxy_that_does_not_let_through(
    doctor: Doctor, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(site, host=FAR)
    with answering(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n") as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        found = doctor()
    bad = {"certificate": "failed"} | not_tried_after("certificate")
    assert (found.bad(), found.code) == (bad, 5)
    assert f"cannot be reached by proxy 127.0.0.1:{port}" in found.says("certificate")
    assert "403" in found.says("certificate")


def test_a_name_that_is_not_known(
    doctor: Doctor, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(site, host=FAR)

    def unknown(*_: object, **__: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(client.line_checks.socket, "getaddrinfo", unknown)
    found = doctor()
    assert (found.bad(), found.code) == ({"name": "failed"} | not_tried_after("name"), 5)
    assert f"{FAR} is not known here -> check the name" in found.says("name")


def test_a_name_server_that_does_not_answer_is_not_waited_for(
    doctor: Doctor, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(site, host=FAR)
    answered = threading.Event()
    monkeypatch.setattr(
        client.line_checks.socket, "getaddrinfo", lambda *_, **__: answered.wait(60)
    )
    monkeypatch.setattr(client.line_checks, "NAME_S", 0.5)
    found = doctor()
    answered.set()
    assert (found.bad(), found.code) == ({"name": "failed"} | not_tried_after("name"), 5)
    assert "no result within 0.5 s" in found.says("name")


def test_a_port_that_nobody_listens_on(doctor: Doctor, site: Path) -> None:
    port = free_port()
    edit(site, port=port)
    found = doctor()
    assert (found.bad(), found.code) == ({"port": "failed"} | not_tried_after("port"), 5)
    assert f"firewall must let TCP out to 127.0.0.1:{port}" in found.says("port")


def test_something_that_never_says_a_word_is_not_waited_for(
    doctor: Doctor, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.channel, "CONNECT_S", 0.5)
    with answering(None) as port:
        edit(site, port=port)
        found = doctor()
    bad = {"certificate": "failed"} | not_tried_after("certificate")
    assert (found.bad(), found.code) == (bad, 5)
    assert "no answer in time" in found.says("certificate")


def test_something_that_speaks_no_tls(doctor: Doctor, site: Path) -> None:
    with answering(b"SSH-2.0-x\r\n") as port:
        edit(site, port=port)
        found = doctor()
    bad = {"certificate": "failed"} | not_tried_after("certificate")
    assert (found.bad(), found.code) == (bad, 5)
    assert "no TLS 1.3 spoken there" in found.says("certificate")


def untrusted(found: Found) -> str:
    """Something else than the coordinator answers: to wait for it would be of no use, so 2."""
    bad = {"certificate": "failed"} | not_tried_after("certificate")
    assert (found.bad(), found.code) == (bad, 2)
    return found.says("certificate")


def test_a_server_under_another_authority(doctor: Doctor, site: Path, tmp_path: Path) -> None:
    other = issue(tmp_path / "other", ["127.0.0.1"]).authority
    shutil.copy(other, site / "authority.pem")
    assert "a proxy that opens TLS must leave this host alone" in untrusted(doctor())


def test_a_server_of_another_name(doctor: Doctor, site: Path) -> None:
    edit(site, host="localhost")
    assert "is for another name -> use the name in the invitation" in untrusted(doctor())


def test_a_certificate_that_has_expired(
    desk: Desk, doctor: Doctor, site: Path, tmp_path: Path
) -> None:
    with expired(desk, site, tmp_path):
        assert "the coordinator renews it by a restart" in untrusted(doctor())


def test_an_authority_that_is_damaged(doctor: Doctor, site: Path) -> None:
    (site / "authority.pem").write_text("none")
    assert "the pinned authority" in untrusted(doctor())
    (site / "authority.pem").unlink()
    found = doctor()
    assert (found.bad()["proxy"], found.code) == ("failed", 2)
    assert "authority.pem: cannot be read" in found.says("proxy")


@pytest.mark.parametrize(
    ("ahead_s", "verdict", "words"),
    [
        (600, "failed", "600 s ahead of the server's"),
        (-600, "failed", "600 s behind the server's"),
        (-100, "warning", "100 s behind the server's"),
    ],
)
def test_a_clock_that_is_off(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, ahead_s: int, verdict: str, words: str
) -> None:
    true = time.time
    # The Date header counts whole seconds; half of one keeps the figure from being rounded twice.
    monkeypatch.setattr(client.channel, "clock", lambda: int(true()) + ahead_s)
    found = doctor()
    assert (found.bad(), found.code) == ({"clock": verdict}, 2 if verdict == "failed" else 0)
    told = int(found.all["clock"]["text"].split(" s ")[0].split()[-1])
    assert abs(told - abs(ahead_s)) <= 3  # the header is made once a second, on a busy machine
    assert words.split(" s ")[1] in found.says("clock")
    assert "NTP" in found.says("clock")


def test_a_server_that_does_not_tell_its_time(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.channel, "_skew", lambda *_: None)
    found = doctor()
    assert (found.bad(), found.code) == ({"clock": "warning"}, 0)
    assert "does not tell its time -> compare" in found.says("clock")


def test_every_check_says_what_to_do_where_an_error_does_not() -> None:
    for name in CHECKS:
        assert failed(name, DataError("without a hint")).hint


def test_a_site_that_was_revoked(desk: Desk, program: Program, site: Path) -> None:
    graz = site.parent / "graz"
    shutil.copytree(desk.folder.path.parent / "graz", graz)
    desk.revoke("graz")
    ended = program("start", "--dir", graz, "--approve", "ab" * 32, "--confirmed", "all")
    assert refused(ended, 3).startswith("refused by the coordinator: the site was revoked")
    found = Found(program("doctor", "--dir", graz, "--json"))
    assert (found.bad(), found.code) == ({"echo": "failed"} | not_tried_after("echo"), 2)
    assert "refuses this site's letters: the site was revoked" in found.says("echo")


def test_an_echo_under_another_key(doctor: Doctor, site: Path) -> None:
    edit(site, server="ab" * 32)
    found = doctor()
    assert (found.bad(), found.code) == ({"echo": "failed"} | not_tried_after("echo"), 2)
    assert "expected a letter under the pinned key" in found.says("echo")


def test_an_echo_of_other_numbers(
    desk: Desk, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = desk.office._hear

    def turned(*letter: Any) -> Section:
        answer = hear(*letter)
        assert isinstance(answer, letters.Echoed)
        return answer.model_copy(update={"values": answer.values[::-1]})

    monkeypatch.setattr(desk.office, "_hear", turned)
    found = doctor()
    assert (found.bad(), found.code) == ({"echo": "failed"} | not_tried_after("echo"), 2)
    assert "expected the made numbers back, got others" in found.says("echo")


def test_a_coordinator_of_another_version(
    desk: Desk, doctor: Doctor, begin: Callable[[], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before an approval, too: else it shows as another plan, after the steward has approved."""
    ours = doctor().all["code"]["text"]
    assert f"the coordinator runs the same: fedward {version('fedward')}, code" in ours
    monkeypatch.setattr("server.office.code_digest", lambda: "c0de" * 16)
    monkeypatch.setattr("server.office.version", lambda _: "0.7.3")
    found = doctor()
    assert (found.bad(), found.code) == ({"code": "failed"}, 2)
    assert "runs fedward 0.7.3, code c0dec0dec0de; here is" in found.says("code")
    assert "install fedward 0.7.3" in found.says("code")
    warned(begin, "code")


def test_a_coordinator_that_is_busy(desk: Desk, doctor: Doctor, site: Path, tmp_path: Path) -> None:
    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await respond(send, 503, b"")

    with another_server(tmp_path, desk.folder.certificates(), {letters.PATH: busy}) as port:
        edit(site, port=port)
        found = doctor()
    assert (found.bad(), found.code) == ({"echo": "failed"} | not_tried_after("echo"), 5)
    assert "got HTTP status 503" in found.says("echo")


# --- what start makes of it ----------------------------------------------------------------------


def test_start_begins_nothing_on_a_machine_that_cannot_work(
    program: Program, site: Path, tmp_path: Path
) -> None:
    data_of(site, tmp_path)
    ended = program("start", "--dir", site, "--approve", "ab" * 32, "--confirmed", "all")
    assert (ended.code, ended.out) == (2, "")
    assert "found records failed; nothing was begun" in ended.err
    assert not (site / "site.log").exists()


@pytest.fixture
def begin(program: Program, site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Ended]:
    """Run start up to where the work begins."""

    def begun(*_: object, **__: object) -> None:
        raise PrivacyError("the work has begun")

    monkeypatch.setattr(station, "work", begun)
    return lambda: program("start", "--dir", site, "--approve", "ab" * 32, "--confirmed", "all")


def warned(begin: Callable[[], Ended], name: str) -> None:
    """Start has told of it as of something that may pass, and has begun to work."""
    ended = begin()
    assert "error: the work has begun" in ended.err, ended
    assert f"warning  {name}" in ended.err
    assert "to do:" in ended.err


def test_start_waits_for_a_clock_to_be_set(
    begin: Callable[[], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.channel, "clock", lambda: time.time() + 600)
    warned(begin, "clock")


def test_start_waits_for_memory(
    begin: Callable[[], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.machine_checks, "memory_need", lambda *_: 1 << 50)
    warned(begin, "memory")


def test_start_waits_for_a_certificate_to_be_renewed(
    desk: Desk, begin: Callable[[], Ended], site: Path, tmp_path: Path
) -> None:
    with expired(desk, site, tmp_path):
        warned(begin, "certificate")


def test_start_does_not_wait_for_another_server(
    begin: Callable[[], Ended], site: Path, tmp_path: Path
) -> None:
    other = issue(tmp_path / "other", ["127.0.0.1"]).authority
    shutil.copy(other, site / "authority.pem")
    assert "found certificate failed; nothing was begun" in begin().err


def test_start_waits_for_a_server_that_is_away(begin: Callable[[], Ended], site: Path) -> None:
    edit(site, port=free_port())
    warned(begin, "port")


def test_start_waits_for_a_disk_that_does_not_answer(
    begin: Callable[[], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(client.machine_checks, "_disk", lambda *_: answered.wait(60))
    monkeypatch.setattr(client.machine_checks, "DISK_S", 0.2)
    warned(begin, "disk")
    answered.set()


def test_start_reads_the_records_however_long_it_takes(
    begin: Callable[[], Ended], doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = client.machine_checks.read_records

    def slow(*given: Any, **more: Any) -> Any:
        time.sleep(0.6)
        return read(*given, **more)

    monkeypatch.setattr(client.machine_checks, "read_records", slow)
    monkeypatch.setattr(client.machine_checks, "RECORDS_S", 0.2)
    assert begin().err == "fedward-site: error: the work has begun\n"
    assert doctor().bad() == {"records": "failed"}


# --- who answers instead -------------------------------------------------------------------------


@contextmanager
def answering(words: bytes | None) -> Iterator[int]:
    """Something that takes connections and, unless it keeps silent, says the same to each."""
    with socket.create_server(("127.0.0.1", 0)) as there, ExitStack() as lines:

        def accept() -> None:
            while True:
                try:
                    line, _ = there.accept()
                except OSError:
                    return
                lines.callback(line.close)
                if words is not None:
                    line.recv(1)
                    line.sendall(words)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield there.getsockname()[1]
        there.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@contextmanager
def expired(desk: Desk, site: Path, folder: Path) -> Iterator[None]:
    """The coordinator's door with a certificate of last year; the site pins its authority."""
    long_ago = datetime.now(UTC) - timedelta(days=500)
    old = issue(folder / "tls", ["127.0.0.1"], long_ago)
    shutil.copy(old.authority, site / "authority.pem")
    with another_server(folder, old, desk.apps) as port:
        edit(site, port=port)
        yield


@contextmanager
def another_server(
    folder: Path, certificates: Certificates, apps: Mapping[str, ASGIApp]
) -> Iterator[int]:
    """A second coordinator's door, on a port of its own."""
    hub = Hub(None, folder / "flower")
    try:
        with serve(hub, Door("127.0.0.1", 0, certificates), 1 << 20, apps) as port:
            yield port
    finally:
        hub.close()
