"""How a site becomes a member of a study: what can fail fails first, then a letter is sent.

Keys are made here and stay here. The server is believed once it shows what the token pins; what it
asks for is held against the site's own policy and records, which it learns nothing of.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import TypeVar

from rich.console import Console

from client import fleet
from client import folder as names
from client.channel import Address
from client.data.faults import LeftOut
from client.data.holdout import SPLIT_KEY_BYTES
from client.data.read import read_records
from client.data.records import Records
from client.journal import Journal
from client.membership import Member, Membership, check_room, claimed, keep, put_aside
from client.policy import Policy, adopt, check, check_delta, load_policy
from client.post import Post, about, fetch_authority
from client.proposal import proposal
from client.screen import say
from client.split import Counts, count
from privacy import identity as identities
from privacy import keyfile
from privacy.errors import DataError, PrivacyError, StudyError
from privacy.ledger import Ledger
from shared_models.deployable import check_deployable
from shared_models.durable import write_durably
from shared_models.fingerprint import fingerprint
from shared_models.invitation import Invitation, read_token
from shared_models.letters import Enrolled
from shared_models.study import Study, read_canonical

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Enrolment:
    """A new member, and what is for the site's own screen alone.

    Attributes:
        member: as it is kept.
        fingerprint: six words of the site's own key.
        counts: of the records.
        left_out: the records that break the contract.
        proposed: epsilon of the ceiling that was written here for the steward to decide; None when
            the policy was the steward's already.
    """

    member: Member
    fingerprint: str
    counts: Counts
    left_out: LeftOut
    proposed: float | None

    def document(self) -> dict[str, object]:
        """Return it for the site's own machines."""
        return {
            "study": self.member.study.name,
            "study_digest": self.member.membership.study,
            "site": self.member.membership.site,
            "fingerprint": self.fingerprint,
            "columns": list(self.member.study.data.columns),
            "records": asdict(self.counts),
            "left_out": asdict(self.left_out),
            "proposed_epsilon": self.proposed,
        }


def show_enrolment(found: Enrolment, console: Console) -> None:
    """Print what is for this screen alone, and what comes next."""
    counts, study = found.counts, found.member.study
    patients = "" if counts.patients is None else f" of {counts.patients:,} patients"
    where = f"--dir {quote(str(found.member.folder))} " if found.member.folder != Path() else ""
    lines = [
        f"enrolled in {study.name} as {found.member.membership.site}",
        f"{counts.records:,} records{patients} keep the contract: {counts.train:,} to train on, "
        f"{counts.held:,} held out. These figures stay here.",
        *_left_out(found.left_out),
        f"columns that are read: {', '.join(study.data.columns)}",
        f"this site's fingerprint: {found.fingerprint}",
        "Read the six words to the other hospitals over the telephone, and write down theirs.",
    ]
    if found.proposed is not None:
        lines.append(
            f"A policy was written, with a ceiling of epsilon {found.proposed:g}: read and edit "
            f"{found.member.folder / names.POLICY} before you approve anything."
        )
    lines.append(f"next: fedward-site start {where}".rstrip())
    for line in lines:
        say(console, line)


def _left_out(left_out: LeftOut) -> list[str]:
    if not left_out.count:
        return []
    more = left_out.count - len(left_out.places)
    return [
        f"{left_out.count:,} records break the contract and are left out:"
        if left_out.count > 1
        else "1 record breaks the contract and is left out:",
        *(f"  {place}" for place in left_out.places),
        *([f"  and {more:,} more"] if more else []),
    ]


