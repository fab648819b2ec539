"""The door of the coordinator: three routes of Flower's app, each bound to the node that asks.

It is an ASGI app around Flower's; `server.listener` gives it a socket. Everything else is 404:
other paths, other methods, any spelling of a path but one. A request is refused by its size and
its signature before its body is read, and Flower sees none of a site's bytes but those headers.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.hub import Hub
from server.listener import Door, Listener
from server.superlink import BEAT, PULL, PUSH, SIGNED, RefusedError
from shared_models.transport import ENVELOPE_BYTES, WAIT_HEADER, WAIT_S_MAX

EXTRA_BYTES = 65536  # of a request to an extra app
EXTRA_AT_ONCE = 8  # of those: anybody may make them
PIECE_S = 20.0  # longest wait for the next bytes of a body, or until some more are taken
BODY_S = 600.0  # for all of a site's body
STRANGER_S = 10.0  # for all of a body that nobody signed
PIECE = 1 << 18
_LOG = logging.getLogger("fedward.server")
WAITERS_MAX = 1000
_PASSED = frozenset({*SIGNED, b"content-type"})  # the headers that Flower sees

Headers = Sequence[tuple[bytes, bytes]]


class Gateway:
    """The ASGI app that a listener serves."""

    def __init__(
        self, hub: Hub, payload_bytes: int, extra: Mapping[str, ASGIApp] | None = None
    ) -> None:
        """Wrap the hub's app.

        Args:
            hub: knows the nodes and their questions.
            payload_bytes: the largest payload of a site's answer that the plan allows.
            extra: further apps by exact path. They get POST requests alone, of at most 64 KiB,
                read whole and in time; anybody may send them.
        """
        self._hub, self._extra = hub, dict(extra or {})
        self._answer_bytes = payload_bytes + ENVELOPE_BYTES
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._pushing: set[int] = set()
        self._strangers = asyncio.Semaphore(EXTRA_AT_ONCE)
        self._closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            app = self._extra.get(_path(scope))
            if app is not None:
                await self._to_stranger(app, scope, receive, send)
                return
            status, body = await self._to_node(scope, receive)
        except RefusedError as error:
            status, body = error.status, b""
        except TimeoutError:
            status, body = 408, b""
        except Exception as bug:  # the outermost loop: a full disk, or a fault
            _LOG.error("a request could not be answered: %s", type(bug).__name__)
            _LOG.debug("it was", exc_info=bug)
            status, body = 500, b""
        await _respond(send, status, body)

    def wake(self, node: int) -> None:
        """Let the node's pull go on; in the thread of the event loop."""
        waiting = self._waiting.get(node)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def close(self) -> None:
        """Let all pulls go on, and none wait any more; in the thread of the event loop."""
        self._closing = True
        for node in tuple(self._waiting):
            self.wake(node)

    async def _to_node(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        path, headers = _path(scope), scope["headers"]
        if path == PUSH:
            length = _length(headers, self._answer_bytes)
            node = self._hub.authenticate(headers)
            return await self._push(node, scope, receive, length)
        if path not in (PULL, BEAT):
            raise RefusedError(404)
        length = _length(headers, ENVELOPE_BYTES)
        node = self._hub.authenticate(headers)
        body = await _read(receive, length, STRANGER_S)
        self._hub.check(node, path, body)
        if path == BEAT:
            return await self._ask_flower(scope, body)
        return await self._pull(node, scope, body)

    async def _pull(self, node: int, scope: Scope, body: bytes) -> tuple[int, bytes]:
        """Wait for a message if the site wants to; Flower marks it as delivered."""
        await self._wait(node, _seconds(scope["headers"]))
        if not self._hub.pending(node):
            return 200, b""  # a message without fields
        status, _ = await self._ask_flower(scope, body)
        if status != 200:
            return status, b""
        return 200, await asyncio.to_thread(self._hub.question, node)

    async def _push(
        self, node: int, scope: Scope, receive: Receive, length: int
    ) -> tuple[int, bytes]:
        """Believe an answer once Flower took it; one at a time from each site."""
        if node in self._pushing:
            raise RefusedError(429)
        self._pushing.add(node)
        try:
            body = await _read(receive, length, BODY_S)
            reply = await asyncio.to_thread(self._hub.reply, node, body)
            del body
            if reply is None:
                return 200, b""
            status, answer = await self._ask_flower(scope, reply.body)
            if status == 200:
                reply.deliver()
            return status, answer
        finally:
            self._pushing.discard(node)

    async def _wait(self, node: int, seconds: float) -> None:
        if not seconds or self._closing or self._hub.pending(node):
            return
        self.wake(node)  # a second pull of a node ends the first
        if len(self._waiting) >= WAITERS_MAX:
            return
        # What comes from here on wakes it: `wake` runs in this thread, after this function waits.
        waiting = self._waiting[node] = asyncio.get_running_loop().create_future()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(waiting, seconds)
        finally:
            if self._waiting.get(node) is waiting:
                del self._waiting[node]

    async def _ask_flower(self, scope: Scope, body: bytes) -> tuple[int, bytes]:
        """Return status and body of Flower's answer."""
        inner = dict(scope)
        inner["state"] = {}
        inner["headers"] = [pair for pair in scope["headers"] if pair[0] in _PASSED]
        status, pieces = 500, []

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                pieces.append(message.get("body", b""))

        await self._hub.app(inner, _replay(body), send)
        if status >= 500:
            _LOG.error("Flower could not answer a request: HTTP status %d", status)
        return status, b"".join(pieces)

    async def _to_stranger(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        length = _length(scope["headers"], EXTRA_BYTES)
        if self._strangers.locked():
            raise RefusedError(503)
        async with self._strangers:
            body = await _read(receive, length, STRANGER_S)
            await app(scope, _replay(body), send)


@contextlib.contextmanager
def serve(
    hub: Hub, door: Door, payload_bytes: int, extra: Mapping[str, ASGIApp] | None = None
) -> Iterator[int]:
    """Let sites in while the context lasts; yield the port.

    Raises:
        DataError: as `server.listener.Listener`.
    """
    gateway = Gateway(hub, payload_bytes, extra)
    listener = Listener(door, gateway)
    hub.listen(lambda node: listener.call(gateway.wake, node))
    listener.start()
    try:
        yield listener.port
    finally:
        hub.listen(None)
        listener.call(gateway.close)
        listener.stop()


def _path(scope: Scope) -> str:
    """Return the path of a plain POST: not encoded, without a query."""
    path: str = scope["path"]
    if (
        scope["method"] != "POST"
        or scope["raw_path"] != path.encode("utf-8", "surrogateescape")
        or scope["query_string"]
    ):
        raise RefusedError(404)
    return path


def _length(headers: Headers, ceiling: int) -> int:
    """Return how many bytes a body may have: those it declares, else the ceiling; 413 above it."""
    declared = dict(headers).get(b"content-length")
    if declared is None:  # chunked: counted while it is read
        return ceiling
    if not declared.isdigit() or len(declared) > 18 or int(declared) > ceiling:
        raise RefusedError(413)
    return int(declared)


def _seconds(headers: Headers) -> float:
    asked = dict(headers).get(WAIT_HEADER.encode(), b"0")
    return min(float(asked), WAIT_S_MAX) if asked.isdigit() and len(asked) < 4 else 0.0


async def _read(receive: Receive, ceiling: int, limit_s: float) -> bytes:
    """Return the body; 413 above the ceiling, TimeoutError when it comes too slowly."""
    pieces, size = [], 0
    async with asyncio.timeout(limit_s):
        while True:
            message = await asyncio.wait_for(receive(), PIECE_S)
            if message["type"] != "http.request":
                raise RefusedError(400)  # gone: nobody reads this
            piece = message.get("body", b"")
            size += len(piece)
            if size > ceiling:
                raise RefusedError(413)
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)


def _replay(body: bytes) -> Receive:
    """Return a body that was read as if it came now."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


async def _respond(send: Send, status: int, body: bytes) -> None:
    """Send the answer in pieces: a site that takes none for too long is left."""
    headers = [
        (b"content-type", b"application/protobuf" if status == 200 else b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status != 200:  # what a stranger holds open is not worth keeping; a body may be unread
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for start in range(0, max(1, len(body)), PIECE):
        piece = body[start : start + PIECE]
        more = start + PIECE < len(body)
        message = {"type": "http.response.body", "body": piece, "more_body": more}
        await asyncio.wait_for(send(message), PIECE_S)
