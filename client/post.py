"""A site's letters to the server, and their answers: what is said outside of the rounds.

It decides nothing; one call is one request, which ends in time. A letter that tells something is in
the site's log before it leaves; a question for news is not.
"""

import hashlib
import secrets
import ssl
from collections.abc import Collection
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from client import folder as names
from client.channel import Address, Channel
from client.journal import Journal
from client.membership import Member
from privacy.errors import AbsentError, DataError, FedwardError, PrivacyError, ProtocolError
from privacy.heads import SignedHead
from privacy.keys import Identity
from shared_models import letters
from shared_models.contract import Section
from shared_models.invitation import Invitation

AUTHORITY_PATH = "/fedward/authority"
AUTHORITY_BYTES_MAX = 1 << 16
LETTER_S = 30.0

Letter = letters.Enrol | letters.Ask | letters.Approve | letters.Leave
_REFUSALS: dict[letters.Reason, tuple[type[FedwardError], str]] = {
    "token": (DataError, "ask the coordinator for a new token"),
    "expired": (DataError, "ask the coordinator for a new token"),
    "sealed": (DataError, "the coordinator would have to begin another study"),
    "study": (DataError, "ask the coordinator for a new token"),
    "plan": (PrivacyError, "most often one of the two runs another version: `fedward-site doctor`"),
    "unknown": (DataError, "ask the coordinator for a new token"),
    "revoked": (PrivacyError, "what was summed before stays in the model"),
    "full": (AbsentError, "the coordinator has to make room on its disk"),
}


class Post:
    """One site's line for letters; used by one thread."""

    def __init__(
        self,
        address: Address,
        server: bytes,
        identity: Identity,
        site: str,
        study: str,
        journal: Path,
    ) -> None:
        """Send nothing yet.

        Args:
            address: of the server.
            server: its Ed25519 key, which signs the answers.
            identity: of this site, which signs the questions.
            site: its name.
            study: digest, in hexadecimal.
            journal: the file of the site's log.

        Raises:
            DataError: as `client.channel.Channel`.
        """
        self._channel = Channel(address, letters.ANSWER_BYTES_MAX)
        self._server, self._identity = server, identity
        self._site, self._study = site, study
        self._journal = journal
        self._nonce = _nonce()  # of what is told: sent again, it is the same letter
        self._noted: set[str] = set()

    def look(self, secret: bytes, node: bytes) -> letters.Enrolled:
        """Ask for the study of an invitation, which is not used up. Errors: as `ask`."""
        return self._enrol(secret, node, look=True)

    def enrol(self, secret: bytes, node: bytes) -> letters.Enrolled:
        """Become a member; asked again with the same keys, the answer is the same.

        Args:
            secret: of the invitation.
            node: public key of the site's requests, PEM.

        Errors: as `ask`.
        """
        return self._enrol(secret, node, look=False)

    def ask(self, head: SignedHead | None = None) -> letters.News:
        """Ask what is new, and tell the end of the own journal.

        Raises:
            AbsentError: the server did not answer, or cannot work now: try again.
            DataError, PrivacyError: it says no, for one reason of a closed list.
            ProtocolError: the answer is not the server's, or another question's.
        """
        told = None if head is None else head.encode().hex()
        answer = self._send(
            letters.Ask(study=self._study, site=self._site, nonce=_nonce(), head=told)
        )
        if not isinstance(answer, letters.News):
            raise _another(answer)
        return answer

    def approve(self, plan: str, confirmed: Collection[str]) -> None:
        """Tell which plan was approved, and which peers were confirmed. Errors: as `ask`."""
        self._send(
            letters.Approve(
                study=self._study,
                site=self._site,
                nonce=self._nonce,
                plan=plan,
                confirmed=tuple(confirmed),
            )
        )

    def leave(self) -> None:
        """Tell that the site takes part no longer; who is known as gone has told it before.

        Errors: as `ask`.
        """
        letter = letters.Leave(study=self._study, site=self._site, nonce=self._nonce)
        self._send(letter, known=("revoked",))

    def end(self) -> None:
        """Let the letter that another thread waits for fail now, and all later ones."""
        self._channel.end()

    def close(self) -> None:
        """Close the line."""
        self._channel.close()

    def _enrol(self, secret: bytes, node: bytes, look: bool) -> letters.Enrolled:
        answer = self._send(
            letters.Enrol(
                study=self._study,
                site=self._site,
                nonce=self._nonce,
                secret=secret.hex(),
                public=self._identity.public.hex(),
                node=node.decode("ascii"),
                look=look,
            )
        )
        if not isinstance(answer, letters.Enrolled):
            raise _another(answer)
        return answer

    def _send(self, letter: Letter, known: tuple[letters.Reason, ...] = ()) -> Section:
        """Return the answer; a refusal is raised, but for reasons that change nothing."""
        question = letters.write(self._identity, letter)
        if not isinstance(letter, letters.Ask):
            self._note(letter, question)
        reply = self._channel.post(letters.PATH, dict, question, LETTER_S)
        if reply.status != 200:
            raise AbsentError(f"expected an answer to a letter, got HTTP status {reply.status}")
        answer = letters.read_answer(reply.body, self._server, question)
        if isinstance(answer, letters.Refused) and answer.reason not in known:
            kind, hint = _REFUSALS[answer.reason]
            raise kind(f"refused by the coordinator: {letters.REASONS[answer.reason]}", hint)
        return answer

    def _note(self, letter: letters.Enrol | letters.Approve | letters.Leave, data: bytes) -> None:
        digest = letters.digest(data)
        if digest not in self._noted:
            look = isinstance(letter, letters.Enrol) and letter.look
            with Journal(self._journal) as journal:
                journal.note(
                    "letter",
                    letter="look" if look else letter.kind,
                    bytes=len(data),
                    sha256=digest,
                )
            self._noted.add(digest)


