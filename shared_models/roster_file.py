"""The roster as a file: who takes part in a study, under which keys, and who was revoked since.

Canonical JSON, signed by the server's identity, one byte string for one roster. It decides nothing
about a plan: version 1 is approved with the plan, and a later version may only revoke. Source:
section 1 of the protocol.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from privacy.errors import DataError, PrivacyError, ProtocolError
from privacy.keys import SIGNATURE_BYTES, Identity, verify
from privacy.roster import (
    KEY_BYTES,
    SITES_MAX,
    SITES_MIN,
    Member,
    Roster,
    is_signing_key,
    threshold,
)
from shared_models.contract import Section

ROSTER_BYTES_MAX = 1 << 15  # a hundred sites with the longest names take 19 KB
_HEADER = b"fedward roster"  # no message of FSA1 begins so: a signature of one is none of the other

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Key = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * KEY_BYTES}}}$")]


class RosterSite(Section):
    """One site: its index in every message, its name, its Ed25519 key in hexadecimal."""

    index: int
    name: Name
    public: Key
    revoked: bool


class RosterFile(Section):
    """One version of a study's roster. Whatever has this type is complete, checked and signed."""

    study: Name
    version: int = Field(ge=1, le=2**31 - 1)
    server: Key
    sites: tuple[RosterSite, ...] = Field(min_length=SITES_MIN, max_length=SITES_MAX)
    signature: str = Field(pattern=rf"^[0-9a-f]{{{2 * SIGNATURE_BYTES}}}$")

    @model_validator(mode="after")
    def _sites_fit(self) -> Self:
        if [site.index for site in self.sites] != list(range(len(self.sites))):
            raise ValueError("sites: expected the indices 0, 1, 2 and so on, found others")
        # Names become folders, and some file systems do not tell "Bonn" from "bonn".
        if len({site.name.lower() for site in self.sites}) < len(self.sites):
            raise ValueError("sites: expected a name of its own for each site, found one twice")
        publics = [self.server, *(site.public for site in self.sites)]
        if len(set(publics)) < len(publics):
            raise ValueError("sites: expected a key of its own for each site, found one twice")
        owners = ["server", *(site.name for site in self.sites)]
        for owner, public in zip(owners, publics, strict=True):
            if not is_signing_key(bytes.fromhex(public)):
                raise ValueError(f"{owner}: expected an Ed25519 key of full order, found none")
        if self.version == 1 and any(site.revoked for site in self.sites):
            raise ValueError("sites: expected no revoked site in version 1, found one")
        return self

    @model_validator(mode="after")
    def _signed(self) -> Self:
        signature, server = bytes.fromhex(self.signature), bytes.fromhex(self.server)
        if not verify(server, _HEADER, _content(self), signature):
            raise ValueError("signature: expected the server's over this roster, found another")
        return self

    def roster(self) -> Roster:
        """Return what the aggregation protocol needs of it."""
        return Roster(
            tuple(Member(s.name, bytes.fromhex(s.public), s.revoked) for s in self.sites),
            bytes.fromhex(self.server),
        )


def sign_roster(study: str, version: int, sites: Sequence[Member], server: Identity) -> RosterFile:
    """Return a version of a roster, signed; the sites' order is their index.

    Raises:
        DataError: it would not be a roster that `read_roster` accepts.
    """
    content: dict[str, object] = {
        "study": study,
        "version": version,
        "server": server.public.hex(),
        "sites": [
            {"index": i, "name": s.name, "public": s.public.hex(), "revoked": s.revoked}
            for i, s in enumerate(sites)
        ],
    }
    signature = server.sign(_HEADER, _canonical(content))
    return _checked(_canonical({**content, "signature": signature.hex()}))


