"""What a site asks the coordinator beside the rounds: a newer roster, and the ends of the logs.

It answers no message of a round. What it finds that the site must not work under ends the work.
"""

import logging
import threading
from collections.abc import Callable

from client import folder as names
from client.consent import hold
from client.journal import Journal
from client.membership import Member
from client.post import Post
from privacy.errors import AbsentError, FedwardError, PrivacyError
from privacy.heads import Head, Heads, countersign, read_head
from privacy.keys import Identity
from shared_models.letters import News
from shared_models.roster_file import RosterFile, read_roster

ASK_S = 15.0
_LOG = logging.getLogger("fedward.site")


class Correspondence:
    """Asks for news while a study runs, in a thread of its own."""

    def __init__(
        self,
        member: Member,
        identity: Identity,
        post: Post,
        roster: RosterFile,
        end: Callable[[FedwardError | None], None],
    ) -> None:
        """Ask nothing yet.

        Args:
            member: the site.
            identity: signs the end of its log.
            post: its line, this thread's alone.
            roster: that it works under.
            end: is called once when the site must stop, with the reason.
        """
        self._member, self._identity, self._post = member, identity, post
        self._roster, self._end = roster, end
        self._over = threading.Event()
        self._state = ""
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
        self._thread.join(ASK_S)

    def _work(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            pause = ASK_S
            try:
                self._ask()
            except AbsentError:
                pass  # the rounds' line tells when the coordinator is away
            except FedwardError as error:
                if not self._over.is_set():
                    self._end(error)
                return

    def _ask(self) -> None:
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
        """Keep what others signed of logs; a longer end of the own one is the end of the work."""
        server = self._member.server
        pinned = {server, *(bytes.fromhex(one.public) for one in self._roster.sites)}
        with Heads(self._member.folder / names.LOGS) as heads:
            for text in news.heads:
                one = read_head(bytes.fromhex(text))
                if one.owner == self._identity.public and one.head.rows > told.rows:
                    raise PrivacyError(
                        f"{self._member.folder / names.JOURNAL}: expected the log of which the "
                        f"coordinator has signed {one.head.rows} rows, found one of {told.rows}: "
                        "the folder is an older copy, or its log was cut; the site takes part no "
                        "longer",
                        "docs/operations.md says what to do about an older copy",
                    )
                if one.owner in pinned:
                    heads.keep(one, pinned)
