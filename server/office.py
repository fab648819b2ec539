"""The coordinator's side of letters: each is read, checked against the books, answered and signed.

It starts no round and knows no message of the protocol. What it answers hangs on the books alone;
the reasons of a refusal are a closed list.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from starlette.types import Receive, Scope, Send

from privacy.errors import DataError, PrivacyError, ProtocolError
from privacy.heads import Heads, SignedHead, countersign, read_head
from privacy.keys import Identity
from privacy.roster import Member, is_signing_key
from server.books import Books, Enrolment, Page, TurnedAwayError
from server.superlink import normal
from shared_models import letters
from shared_models.contract import Section
from shared_models.fingerprint import fingerprint
from shared_models.plan import code_digest
from shared_models.roster_file import RosterFile, roster_bytes, sign_roster
from shared_models.study import Study

AUTHORITY_PATH = "/fedward/authority"
_LOG = logging.getLogger("fedward.server")
Letter = letters.Enrol | letters.Ask | letters.Approve | letters.Leave | letters.Echo


class Office:
    """The ASGI app under `shared_models.letters.PATH`; the gateway has read the body."""

    def __init__(
        self,
        study: Study,
        first_model: bytes,
        identity: Identity,
        books: Books,
        heads: Path,
        admit: Callable[[bytes], int],
        settle: Callable[[], Page],
        hear: Callable[[str], None],
    ) -> None:
        """Answer for one study.

        Args:
            study: as it was given.
            first_model: hash of the state before the first round.
            identity: the coordinator's, which signs the answers.
            books: of the study.
            heads: the file in which ends of sites' logs are kept.
            admit: takes a site's key (PEM) into the fleet, and returns its number there.
            settle: puts out of the fleet who is out by the books, and returns them.
            hear: is told of each member that has written.
        """
        self._study, self._first_model, self._identity = study, first_model, identity
        self._digest, self._text = study.digest(), study.canonical()
        self._books, self._heads, self._admit, self._settle = books, heads, admit, settle
        self._heard = hear
        self._told: dict[str, str] = {}  # what was logged last of a site, so that it is once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: 200 and a letter, or 400 when it holds none."""
        del scope
        body = (await receive()).get("body", b"")
        answer = await asyncio.to_thread(self.answer, body)
        await respond(send, 400 if answer is None else 200, answer or b"")

    def answer(self, data: bytes) -> bytes | None:
        """Return the signed answer to a letter; None to what is none."""
        try:
            letter = letters.read_question(data)
            answer = self._answer(letter, data)
        except ProtocolError:
            return None
        return letters.write(self._identity, answer)

    def _answer(self, letter: Letter, data: bytes) -> Section:
        question = letters.digest(data)
        try:
            if letter.study != self._digest:
                raise TurnedAwayError("study")
            if isinstance(letter, letters.Enrol):
                return self._enrol(letter, data, question)
            return self._hear(letter, data, question)
        except TurnedAwayError as refusal:
            self._tell(letter.site, f"{letter.kind} was refused: {letters.REASONS[refusal.reason]}")
            return letters.Refused(question=question, reason=refusal.reason)
        except DataError as error:
            _LOG.error("%s of %s could not be written: %s", letter.kind, letter.site, error)
            return letters.Refused(question=question, reason="full")

    def _enrol(self, letter: letters.Enrol, data: bytes, question: str) -> letters.Enrolled:
        public, pem = bytes.fromhex(letter.public), letter.node.encode()
        secret = bytes.fromhex(letter.secret)
        try:
            letters.check(public, data)
            normal(pem)
        except (ProtocolError, DataError):
            raise TurnedAwayError("token") from None
        if not is_signing_key(public):
            raise TurnedAwayError("token")
        node = 0
        if letter.look:
            self._books.look(letter.site, secret, public, pem)
        else:
            self._settle()  # a key that was revoked a moment ago is none to be admitted
            try:
                node, new = self._books.enrol(
                    letter.site, secret, public, pem, lambda: self._admit(pem)
                )
            except PrivacyError:  # the fleet's: a key that was revoked never comes back
                raise TurnedAwayError("revoked") from None
            if new:
                _LOG.info("%s enrolled: %s", letter.site, fingerprint(public))
        return letters.Enrolled(
            question=question, node=node, study=self._text, first_model=self._first_model.hex()
        )

    def _hear(
        self,
        letter: letters.Ask | letters.Approve | letters.Leave | letters.Echo,
        data: bytes,
        question: str,
    ) -> Section:
        site = self._site(letter.site, data)
        if isinstance(letter, letters.Echo):
            return letters.Echoed(
                question=question,
                values=letter.values,
                version=version("fedward"),
                code=code_digest(),
            )
        if isinstance(letter, letters.Approve):
            if self._books.approve(site.site, letter.plan, letter.confirmed, data):
                _LOG.info("%s approved plan %s", site.site, letter.plan)
        elif isinstance(letter, letters.Leave):
            self._books.leave(site.site, self._sign, data)
            self._settle()
            _LOG.warning("%s left the study", site.site)
        elif letter.head is not None:
            self._keep(site, letter.head)
        page = self._books.page()
        return letters.News(
            question=question,
            state=page.state,
            sites=page.news(),
            roster=None if page.roster is None else roster_bytes(page.roster).decode(),
            heads=self._heads_for(site, page),
        )

    def _sign(self, version: int, sites: Sequence[Member]) -> RosterFile:
        return sign_roster(self._study.name, version, sites, self._identity)

    def _site(self, name: str, data: bytes) -> Enrolment:
        """Return who wrote; a stranger does not learn which names there are."""
        for one in self._books.page().sites:
            if one.site == name:
                try:
                    letters.check(one.public, data)
                except ProtocolError:
                    break
                if not one.stays:
                    raise TurnedAwayError("revoked")
                self._heard(name)
                return one
        raise TurnedAwayError("unknown")

    def _keep(self, site: Enrolment, text: str) -> None:
        """Keep and countersign the end of a site's log; one that does not follow is only told."""
        head = read_head(bytes.fromhex(text))
        if {head.owner, head.signer} != {site.public}:
            raise ProtocolError("expected the end of the own log, got another's; it was not kept")
        ours = countersign(self._identity, site.public, head.head)
        with Heads(self._heads) as heads:
            if heads.latest(site.public).rows > head.head.rows:
                self._tell(site.site, "its log is shorter than it was; the later end is kept")
                return
            try:
                for one in (head, ours):
                    heads.keep(one, {site.public, self._identity.public})
            except PrivacyError as error:
                self._tell(site.site, f"the end of its log was not kept: {error}")

    def _heads_for(self, site: Enrolment, page: Page) -> tuple[str, ...]:
        """Return what the coordinator signed of a site's log, and what its peers say of theirs."""
        sites = {one.public for one in page.sites}
        with Heads(self._heads) as heads:
            return tuple(
                one.encode().hex()
                for one in heads.all()
                if one.owner in sites and _concerns(one, site.public, self._identity.public)
            )

    def _tell(self, site: str, words: str) -> None:
        """Log a refusal once, and only of names that were invited: strangers fill no disk."""
        page = self._books.page()
        names = (*page.invited, *(one.site for one in page.sites))
        if site in names and self._told.get(site) != words:
            self._told[site] = words
            _LOG.warning("%s: %s", site, words)


class Authority:
    """The ASGI app that shows the certificate which sites pin by its hash."""

    def __init__(self, certificate: bytes) -> None:
        """Show this one, PEM."""
        self._certificate = certificate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        del scope, receive
        await respond(send, 200, self._certificate)


async def respond(send: Send, status: int, body: bytes) -> None:
    """Send a whole answer."""
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _concerns(one: SignedHead, site: bytes, server: bytes) -> bool:
    if one.owner == site:
        return one.signer == server
    return one.signer == one.owner
