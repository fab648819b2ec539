"""The coordinator's folder: the names of its files, what init settled there, one program at a time.

It decides nothing about a study and opens no connection.
"""

import fcntl
import ipaddress
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from privacy import identity
from privacy.errors import DataError, StudyError
from privacy.keys import Identity
from privacy.roster import Plan, Roster
from server.certificates import Certificates, adopt, issue
from shared_models.contract import Section
from shared_models.letters import Digest
from shared_models.plan import make_plan
from shared_models.strategies import state_hash
from shared_models.study import Study, load_study

STUDY = "study.toml"  # every key that its author wrote
SETTINGS = "coordinator.json"
KEY = "server.key"  # Ed25519: who the coordinator is
TLS = "tls"  # authority and certificate, when they are the study's own
FIRST = "first.safetensors"  # the state before the first round
BOOKS = "books.db"  # invitations, sites, rosters, approvals
HUB = "flower.db"  # Flower's nodes and runs
HOME = "flower"  # where Flower may put what it likes; it puts nothing
ROUNDS = "rounds.db"  # what the protocol must not forget
CHECKPOINT = "checkpoint"
METRICS = "metrics.csv"
LOG = "coordinator.log"  # words for people
EXPORT = "export"  # what is taken home
LOCK = "lock"  # held while `start` works here
_RESTORE = "restore it from your copy"
_TRIES = 3
_INIT = "`fedward-server init STUDY.toml --dir DIR --host NAME` comes first"


class Adopted(Section):
    """Where the certificates lie that the coordinator's network gave."""

    authority: str
    chain: str
    key: str


class Settings(Section):
    """What `init` settled.

    Attributes:
        study: its digest.
        host: the name or address by which sites reach the coordinator, and the port.
        parameters: P of the study's network.
        first_model: SHA-256 of the state before the first round.
        certificates: of the network; None for those of the study's own authority.
    """

    study: Digest
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    parameters: int = Field(ge=1)
    first_model: Digest
    certificates: Adopted | None = None


@dataclass(frozen=True)
class Folder:
    """A folder that init made, and what it holds from then on."""

    path: Path
    settings: Settings
    study: Study

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def identity(self) -> Identity:
        """Return the coordinator's key; DataError as `privacy.identity.load`."""
        return identity.load(self / KEY)

    def first(self) -> bytes:
        """Return the state before the first round; DataError when it was lost or changed."""
        path = self / FIRST
        try:
            state = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})", _RESTORE) from error
        if state_hash(state) != self.first_model:
            raise DataError(f"{path}: expected the state that init wrote, found another", _RESTORE)
        return state

    @property
    def first_model(self) -> bytes:
        """The hash of the first state, which the plan names."""
        return bytes.fromhex(self.settings.first_model)

    def plan(self, roster: Roster) -> Plan:
        """Return the plan of the study with this roster; StudyError when they do not fit."""
        return make_plan(self.study, roster, self.settings.parameters, self.first_model)

    def certificates(self) -> Certificates:
        """Return the server's certificates, renewed when they are the study's own.

        Raises:
            DataError: as `server.certificates`.
        """
        host, given = self.settings.host, self.settings.certificates
        if given is None:
            return issue(self / TLS, [host])
        return adopt(Path(given.authority), Path(given.chain), Path(given.key), [host])


def open_folder(path: Path) -> Folder:
    """Return the folder in ``path``.

    Raises:
        DataError: init made none there, or a file is damaged.
        StudyError: the study file was changed since.
    """
    try:
        settings = Settings.model_validate_json((path / SETTINGS).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: expected a coordinator's folder, found none", _INIT) from None
    except OSError as error:
        raise DataError(f"{path / SETTINGS}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise DataError(
            f"{path / SETTINGS}: expected what init wrote, found another file",
            _RESTORE,
        ) from error
    study = load_study(path / STUDY)
    if study.digest() != settings.study:
        raise StudyError(
            f"{path / STUDY}: expected the study that the folder was made for, found a changed one",
            "restore the file, or begin another study in another folder",
        )
    return Folder(path, settings, study)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Serve from a folder alone; the other commands do not ask.

    Raises:
        DataError: another `start` works there, or it cannot be written.
    """
    try:
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        if not any(_locked(lock) for _ in range(_TRIES)):
            raise DataError(
                f"{folder}: another fedward-server start works there; nothing was done",
                "`fedward-server status` shows what it does",
            )
        yield
    finally:
        os.close(lock)


def is_claimed(folder: Path) -> bool:
    """Say whether `start` works there just now."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _locked(lock: int) -> bool:
    """Try to lock; a `status` that looks just now is over in a moment."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        time.sleep(0.1)
        return False
    return True


def is_loopback(host: str) -> bool:
    """Say whether nobody but this machine is reached by a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