def enrol(
    token: str,
    data: Path,
    folder: Path,
    tell: Tell,
    *,
    records: Callable[[], Records] | None = None,
) -> Enrolment:
    """Become a member of the study that a token invites to.

    Asked again after any failure, also with the same token, it goes on with the same keys.

    Args:
        token: as the coordinator's program printed it.
        data: a file or folder of records.
        folder: of the site; made with mode 0700.
        tell: is told what is being done.
        records: reads the records in the place of ``data``; simulations only.

    Raises:
        DataError: the token, the folder or the records; or the coordinator refuses the token.
        PrivacyError: the site's policy or its number of records refuses the study.
        StudyError: the study is not the token's, or cannot be used.
        AbsentError: the coordinator did not answer.
        ProtocolError: what answered is not the coordinator of the token.
    """
    invitation = read_token(token)
    about(invitation.site, invitation.study.hex())
    _check_expiry(invitation)
    if not data.exists():
        raise DataError(f"{data}: expected the records, found nothing; nothing was sent")
    _make(folder)
    with claimed(folder):
        older = check_room(folder, invitation.study.hex(), invitation.site)
        identity = _kept(folder / names.IDENTITY, identities.load, identities.create)
        node = _kept(folder / names.NODE, fleet.load_key, fleet.create_key)
        tell(f"asking {invitation.host}:{invitation.port} for its certificate and the study")
        authority = fetch_authority(invitation)
        address = Address(invitation.host, invitation.port, authority)
        study_digest = invitation.study.hex()
        post = Post(
            address,
            invitation.server,
            identity,
            invitation.site,
            study_digest,
            folder / names.JOURNAL,
        )
        with closing(post):
            study = _study(post.look(invitation.secret, node.public), invitation)
            policy, proposed = _policy(folder, study)
            check(policy, study)
            tell(f"holding {data} against the study's data contract")
            key = _split_key(folder, older)
            counts, left_out = _records(study, data, records, key)
            check_delta(policy, study, counts.units)
            with Ledger(folder / names.LEDGER) as ledger:
                adopt(policy, ledger)
            with Journal(folder / names.JOURNAL) as journal:
                journal.note(
                    "enrol",
                    study=study_digest,
                    site=invitation.site,
                    server=invitation.server.hex(),
                    policy=policy.digest(),
                )
            answer = post.enrol(invitation.secret, node.public)
            _study(answer, invitation)
        membership = Membership(
            study=study_digest,
            site=invitation.site,
            host=invitation.host,
            port=invitation.port,
            server=invitation.server.hex(),
            node=answer.node,
            first_model=answer.first_model,
            data=str(data.resolve()),
            fraction=counts.fraction,
        )
        # Not before: whoever is refused keeps what there was.
        if older:
            put_aside(folder)
        _keep_split(folder, key)
        keep(folder, membership, study, authority)
    member = Member(folder, membership, study)
    return Enrolment(member, fingerprint(identity.public), counts, left_out, proposed)


def split_key(folder: Path) -> bytes:
    """Return the key that decides which records are held out.

    Raises:
        DataError: it cannot be read, or is none.
    """
    path = folder / names.SPLIT
    text = keyfile.read(path) or b""
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != SPLIT_KEY_BYTES:
        raise DataError(
            f"{path}: expected {SPLIT_KEY_BYTES} bytes in hexadecimal, found something else; "
            "no record was read",
            "restore the file from your own copy: with another key, records change sides",
        )
    return key


def _check_expiry(invitation: Invitation) -> None:
    if not time.time() < invitation.expires:
        ended = time.strftime("%Y-%m-%d %H:%M", time.gmtime(invitation.expires))
        raise DataError(
            f"expected a token that is still good, got one that ended at {ended} UTC; "
            "nothing was sent",
            "ask the coordinator for a new token",
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror})") from error


_Key = TypeVar("_Key")


def _kept(path: Path, load: Callable[[Path], _Key], create: Callable[[Path], _Key]) -> _Key:
    """Return the key of an earlier try, or a new one."""
    if path.exists() and not path.stat().st_size:
        path.unlink()  # that try was killed before it wrote anything
    return load(path) if path.exists() else create(path)


def _split_key(folder: Path, older: bool) -> bytes:
    """Return the split key of an earlier try, or a new one where there is none or it is older."""
    if older or not (folder / names.SPLIT).exists():
        return secrets.token_bytes(SPLIT_KEY_BYTES)
    return split_key(folder)


def _keep_split(folder: Path, key: bytes) -> None:
    if not (folder / names.SPLIT).exists():
        keyfile.keep(folder / names.SPLIT, key.hex().encode() + b"\n")


def _study(answer: Enrolled, invitation: Invitation) -> Study:
    """Return the study, once it is the one that the token pins and may run between hospitals."""
    study = read_canonical(answer.study)
    if study.digest() != invitation.study.hex():
        raise StudyError(
            f"expected the study that the token names, got another, {study.name}; nothing was sent",
            "ask the coordinator for a new token",
        )
    check_deployable(study)
    return study


def _policy(folder: Path, study: Study) -> tuple[Policy, float | None]:
    """Return the policy, and the ceiling of one that was written here."""
    path = folder / names.POLICY
    if path.exists():
        return load_policy(path), None
    if (folder / names.LEDGER).exists():
        raise PrivacyError(
            f"{path}: expected the policy of this site, which its ledger knows, found none; "
            "nothing was sent",
            "`fedward-site policy` prints the one in force; write it there again",
        )
    try:
        write_durably(path, proposal(study).encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    policy = load_policy(path)
    return policy, policy.ceiling.epsilon if policy.ceiling else None


def _records(
    study: Study, data: Path, given: Callable[[], Records] | None, key: bytes
) -> tuple[Counts, LeftOut]:
    records = read_records(study, data, leave_out=True) if given is None else given()
    if not len(records):
        raise DataError(
            f"{data}: expected records that keep the study's data contract, found none of "
            f"{records.left_out.count}; nothing was sent",
            records.left_out.places[0] if records.left_out.places else "",
        )
    return count(study, records, key), records.left_out
