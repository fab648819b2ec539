"""What a site knows of the study it is enrolled in: where the server is, and what it asked for.

It asks nobody. One folder holds one study at a time, under one ledger and one journal for all.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from client import folder as names
from client.channel import Address
from privacy.errors import DataError, PrivacyError
from shared_models.contract import Section
from shared_models.deployable import check_deployable
from shared_models.durable import sync_folder, write_durably
from shared_models.letters import Digest
from shared_models.roster_file import Key, Name
from shared_models.study import Study, read_canonical

_ENROL = "`fedward-site enrol TOKEN --data PATH` comes first"
_AGAIN = "restore the file from your own copy, or ask for a new token"
_OF_A_STUDY = (
    names.AUTHORITY,
    names.SPLIT,
    names.ROSTER,
    names.APPROVAL,
    names.PROTOCOL,
    names.NOTICE,
    names.LEFT,
    names.MODEL,
)


class Membership(Section):
    """What was agreed when the site enrolled.

    Attributes:
        study: its digest.
        site: the name under which the site takes part.
        host: of the server, and its port.
        server: its Ed25519 key.
        node: the number that it gave this site's requests.
        first_model: SHA-256 of the first state.
        data: where the records are: an absolute path.
        fraction: part of the training records that is used, so that they stay within the study's
            records_max: fixed here and never from a later count.
    """

    study: Digest
    site: Name
    host: str
    port: int
    server: Key
    node: int
    first_model: Digest
    data: str
    fraction: float = Field(gt=0, le=1)


@dataclass(frozen=True)
class Member:
    """An enrolled site: its folder, its membership and the study, which belong together."""

    folder: Path
    membership: Membership
    study: Study

    @property
    def server(self) -> bytes:
        """The server's Ed25519 key, 32 bytes."""
        return bytes.fromhex(self.membership.server)

    def address(self) -> Address:
        """Return where the server is, and how to know it; DataError when that was lost."""
        path = self.folder / names.AUTHORITY
        try:
            return Address(self.membership.host, self.membership.port, path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})", _AGAIN) from error

    def has(self, name: str) -> bool:
        """Say whether a file of the folder is there."""
        return (self.folder / name).exists()


def load(folder: Path) -> Member:
    """Return the member whose folder this is.

    Raises:
        DataError: nobody enrolled here, or a file is damaged.
        PrivacyError: the study is none between hospitals.
    """
    if not (folder / names.MEMBERSHIP).exists():
        raise DataError(f"{folder}: expected the folder of an enrolled site, found none", _ENROL)
    path = folder / names.MEMBERSHIP
    try:
        membership = Membership.model_validate_json(path.read_bytes())
        path = folder / names.STUDY
        study = read_canonical(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", _AGAIN) from error
    except ValidationError as error:
        raise DataError(f"{path}: expected a membership, found another file", _AGAIN) from error
    if study.digest() != membership.study:
        raise DataError(f"{path}: expected the study that was enrolled in, found another", _AGAIN)
    check_deployable(study)
    return Member(folder, membership, study)


def check_stays(member: Member) -> None:
    """Refuse to go on in a study that the site has left; PrivacyError says so."""
    if member.has(names.LEFT):
        raise PrivacyError(
            f"this site has left {member.study.name}; nothing was sent",
            "`fedward-site enrol` takes part in another study",
        )


def keep(folder: Path, membership: Membership, study: Study, authority: bytes) -> None:
    """Write the files of a new membership; `load` finds all of them or none.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        write_durably(folder / names.AUTHORITY, authority)
        write_durably(folder / names.STUDY, study.canonical().encode())
        write_durably(folder / names.MEMBERSHIP, membership.model_dump_json(indent=1).encode())
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error


def check_room(folder: Path, invited: str, site: str) -> bool:
    """Say whether the study of a folder must be put aside before it is enrolled.

    Args:
        folder: perhaps of an enrolled site; nothing in it is changed.
        invited: digest of the study that invites.
        site: the name that is invited.

    Raises:
        DataError: a study that was approved is not over.
    """
    if not (folder / names.MEMBERSHIP).exists():
        return False
    before = load(folder)
    over = before.has(names.NOTICE) or before.has(names.LEFT)
    if before.has(names.APPROVAL) and not over:
        raise DataError(
            f"{folder}: this site takes part in {before.study.name} as "
            f"{before.membership.site}; nothing was sent",
            "a folder is of one study at a time: wait for its end, or `fedward-site leave`",
        )
    return over or (before.membership.study, before.membership.site) != (invited, site)


def put_aside(folder: Path) -> None:
    """Move what is of the study that a folder is enrolled in to a folder below it.

    Raises:
        DataError: the folder cannot be written.
    """
    before = load(folder)
    about = before.membership
    aside = folder / "studies" / f"{before.study.name}-{about.study[:12]}-{about.site}"
    try:
        aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        moved = [name for stem in _OF_A_STUDY for name in _with_side_files(folder, stem)]
        moved += [path.name for path in folder.glob("control-*.safetensors")]
        # A crash leaves the rest to the next try, which needs the study to read the membership.
        write_durably(aside / names.STUDY, before.study.canonical().encode())
        for name in [*moved, names.MEMBERSHIP]:
            (folder / name).replace(aside / name)
        sync_folder(folder)
    except OSError as error:
        raise DataError(
            f"{aside}: the study before cannot be put there ({error.strerror})"
        ) from error


def _with_side_files(folder: Path, name: str) -> list[str]:
    """Return a file's name and those that SQLite keeps beside it, where they are."""
    return [one for one in (name, f"{name}-wal", f"{name}-shm") if (folder / one).exists()]


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Work in a folder alone.

    Raises:
        DataError: another program works there, or it cannot be written.
    """
    try:
        lock = os.open(folder / names.LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{folder}: another fedward-site is at work there; nothing was done",
                "wait until it ends",
            ) from None
        yield
    finally:
        os.close(lock)
