"""The token of one invitation: all that a hospital needs to find the coordinator and to trust it.

The coordinator makes it, and it is carried by hand or by mail. It pins both of the server's keys
before a connection exists, and admits one site once. It opens no connection.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from privacy.errors import DataError
from privacy.keys import KEY_BYTES

TOKEN_CHARACTERS = 400  # some mail programs and chats break longer lines
SECRET_BYTES = 16
_PREFIX = "fedward1."  # another layout gets another number
# Of host and site: what 399 characters of base64 have left.
_NAMES_MAX = (
    3 * (TOKEN_CHARACTERS - 1 - len(_PREFIX)) // 4 - 4 - 6 - 3 * KEY_BYTES - SECRET_BYTES - 1
)
_CHECK_BYTES = 4  # finds a letter that was lost on the way, not one that was changed on purpose
_HINT = "ask the coordinator for a new token, and paste it whole, on one line"


@dataclass(frozen=True)
class Invitation:
    """What a token says.

    Attributes:
        host: the coordinator's name or address, as sites reach it; ASCII.
        port: of enrolment and of all that follows.
        authority: SHA-256 of the certificate (DER) of the authority that sites pin.
        server: the coordinator's Ed25519 key, 32 bytes.
        study: digest of the study, 32 bytes.
        site: the name that is invited.
        expires: Unix time in seconds, below 2^32; enrolment is refused from then on.
        secret: 16 random bytes that the coordinator gave to this invitation alone.
    """

    host: str
    port: int
    authority: bytes
    server: bytes
    study: bytes
    site: str
    expires: int
    secret: bytes = field(repr=False)


def write_token(invitation: Invitation) -> str:
    """Return the token, below 400 characters without spaces.

    Raises:
        DataError: host and site name are too long together.
        ValueError: a part has another size than it should.
    """
    fixed = (invitation.authority, invitation.server, invitation.study)
    if any(len(part) != KEY_BYTES for part in fixed) or len(invitation.secret) != SECRET_BYTES:
        raise ValueError("expected digests and keys of 32 bytes and a secret of 16")
    host, site = invitation.host.encode("ascii"), invitation.site.encode("ascii")
    if len(host) + len(site) > _NAMES_MAX:
        raise DataError(
            f"expected a host and a site name of at most {_NAMES_MAX} characters together, got "
            f"{len(host) + len(site)}; nobody was invited",
            "use a shorter name of the host, or its address",
        )
    body = b"".join(
        (
            invitation.expires.to_bytes(4, "little"),
            invitation.port.to_bytes(2, "little"),
            *fixed,
            invitation.secret,
            len(host).to_bytes(1, "little"),
            host,
            site,
        )
    )
    return _PREFIX + base64.urlsafe_b64encode(_check(body) + body).decode().rstrip("=")


def read_token(token: str) -> Invitation:
    """Return what a token says.

    Raises:
        DataError: it is no token, or it was changed or cut on the way. It is not shown.
    """
    text = "".join(token.split())  # a mail may have broken the line
    try:
        if not text.startswith(_PREFIX) or len(text) >= TOKEN_CHARACTERS:
            raise ValueError
        coded = text.removeprefix(_PREFIX).encode("ascii")
        data = base64.b64decode(coded + b"=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        check, body = data[:_CHECK_BYTES], data[_CHECK_BYTES:]
        if check != _check(body):
            raise ValueError
        at = 6 + 3 * KEY_BYTES + SECRET_BYTES
        length = body[at]
        host, site = body[at + 1 : at + 1 + length], body[at + 1 + length :]
        invitation = Invitation(
            host=host.decode("ascii"),
            port=int.from_bytes(body[4:6], "little"),
            authority=body[6:38],
            server=body[38:70],
            study=body[70:102],
            site=site.decode("ascii"),
            expires=int.from_bytes(body[:4], "little"),
            secret=body[102:118],
        )
        if not (len(host) == length and host and site and invitation.port):
            raise ValueError
        if write_token(invitation) != text:  # one invitation, one token
            raise ValueError
    except (ValueError, IndexError, binascii.Error):
        raise DataError(
            "expected a token as the coordinator's program prints it, got something else; "
            "nothing was sent",
            _HINT,
        ) from None
    return invitation


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"fedward token" + body).digest()[:_CHECK_BYTES]
