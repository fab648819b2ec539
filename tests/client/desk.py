"""A coordinator's desk for tests of a site: real letters over TLS, real books, and no rounds.

It keeps what it was sent, so that a test can look for what must not have left. It asserts nothing.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.enrolment import Enrolment, enrol
from client.membership import Member
from client.post import Post, post_of
from privacy import identity as identities
from privacy.keys import Identity
from server import desk
from server.books import Books, Page
from server.folder import BOOKS, Folder
from server.founding import found
from server.gateway import serve
from server.hub import Hub
from server.listener import Door
from server.office import AUTHORITY_PATH, Authority, Office
from shared_models import letters
from shared_models.invitation import Invitation, read_token
from shared_models.study import Study
from tests.server.conftest import free_port, study_of

NAMES = ("bonn", "ulm", "jena", "graz")


def asked_for(**changes: object) -> Study:
    """The small study of the coordinator's tests; noised figures, so that any policy allows it."""
    return study_of(
        **{
            "privacy__epsilon": 4.0,
            "privacy__noise_multiplier": None,
            "evaluation": {"every": 3},
            **changes,
        }
    )


def table(path: Path, records: int = 40, first: str = "50.5,yes") -> Path:
    """A file of records that keep the contract, one of them as given."""
    rows = [f"{20 + number % 60},{'yes' if number % 3 else 'no'}" for number in range(records - 1)]
    path.write_text("\n".join(["age,ill", first, *rows]) + "\n")
    return path


class Desk:
    """Open while `open_desk` lasts."""

    def __init__(self, folder: Folder, hub: Hub) -> None:
        self.folder, self.books = folder, Books(folder / BOOKS)
        self.asked: list[tuple[str, bytes]] = []
        self.name = "bonn"  # who is invited, unless another is named
        self.office = Office(
            folder.study,
            folder.first_model,
            folder.identity(),
            self.books,
            folder / BOOKS,
            hub.admit,
            self.books.page,
            lambda _: None,
        )
        authority = Authority(folder.certificates().authority.read_bytes())
        self.apps: dict[str, ASGIApp] = {
            letters.PATH: self._kept(letters.PATH, self.office),
            AUTHORITY_PATH: self._kept(AUTHORITY_PATH, authority),
        }

    def invite(self, name: str = "") -> str:
        return desk.invite(self.folder, self.books, name or self.name, 1)[0]

    def invitation(self, **changes: object) -> Invitation:
        return replace(read_token(self.invite()), **changes)  # type: ignore[arg-type]

    def seal(self) -> Page:
        return desk.seal(self.folder, self.books)

    def revoke(self, name: str) -> None:
        desk.revoke(self.folder, self.books, name)

    def state(self, name: str = "") -> str:
        wanted = name or self.name
        return next(one.state for one in self.books.page().news() if one.name == wanted)

    @property
    def sent(self) -> bytes:
        """Every body that came, one after the other."""
        return b"\n".join(body for _, body in self.asked)

    def _kept(self, path: str, app: ASGIApp) -> ASGIApp:
        async def kept(scope: Scope, receive: Receive, send: Send) -> None:
            async def listening() -> Message:
                message = await receive()
                self.asked.append((path, message.get("body", b"")))
                return message

            if path == AUTHORITY_PATH:
                self.asked.append((path, b""))
            await app(scope, listening, send)

        return kept


@contextmanager
def open_desk(folder: Path, study: Study) -> Iterator[Desk]:
    made = found(study, folder, "127.0.0.1", free_port())[0]
    with ExitStack() as stack:
        hub = Hub(None, folder / "flower")
        stack.callback(hub.close)
        one = Desk(made, hub)
        stack.callback(one.books.close)
        door = Door("127.0.0.1", made.settings.port, made.certificates())
        stack.enter_context(serve(hub, door, 1 << 20, one.apps))
        yield one


class Hospital:
    """A site that has enrolled, by its own program's functions."""

    def __init__(self, found: Enrolment) -> None:
        self.member: Member = found.member
        self.folder = found.member.folder
        self.identity: Identity = identities.load(self.folder / "identity.key")
        self.name = found.member.membership.site

    def post(self) -> Post:
        return post_of(self.member, self.identity)


def join(one: Desk, folder: Path, *names: str, records: int = 40) -> list[Hospital]:
    """Enrol sites, each in a folder of its own."""
    found = []
    for name in names or NAMES:
        data = table(folder / f"{name}.csv", records)
        found.append(Hospital(enrol(one.invite(name), data, folder / name, lambda _: None)))
    return found