def read_roster(data: bytes) -> RosterFile:
    """Return the roster in a file's bytes.

    Raises:
        DataError: it is too long, not a roster, not signed by the server's key in it, or written
            in another than its canonical form.
    """
    if len(data) > ROSTER_BYTES_MAX:
        raise DataError(
            f"roster: expected at most {ROSTER_BYTES_MAX} bytes, found {len(data)}; it was not read"
        )
    roster = _checked(data)
    # One roster, one byte string: keys that stand twice, blanks and missing defaults end here.
    if roster_bytes(roster) != data:
        raise DataError("roster: expected canonical JSON, found another form; it was not used")
    return roster


def roster_bytes(roster: RosterFile) -> bytes:
    """Return the file's bytes: keys sorted, no spaces, UTF-8."""
    return _canonical(roster.model_dump(mode="json"))


def digest(roster: RosterFile) -> str:
    """Return the SHA-256 of this version, in hexadecimal, without its signature.

    It covers version and revocations; what the plan covers is `shared_models.plan.roster_digest`.
    """
    return hashlib.sha256(_content(roster)).hexdigest()


def accept(current: RosterFile, newer: RosterFile) -> RosterFile:
    """Return the roster to hold from now on, when no new approval is needed for it.

    A higher version that only revokes is taken, as long as t sites stay, t being the plan's: that
    of all sites, revoked ones included. The same version again is fine.

    Args:
        current: the roster that this party holds.
        newer: the roster that it was given.

    Raises:
        ProtocolError: ``newer`` is older, or another roster of the same version.
        PrivacyError: it changes something else, or leaves fewer than t sites. ``current`` stays.
    """
    if newer.version < current.version:
        raise ProtocolError(
            f"roster: expected version {current.version} or later, got {newer.version}; "
            "the later one stays in force"
        )
    if newer.version == current.version:
        if digest(newer) != digest(current):
            raise ProtocolError(
                f"roster: expected one version {current.version}, got a second one that differs; "
                "the first stays in force"
            )
        return current
    change = _change(current, newer)
    if change is not None:
        raise PrivacyError(
            f"roster: expected version {newer.version} to revoke sites and nothing else, got "
            f"{change}; version {current.version} stays in force",
            "whoever takes part was approved with the plan: another plan needs another approval",
        )
    stay, t = sum(not site.revoked for site in newer.sites), threshold(len(newer.sites))
    if stay < t:
        raise PrivacyError(
            f"roster: expected at least {t} sites to stay in version {newer.version}, got {stay}; "
            f"version {current.version} stays in force",
            "the study cannot go on with so few sites: begin another",
        )
    return newer


def _change(current: RosterFile, newer: RosterFile) -> str | None:
    """Name the first thing that a revocation does not change and ``newer`` does."""
    if newer.study != current.study:
        return f"the study {newer.study}"
    if newer.server != current.server:
        return "another key of the server"
    if len(newer.sites) != len(current.sites):
        return f"{len(newer.sites)} sites where there were {len(current.sites)}"
    before, after = _pairs(current), _pairs(newer)
    if before != after and sorted(before) == sorted(after):
        return "another order of the sites"
    for old, new in zip(current.sites, newer.sites, strict=True):
        if new.name != old.name:
            return f"the name {new.name} for {old.name}"
        if new.public != old.public:
            return f"another key of {old.name}"
        if old.revoked and not new.revoked:
            return f"{old.name} back, which was revoked"
    return None


def _pairs(roster: RosterFile) -> list[tuple[str, str]]:
    return [(site.name, site.public) for site in roster.sites]


def _checked(data: bytes) -> RosterFile:
    try:
        return RosterFile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        text = str(first["msg"]).removeprefix("Value error, ").replace("Input should", "should")
        # A key that nobody knows was written by whoever made the file: shown as ASCII, and cut.
        where = f"{ascii(place)[1:-1][:80]}: " if place else ""
        raise DataError(f"roster: {where}{text}; it was not used") from None


def _content(roster: RosterFile) -> bytes:
    return _canonical(roster.model_dump(mode="json", exclude={"signature"}))


def _canonical(document: object) -> bytes:
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()
