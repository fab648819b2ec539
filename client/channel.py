"""A site's line to the server: one HTTPS request at a time, over TLS with a pinned authority.

It knows no message and it never tries again by itself; every wait in it ends.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time as clock

from privacy.errors import AbsentError, DataError
from shared_models.transport import site_context

CONNECT_S = 10
SILENCE_S = 30  # longest wait for the next bytes; a pull waits 20 s for its first
PIECE = 1 << 18


class UntrustedError(AbsentError):
    """Something answered, and not with a certificate of the pinned authority."""


class OutdatedError(UntrustedError):
    """The certificate is not valid now: it is renewed, or a clock is set, and all is well."""


@dataclass(frozen=True)
class Address:
    """Where the server is, and how to know it.

    Attributes:
        host: name or address, which its certificate must carry.
        port: of the gateway.
        authority: PEM of the certificate that was pinned when the site enrolled.
        proxy: http://[user:password@]host:port of a proxy that is asked to CONNECT. None: what
            HTTPS_PROXY and NO_PROXY say, but never a proxy for this machine itself. "": none.
    """

    host: str
    port: int
    authority: bytes = field(repr=False)
    proxy: str | None = None


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: of HTTP.
        body: all of it.
        skew_s: how far this machine's clock is ahead of the server's, as the Date header tells it
            (good to a second or two); None when there is none.
    """

    status: int
    body: bytes
    skew_s: float | None