def post_of(member: Member, identity: Identity) -> Post:
    """Return a member's line; DataError as `Post`."""
    about = member.membership
    return Post(
        member.address(),
        member.server,
        identity,
        about.site,
        about.study,
        member.folder / names.JOURNAL,
    )


def fetch_authority(invitation: Invitation) -> bytes:
    """Return the PEM of the authority that a token names, once its SHA-256 was compared.

    Nothing is known yet by which the server could be trusted, so nothing is, and nothing is told:
    whatever comes back counts only if it is the certificate that the token pins.

    Raises:
        AbsentError: there was no answer.
        DataError: another certificate came back, or none.
    """
    unknown = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
    unknown.minimum_version = ssl.TLSVersion.TLSv1_3
    address = Address(invitation.host, invitation.port, b"")
    channel = Channel(address, AUTHORITY_BYTES_MAX, unknown)
    try:
        reply = channel.post(AUTHORITY_PATH, dict, b"", LETTER_S)
    finally:
        channel.close()
    if reply.status != 200:
        raise AbsentError(
            f"{invitation.host}:{invitation.port}: expected the coordinator's certificate, got "
            f"HTTP status {reply.status}; nothing was sent",
            "is that the coordinator's address, and is it started?",
        )
    try:
        certificate = x509.load_pem_x509_certificate(reply.body)
    except ValueError:
        certificate = None
    found = None if certificate is None else certificate.public_bytes(Encoding.DER)
    if certificate is None or hashlib.sha256(found or b"").digest() != invitation.authority:
        raise DataError(
            f"{invitation.host}:{invitation.port}: expected the authority that the token names, "
            "got another; nothing was sent",
            "somebody stands between, or the coordinator was made anew: ask it, by another channel",
        )
    return certificate.public_bytes(Encoding.PEM)


def about(site: str, study: str) -> None:
    """Check that a name and a digest can stand in a letter.

    Raises:
        DataError: one cannot; a token that says so was not made by the coordinator's program.
    """
    try:
        letters.Ask(site=site, study=study, nonce="0" * 32)
    except ValidationError:
        raise DataError(
            "expected a token that names a site, got another; nothing was sent",
            "ask the coordinator for a new token",
        ) from None


def _nonce() -> str:
    return secrets.token_hex(16)


def _another(answer: object) -> ProtocolError:
    return ProtocolError(f"expected another answer than {type(answer).__name__.lower()}")
