"""The questions that a data steward is asked at a terminal, and what each answer means."""

import io
import sys
from pathlib import Path

import click
import pytest
from rich.console import Console

from client.consent import packet_of, plan_of
from client.packet import Packet
from client.policy import load_policy
from client.steward import Asked
from privacy.errors import PrivacyError
from privacy.ledger import Ledger
from shared_models.fingerprint import fingerprint
from tests.client.desk import NAMES, asked_for, join, open_desk


@pytest.fixture(scope="module")
def packet(tmp_path_factory: pytest.TempPathFactory) -> Packet:
    folder = tmp_path_factory.mktemp("steward")
    with open_desk(folder / "coordinator", asked_for()) as desk:
        site = join(desk, folder)[0]
        roster = desk.seal().roster
        assert roster is not None
    parameters = desk.folder.settings.parameters
    with Ledger(site.folder / "ledger.db") as ledger:
        policy = load_policy(site.folder / "policy.toml")
        return packet_of(
            site.member, policy, roster, plan_of(site.member, roster, parameters), ledger
        )


class _Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


class Terminal:
    """A steward who types, and what the screen shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, typed: str, there: bool = True) -> None:
        monkeypatch.setattr(sys, "stdin", _Keyboard(typed) if there else io.StringIO(typed))
        self.screen = io.StringIO()
        self.steward = Asked(Console(file=self.screen, force_terminal=True, width=80))

    def decide(self, packet: Packet, *changes: str) -> set[str]:
        return self.steward.decide(packet, changes, NAMES[1:])


def test_each_peer_is_asked_for_with_its_six_words(
    packet: Packet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(monkeypatch, "y\nn\ny\ny\n")
    assert terminal.decide(packet) == {"ulm", "graz"}
    asked = capsys.readouterr().err
    for hospital in packet.hospitals[1:]:
        assert f"Compared with {hospital.name}: {hospital.words}?" in asked
    assert f"Approve plan {packet.digest}?" in asked
    assert packet.digest in terminal.screen.getvalue()


@pytest.mark.parametrize("typed", ["y\ny\ny\nn\n", "y\ny\ny\n\n"])
def test_no_is_no_and_so_is_nothing(
    packet: Packet, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    with pytest.raises(PrivacyError, match="not approved; nothing was sent"):
        Terminal(monkeypatch, typed).decide(packet)


def test_a_terminal_that_hangs_up_approves_nothing(
    packet: Packet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(click.exceptions.Abort):
        Terminal(monkeypatch, "y\ny\ny\n").decide(packet)


def test_where_nobody_can_be_asked_the_command_is_told(
    packet: Packet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PrivacyError, match="nobody to ask") as found:
        Terminal(monkeypatch, "y\ny\ny\ny\n", there=False).decide(packet)
    assert f"--approve {packet.digest} --confirmed all" in found.value.hint


def test_what_has_changed_since_is_said_first(
    packet: Packet, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch, "y\ny\ny\ny\n")
    terminal.decide(packet, "the code")
    assert "changed since: the code" in " ".join(terminal.screen.getvalue().split())


def test_the_six_words_are_those_of_the_keys(packet: Packet, tmp_path: Path) -> None:
    assert len({hospital.words for hospital in packet.hospitals}) == len(NAMES)
    assert packet.server not in {hospital.words for hospital in packet.hospitals}
    assert len(fingerprint(bytes(32)).split()) == 6
