"""What both ends of a connection must agree on: TLS, where a payload lies, how long a pull waits.

It opens no connection, and it reads no payload.
"""

import ssl
from pathlib import Path

RECORD, PAYLOAD = "fedward", "payload"  # the one record of a message and its one value

ENVELOPE_BYTES = 4096  # what a message has around its payload, and all of one without

# A site says with it for how many seconds its pull may wait for a message to come.
WAIT_HEADER = "fedward-wait"
WAIT_S_MAX = 20  # below the half minute after which middle boxes cut a silent connection


def site_context(authority: bytes) -> ssl.SSLContext:
    """Return the TLS of a site: version 1.3, the server's name checked, one authority trusted.

    Args:
        authority: its certificate in PEM; nothing else that this machine trusts counts. It need
            not be a root: whoever pins an intermediate authority trusts that one.

    Raises:
        ValueError: it is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it checks certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=authority.decode("ascii"))
    except ssl.SSLError:
        raise ValueError("expected a certificate in PEM, got something else") from None
    return context


def server_context(chain: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS of the server.

    Args:
        chain: PEM of the server's certificate and of the authorities between it and the pinned one.
        key: PEM of the private key of the first.

    Raises:
        ssl.SSLError: they are no such files, or the key belongs to another certificate.
        OSError: they cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(chain, key, password="")  # a locked key is refused; None would ask
    return context