class Channel:
    """One connection, kept open between requests, and made again when it was lost."""

    def __init__(self, address: Address, body_max: int, tls: ssl.SSLContext | None = None) -> None:
        """Open nothing yet.

        Args:
            address: of the server.
            body_max: bytes of a reply above which it is refused.
            tls: None: what trusts the pinned authority alone. Another is for the one request that
                asks for the authority (`client.post.fetch_authority`).

        Raises:
            DataError: the pinned authority is no certificate, or the proxy no address of one.
        """
        self._address, self._body_max = address, body_max
        self._proxy = proxy_of(address)
        try:
            self._tls = tls or site_context(address.authority)
        except ValueError as error:
            raise DataError(f"the pinned authority: {error}", "enrol again") from None
        self._line: http.client.HTTPSConnection | None = None
        self._ended = False

    def post(
        self, path: str, headers: Callable[[], Mapping[str, str]], body: bytes, limit_s: float
    ) -> Reply:
        """Send one request and return its reply, whatever its status.

        A connection that the server closed while it was idle is replaced once.

        Args:
            path: on the server.
            headers: makes those of one attempt.
            body: of the request.
            limit_s: all of it takes no longer.

        Raises:
            AbsentError: no reply: network or time, and `UntrustedError` for a certificate; one line
                says which.
        """
        over = threading.Event()
        timer = threading.Timer(limit_s, self._expire, (over,))
        timer.daemon = True
        timer.start()
        try:
            if self._line is not None:
                with suppress(ConnectionError, http.client.BadStatusLine, ssl.SSLEOFError):
                    return self._exchange(path, headers(), body)
                self.close()
            if self._ended or over.is_set():
                raise ConnectionAbortedError("ended here")
            return self._exchange(path, headers(), body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._absent(error, over.is_set()) from None
        finally:
            timer.cancel()

    def end(self) -> None:
        """Let the request that another thread waits in fail now, and all later ones."""
        self._ended = True
        self._cut()

    def close(self) -> None:
        """Close the connection."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _expire(self, over: threading.Event) -> None:
        over.set()
        self._cut()

    def _cut(self) -> None:
        line = self._line
        if line is not None and line.sock is not None:
            with suppress(OSError):  # the plain call: that of a TLS socket would drop its state
                socket.socket.shutdown(line.sock, socket.SHUT_RDWR)

    def _exchange(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        line = self._line or self._open()
        sent = clock()
        line.request("POST", path, body, {"content-type": "application/protobuf", **headers})
        with line.getresponse() as response:
            date = response.getheader("date")
            received = clock()
            answer = self._read(response)
            if response.will_close:
                self.close()
            return Reply(response.status, answer, _skew(date, sent, received))

    def _open(self) -> http.client.HTTPSConnection:
        """Remember the connection before it is made, so that it can be cut while it is."""
        address, proxy = self._address, self._proxy
        if proxy is None:
            host, port = address.host, address.port
        else:
            host, port = proxy.host, proxy.port
        line = http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=self._tls)
        if proxy is not None:
            line.set_tunnel(address.host, address.port, dict(proxy.headers))
        self._line = line
        line.connect()
        line.sock.settimeout(SILENCE_S)
        return line

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """Return the whole body, refused by its declared or its real size, or when it is cut."""
        pieces, left = [], self._body_max
        if response.length is None and not response.chunked:
            raise http.client.HTTPException("a reply without an end")
        if response.length is not None and response.length > left:
            raise http.client.HTTPException(f"a reply of {response.length} bytes")
        while piece := response.read(PIECE):
            left -= len(piece)
            if left < 0:
                raise http.client.HTTPException(f"a reply above {self._body_max} bytes")
            pieces.append(piece)
        if response.length:  # what is still to come
            raise http.client.HTTPException("half a reply")
        return b"".join(pieces)

    def _absent(self, error: Exception, over: bool) -> AbsentError:
        where = f"{self._address.host}:{self._address.port}"
        if isinstance(error, ssl.SSLCertVerificationError):
            words, hint = _CERTIFICATE.get(error.verify_code, _NOT_SIGNED)
            kind = OutdatedError if error.verify_code in _OUTDATED else UntrustedError
            return kind(f"{where}: the server's certificate {words}", hint)
        if over or isinstance(error, TimeoutError):
            return AbsentError(f"{where}: no answer in time", _THERE)
        if isinstance(error, socket.gaierror):
            return AbsentError(
                f"{where}: the name is not known here", "check the name, DNS, and the proxy"
            )
        if isinstance(error, ssl.SSLError):
            return AbsentError(f"{where}: no TLS 1.3 spoken there ({error.reason})", _OTHER)
        if isinstance(error, OSError):
            via = "" if self._proxy is None else f" by proxy {self._proxy.host}:{self._proxy.port}"
            words = f"{where}: cannot be reached{via} ({error.strerror or error})"
            return AbsentError(words, _THERE)
        words = f"{where}: expected an answer of fedward's server, got {error!r:.200}"
        return AbsentError(words, _OTHER)


@dataclass(frozen=True)
class Proxy:
    """What stands between, and is asked to CONNECT; its headers may hold a password."""

    host: str
    port: int
    headers: Mapping[str, str] = field(repr=False)


def proxy_of(address: Address) -> Proxy | None:
    """Return the proxy that stands between, after the address and then the environment.

    Raises:
        DataError: it is no address of a proxy.
    """
    url = address.proxy
    if url is None and not (
        _is_loopback(address.host) or urllib.request.proxy_bypass(f"{address.host}:{address.port}")
    ):
        url = urllib.request.getproxies().get("https")
    if not url:
        return None
    parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise DataError(
            "expected a proxy as http://host:port, got another kind of address",
            "look at HTTPS_PROXY, or name the proxy",
        )
    headers = {}
    if parts.username is not None:  # RFC 7617
        user, word = (urllib.parse.unquote(x or "") for x in (parts.username, parts.password))
        headers["Proxy-Authorization"] = "Basic " + b64encode(f"{user}:{word}".encode()).decode()
    return Proxy(parts.hostname, port, headers)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _skew(date: str | None, sent: float, received: float) -> float | None:
    """Return the least skew that the date allows: the server wrote it between question and answer.

    A slow answer is no wrong clock.
    """
    if date is None:
        return None
    try:
        told = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    return max(sent - told, min(received - told, 0.0))


# By X509_V_ERR_* of OpenSSL's x509_vfy.h: what is said, and what helps.
_NOT_SIGNED = (
    "is not signed by the pinned authority",
    "a proxy that opens TLS must leave this host alone; or the server was replaced",
)
_THERE = "is the coordinator's program started, and does the firewall let TCP out to it?"
_OTHER = "another program answers there: check the port with the coordinator, and the proxy"
_OTHER_NAME = ("is for another name", "use the name in the invitation")
_OUTDATED = (9, 10)
_CERTIFICATE = {
    9: ("is not valid yet by this machine's clock", "set this machine's clock"),
    10: (
        "has expired",
        "look at this machine's clock; the coordinator renews it by a restart",
    ),
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}
