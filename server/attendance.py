"""Which sites are there, and the exchange of the rounds with those: nobody waits for who is away.

It knows no message but the first of a run, before which it waits until enough sites are there. Who
is out by the books is put out of the fleet here.
"""

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

from privacy.errors import ProtocolError
from server.books import Books, Page
from server.hub import CODES, Hub
from server.rounds import Exchange
from server.standing import HERE_S

SETTLED_S = 60.0  # so long after a start everybody is waited for
FIRST = "hello"  # of a run: who is away when it is sent takes part in the next one
WRITTEN_S = 10.0  # how old what the books say of a site's last sign may be
_TICK_S = 0.2
_LOG = logging.getLogger("fedward.server")

HINTS = {
    1: "its log has the details",
    2: "its records' file or folder is not as it was enrolled, or its disk is full",
    3: "its steward sees the reason in its log; `fedward-site budget` shows what is left",
    4: "most often it was started again; it takes part in the next run",
    5: "it lost its connection",
}


class Attendance:
    """The sites of one study before one hub."""

    def __init__(self, hub: Hub, books: Books) -> None:
        """Put out of the fleet who is out by the books."""
        self._hub, self._books = hub, books
        self._expelled: set[int] = set()
        self._written: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._began = time.monotonic()
        self.settle()

    def settle(self) -> Page:
        """Follow the books, which another program may have changed; return them.

        Raises:
            DataError: the books or Flower's state cannot be read or written.
        """
        for node in self._books.expelled():
            if node not in self._expelled:
                with suppress(ValueError):  # it was put out before this start
                    self._hub.expel(node)
                self._expelled.add(node)
        page = self._books.page()
        seen = self.seen(page)
        due = {
            site: when
            for site, when in seen.items()
            if when - self._written.get(site, 0.0) >= WRITTEN_S
        }
        if due:
            self._books.saw(due)
            self._written.update(due)
        return page

    def hear(self, site: str) -> None:
        """Note that a site has just written a letter; from any thread."""
        self._heard[site] = time.time()

    def seen(self, page: Page) -> dict[str, float]:
        """Return when each site's last letter or request came, as a Unix time; since this start."""
        seen = self._at_work(page)
        for site, when in tuple(self._heard.items()):
            seen[site] = max(when, seen.get(site, 0.0))
        return seen

    def _at_work(self, page: Page) -> dict[str, float]:
        seen = self._hub.seen()
        return {one.site: seen[one.node] for one in page.sites if one.node in seen}

    def here(self, page: Page) -> frozenset[str]:
        """Return the sites that take part and take questions of a round: a letter is no sign."""
        least = time.time() - HERE_S
        seen = self._at_work(page)
        return frozenset(site for site in page.staying if seen.get(site, 0.0) >= least)

    def exchange(self, page: Page, quorum: int) -> Exchange:
        """Return the exchange of the rounds.

        Args:
            page: of the sealed roster.
            quorum: the fewest sites whose sum may be opened.

        Raises, while it is iterated:
            ProtocolError: fewer take part than that, for good.
            DataError: as `Hub.exchange`.
        """
        ask = self._hub.exchange({one.site: one.node for one in page.sites}, _report)
        self._began = time.monotonic()

        def exchange(
            kind: str, outgoing: Mapping[str, bytes], deadline_s: float
        ) -> Iterator[tuple[str, bytes]]:
            there: Collection[str] = self._books.page().staying
            if kind == FIRST:
                there = self._gather(quorum, deadline_s)
            yield from ask(kind, _Those(outgoing, there), deadline_s)

        return exchange

    def _gather(self, quorum: int, deadline_s: float) -> frozenset[str]:
        """Wait until enough sites are there, and shortly after a start until all are."""
        end = time.monotonic() + deadline_s
        while True:
            page = self._books.page()
            check_quorum(page, quorum)
            here, now = self.here(page), time.monotonic()
            all_here = len(here) == len(page.staying) or now - self._began > SETTLED_S
            if now >= end or (len(here) >= quorum and all_here):
                return here
            time.sleep(_TICK_S)


def check_quorum(page: Page, quorum: int) -> None:
    """Check that a sum can still be opened.

    Raises:
        ProtocolError: too many sites were revoked, or have left.
    """
    if len(page.staying) < quorum:
        raise ProtocolError(
            f"expected {quorum} sites to take part, {len(page.staying)} are left; nothing was "
            "opened"
        )


class _Those(Mapping[str, bytes]):
    """The messages to some of the sites, still made when they are sent."""

    def __init__(self, outgoing: Mapping[str, bytes], sites: Collection[str]) -> None:
        self._outgoing = outgoing
        self._sites = [site for site in outgoing if site in sites]

    def __getitem__(self, site: str) -> bytes:
        return self._outgoing[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _report(site: str, kind: str, code: int) -> None:
    _LOG.warning("%s refused %s %s (hint: %s)", site, kind, CODES[code], HINTS[code])
