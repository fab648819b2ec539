"""The hub: nodes, runs that end, replays, and a database that fails. No sockets."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy.exc import OperationalError

from client.fleet import NodeKey, create_key
from privacy.errors import DataError, PrivacyError
from server import hub as module
from server.hub import Hub
from server.superlink import RefusedError


@pytest.fixture
def key(tmp_path: Path) -> NodeKey:
    return create_key(tmp_path / "key" / "node.key")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that Flower has made: that takes a second or two."""
    path = tmp_path_factory.mktemp("empty") / "state.db"
    Hub(path, path.parent).close()
    return path


@pytest.fixture
def database(empty: Path, tmp_path: Path) -> Path:
    return shutil.copy(empty, tmp_path / "state.db")


@pytest.fixture(params=["memory", "sqlite"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    path = request.getfixturevalue("database") if request.param == "sqlite" else None
    made = Hub(path, tmp_path)
    yield made
    made.close()


def signed(key: NodeKey) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in key.headers().items()]


def test_a_key_has_one_node_whatever_its_pem_looks_like(hub: Hub, key: NodeKey) -> None:
    node = hub.admit(key.public)
    other_look = key.public.replace(b"\n", b"\r\n")
    assert (hub.admit(key.public), hub.admit(other_look)) == (node, node)
    assert hub.authenticate(signed(key)) == node


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no key",
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    ],
)
def test_another_kind_of_key_is_refused(hub: Hub, pem: bytes) -> None:
    with pytest.raises(DataError, match="expected a site's transport key"):
        hub.admit(pem)


def test_a_revoked_key_never_comes_back(hub: Hub, key: NodeKey) -> None:
    hub.expel(hub.admit(key.public))
    with pytest.raises(RefusedError) as caught:
        hub.authenticate(signed(key))
    assert caught.value.status == 401
    with pytest.raises(PrivacyError, match="revoked"):
        hub.admit(key.public)


def test_nodes_and_revocations_outlive_a_restart(
    database: Path, tmp_path: Path, key: NodeKey
) -> None:
    stays = create_key(tmp_path / "key" / "other.key")
    first = Hub(database, tmp_path)
    first.expel(first.admit(key.public))
    node = first.admit(stays.public)
    first.close()
    second = Hub(database, tmp_path)
    assert second.authenticate(signed(stays)) == second.admit(stays.public) == node
    with pytest.raises(PrivacyError, match="revoked"):
        second.admit(key.public)
    second.close()


def test_a_run_that_is_over_is_replaced(hub: Hub, key: NodeKey) -> None:
    node = hub.admit(key.public)
    first = hub._link.send("echo", [node], 5.0)
    hub._link._state.finish_task(first[0].task, "failed", "")
    second = hub._link.send("echo", [node], 5.0)
    assert second[0].run != first[0].run


def test_what_a_killed_process_left_is_cleared(
    database: Path, tmp_path: Path, key: NodeKey
) -> None:
    first = Hub(database, tmp_path)
    node = first.admit(key.public)
    first._link.send("echo", [node], 500.0)  # and it is never heard of again
    second = Hub(database, tmp_path)
    second._link.send("echo", [node], 5.0)
    assert second._link._state.num_message_ins() == 1
    first._link._closed.set()
    second.close()


def test_a_site_without_a_node_is_not_waited_for(hub: Hub) -> None:
    assert list(hub.exchange({"ash": 7})("echo", {"ash": b"", "elm": b""}, 60.0)) == []


def test_an_exchange_that_is_left_early_leaves_nothing(hub: Hub, key: NodeKey) -> None:
    node = hub.admit(key.public)
    exchange = hub.exchange({"ash": node})("echo", {"ash": b"abc"}, 60.0)
    thread = threading.Thread(target=lambda: list(exchange))
    thread.start()
    while not hub.pending(node):
        time.sleep(0.01)
    hub.expel(node)  # ends it
    thread.join(10)
    assert not thread.is_alive()
    assert hub._questions == {}
    assert hub._link._state.num_message_ins() == 0


def test_a_site_in_a_long_study_of_quick_rounds_is_not_slowed(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock) / 100)
    for number in range(60_000):  # a hundred a second for ten minutes
        hub._mark(1, b"%d" % number)


def test_a_site_that_asks_too_often_is_slowed(
    hub: Hub, key: NodeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STAMPS_MAX", 3)
    hub.admit(key.public)
    for _ in range(3):
        hub.authenticate(signed(key))
    with pytest.raises(RefusedError) as caught:
        hub.authenticate(signed(key))
    assert caught.value.status == 429
    # What can no longer be sent again is forgotten.
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e9)
    hub.authenticate(signed(key))


def test_a_database_that_cannot_be_written_is_one_clear_error(
    database: Path, tmp_path: Path, key: NodeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(database, tmp_path)
    node = hub.admit(key.public)

    def full(message: object) -> None:
        raise OperationalError("INSERT a secret", {}, Exception("database or disk is full"))

    monkeypatch.setattr(hub._link._state, "store_message_ins", full)
    with pytest.raises(DataError) as caught:
        list(hub.exchange({"ash": node})("echo", {"ash": b""}, 1.0))
    assert str(caught.value) == (
        f"{database}: cannot be read or written (database or disk is full); nothing was sent"
    )
    hub.close()


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match=r"state\.db"):
        Hub(tmp_path / "state.db", tmp_path)
