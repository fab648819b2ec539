"""A TLS socket for one ASGI app, in a thread of its own, with bounds on idle and slow connections.

It knows no route: `server.gateway` is the app.
"""

import asyncio
import logging
import resource
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from privacy.errors import DataError
from server.certificates import Certificates
from shared_models.transport import server_context

HANDSHAKE_S = 10.0
HEAD_S = 10.0  # from the first byte of a connection, or of its next request, to a whole head
IDLE_S = 65.0  # between requests: two heartbeats
CONNECTIONS_MAX = 1024  # above it, the one that has been idle longest is closed
HEAD_BYTES = 16384
FILES = 8192
STOP_S = 3


@dataclass(frozen=True)
class Door:
    """Where to listen.

    Attributes:
        host: address of this machine, "::" or "0.0.0.0" for all.
        port: 0 picks a free one.
        certificates: of the server.
    """

    host: str
    port: int
    certificates: Certificates


class Listener:
    """One listening socket and the thread that serves it."""

    def __init__(self, door: Door, app: ASGIApp) -> None:
        """Take the port; serve nothing yet.

        Raises:
            DataError: the port cannot be had, or the certificate cannot be used.
        """
        try:
            tls = server_context(door.certificates.chain, door.certificates.key)
        except (ssl.SSLError, OSError):
            raise DataError(
                f"{door.certificates.chain}: expected a certificate and, in "
                f"{door.certificates.key}, its key; got something else"
            ) from None
        _allow_files()
        family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
        try:
            self._socket = socket.create_server(
                (door.host, door.port), family=family, backlog=512, dualstack_ipv6=door.host == "::"
            )
        except OSError as error:
            raise DataError(
                f"expected to listen on {door.host}:{door.port}, got: {error.strerror}",
                "stop what listens there, or choose another port",
            ) from None
        # Inherited by its connections. asyncio sets it on sockets of an named protocol alone, and
        # without it the body of an answer waits 40 ms for the acknowledgement of its head.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            ssl_context_factory=lambda *_: tls,
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            log_level="critical",  # an app that fails is the app's to tell
            timeout_keep_alive=int(IDLE_S),
            timeout_graceful_shutdown=STOP_S,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        self._server = uvicorn.Server(config)
        self._loop = _Loop()
        self._thread = threading.Thread(target=self._serve, name="fedward-door", daemon=True)

    @property
    def port(self) -> int:
        """The port that was taken."""
        port: int = self._socket.getsockname()[1]
        return port

    def start(self) -> None:
        """Serve in a thread; connections that come before it is up wait."""
        self._thread.start()

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Call the function in the thread of the event loop, soon; after the end, never."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def stop(self) -> None:
        """Close the socket and its connections."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(STOP_S + 2.0)
        elif not self._loop.is_closed():  # it never ran
            self._loop.close()
        self._socket.close()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._server.serve(sockets=[self._socket]))


class _Loop(asyncio.SelectorEventLoop):
    """The ordinary loop, which leaves a connection early that never says hello."""

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        return await super().create_server(
            *args, **{**kwargs, "ssl_handshake_timeout": HANDSHAKE_S}
        )


class _Connection(H11Protocol):
    """uvicorn's protocol, which waits for the head of a request as long as it takes."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > CONNECTIONS_MAX:
            idle = [
                one for one in self.connections if isinstance(one, _Connection) and one.is_idle()
            ]
            if idle:
                min(idle, key=lambda one: one.since).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.is_idle():
            self._forget_head()
        elif self._head is None:  # part of a head
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self.since = self.loop.time()
        self._head = self.loop.call_later(HEAD_S, self.transport.abort)

    def _forget_head(self) -> None:
        self.since = self.loop.time()
        if self._head is not None:
            self._head.cancel()
            self._head = None


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out that somebody was still waiting when the door was closed: a site always is."""
    error = record.exc_info[1] if record.exc_info else None
    return "graceful shutdown" not in record.msg and not isinstance(error, asyncio.CancelledError)


def _allow_files() -> None:
    """Let this process have as many connections as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
