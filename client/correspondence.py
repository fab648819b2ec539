"""What a site asks the coordinator beside the rounds: a newer roster, and the ends of the logs.

It answers no message of a round. What it finds that the site must not work under ends the work.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from client import folder as names
from client.consent import hold
from client.journal import Journal
from client.membership import Member, check_stays
from client.post import Post
from privacy.errors import AbsentError, FedwardError, PrivacyError
from privacy.heads import Head, Heads, SignedHead, countersign, read_head
from privacy.keys import Identity
from shared_models.letters import News
from shared_models.roster_file import RosterFile, read_roster

ASK_S = 15.0
TICK_S = 1.0  # how soon a `leave` beside it ends the work
_LOG = logging.getLogger("fedward.site")


class Correspondence:
    """Asks for news while a study runs, in a thread of its own."""

    def __init__(
        self,
        member: Member,
        identity: Identity,
        post: Post,
        roster: RosterFile,
        heard: Callable[[], None],
        end: Callable[[FedwardError], None],
    ) -> None:
        """Ask nothing yet.

        Args:
            member: the site.
            identity: signs the end of its log.
            post: its line, this thread's alone.
            roster: that it works under.
            heard: is called after each answer.
            end: is called once when the site must stop, with the reason.
        """
        self._member, self._identity, self._post = member, identity, post
        self._roster, self._heard, self._end = roster, heard, end
        self._over = threading.Event()
        self._turn = threading.Lock()  # one letter at a time
        self._odd: set[str] = set()  # peers whose log was told of
        self._waiting: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._work, name="fedward-letters", daemon=True)

    @property
    def roster(self) -> RosterFile:
        """The latest roster that was taken."""
        return self._roster

    @property
    def waiting(self) -> tuple[str, ...]:
        """Which sites have not approved yet, as the coordinator last said."""
        return self._waiting

    def __enter__(self) -> "Correspondence":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._post.end()
        self._thread.join(ASK_S)

    def tell_end(self) -> None:
        """Tell the coordinator, while it is there, how long the log is now; or leave it untold."""
        with contextlib.suppress(FedwardError):
            self._ask()

    def _work(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, min(due - time.monotonic(), TICK_S))):
            try:
                check_stays(self._member)
                if time.monotonic() >= due:
                    due = time.monotonic() + ASK_S
                    self._ask()
                    self._heard()
            except AbsentError:
                pass  # the rounds' line tells when the coordinator is away
            except FedwardError as error:
                if not self._over.is_set():
                    self._end(error)
                return

    def _ask(self) -> None:
        with self._turn:
            self._ask_alone()

    def _ask_alone(self) -> None:
        with Journal(self._member.folder / names.JOURNAL) as journal:
            head = journal.head()
        own = self._identity.public
        signed = countersign(self._identity, own, head) if head.rows else None
        news = self._post.ask(signed)
        self._waiting = tuple(one.name for one in news.sites if one.state == "enrolled")
        if news.roster is not None:
            newer = read_roster(news.roster.encode())
            if newer.version != self._roster.version:
                self._roster = hold(self._member, newer)
                out = [one.name for one in self._roster.sites if one.revoked]
                _LOG.info("roster version %d: without %s", newer.version, ", ".join(out))
        self._keep(news, head)

    def _keep(self, news: News, told: Head) -> None:
        """Keep the end of the own log as the coordinator signed it, and each peer's own word.

        Others' words do not count: whoever signs an end that is not, could stop a site with it.
        """
        own, server = self._identity.public, self._member.server
        peers = {bytes.fromhex(one.public): one.name for one in self._roster.sites}
        with Heads(self._member.folder / names.LOGS) as heads:
            for text in news.heads:
                one = read_head(bytes.fromhex(text))
                if (one.owner, one.signer) == (own, server):
                    self._check_own(one.head, told)
                    heads.keep(one, {server})
                elif one.owner == one.signer != own and one.owner in peers:
                    self._keep_peers(heads, one, peers[one.owner])

    def _check_own(self, signed: Head, told: Head) -> None:
        if signed.rows > told.rows:
            raise PrivacyError(
                f"{self._member.folder / names.JOURNAL}: expected the log of which the coordinator "
                f"has signed {signed.rows} rows, found one of {told.rows}: the folder is an older "
                "copy, or its log was cut; the site takes part no longer",
                "docs/operations.md says what to do about an older copy",
            )

    def _keep_peers(self, heads: Heads, one: SignedHead, name: str) -> None:
        """Keep an end; a log that was written anew is told of, and is no reason to stop here."""
        try:
            heads.keep(one, {one.owner})
        except PrivacyError as error:
            if name not in self._odd:
                self._odd.add(name)
                _LOG.warning("the log of %s is not what it was: %s", name, error)
