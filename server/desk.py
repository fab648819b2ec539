"""What the commands of another shell write into the books: invitations, the roster, revocations.

`start` follows within a second when it runs, and at its start when it does not. It prints nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from privacy.errors import DataError, PrivacyError
from privacy.keys import Identity
from privacy.roster import SITES_MIN, Member
from server.books import Books, Page, Sign
from server.certificates import fingerprint
from server.folder import Folder
from shared_models.invitation import SECRET_BYTES, Invitation, write_token
from shared_models.roster_file import Name, RosterFile, sign_roster

DAY_S = 86400
_NAME: TypeAdapter[str] = TypeAdapter(Name)


def invite(folder: Folder, books: Books, site: str, days: int) -> tuple[str, int]:
    """Return a token for a site, and the Unix time at which it expires.

    Raises:
        DataError: the name is none, is a site's already, or is too long beside the host's; or the
            roster is sealed. Nobody was invited.
    """
    check_name(site)
    expires = int(time.time()) + days * DAY_S
    settings = folder.settings
    invitation = Invitation(
        host=settings.host,
        port=settings.port,
        authority=bytes.fromhex(fingerprint(folder.certificates().authority)),
        server=folder.identity().public,
        study=bytes.fromhex(settings.study),
        site=site,
        expires=expires,
        secret=bytes(SECRET_BYTES),
    )
    write_token(invitation)  # before a secret is given out for a token that would be too long
    return write_token(replace(invitation, secret=books.invite(site, expires))), expires


def check_name(site: str) -> None:
    """Refuse a site's name that could be no folder and no line of a roster; DataError says so."""
    try:
        _NAME.validate_python(site)
    except ValidationError:
        raise DataError(
            f"{site!r}: expected a name of 1 to 64 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit; nobody was invited"
        ) from None


def seal(folder: Folder, books: Books) -> Page:
    """Close the roster, which makes the plan; return the books with both.

    Raises:
        PrivacyError: fewer sites have enrolled than a sum of this study needs.
        DataError: it is sealed already.
        StudyError: the study's thresholds do not fit so many sites. Nothing was sealed.
    """
    server = folder.identity()
    least = max(SITES_MIN, folder.study.aggregation.min_sites)

    def sign(version: int, sites: Sequence[Member]) -> RosterFile:
        if len(sites) < least:
            raise PrivacyError(
                f"expected at least {least} sites that have enrolled, got {len(sites)}; the roster "
                "stays open",
                "`fedward-server status` shows who is missing",
            )
        return _signer(folder, server)(version, sites)

    return books.seal(sign, lambda roster: folder.plan(roster.roster()).digest.hex())


def revoke(folder: Folder, books: Books, site: str) -> bool:
    """Shut a site out, or withdraw its invitation; False when it was out already.

    Errors: as `Books.revoke`.
    """
    return books.revoke(site, _signer(folder, folder.identity()))


def _signer(folder: Folder, server: Identity) -> Sign:
    return lambda version, sites: sign_roster(folder.study.name, version, sites, server)
