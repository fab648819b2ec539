"""A site's side of Flower: it pulls a message, lets the installed app answer, pushes the answer.

The one file of the client that touches modules of Flower which are not public. It runs no code that
came over the network: a bundle is neither fetched nor opened, and a message of another kind than
those it is given is answered with an error.
"""

import contextlib
import logging
import os
import random
import re
import secrets
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported: it phones nobody
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from flwr.app import ConfigRecord as AppRecord
from flwr.app import Context
from flwr.app import RecordDict as AppContent
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto
from flwr.proto.error_pb2 import Error
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, RecordDict
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from google.protobuf.message import DecodeError

from client.channel import Address, Channel, Reply
from privacy import keyfile
from privacy.errors import AbsentError, DataError
from shared_models.transport import ENVELOPE_BYTES, PAYLOAD, RECORD, WAIT_HEADER, WAIT_S_MAX

PULL, PUSH, BEAT = (
    f"/v1/fleet/{name}" for name in ("pull-messages", "push-messages", "send-node-heartbeat")
)
BEAT_S = 30.0  # Flower calls a node offline after twice that
BEAT_LIMIT_S = 20.0
TRANSFER_S = 600.0  # for a message or an answer of any size
LAST_S = 10.0  # for the answer that is ready when the program is told to stop
WAIT_FIRST_S, WAIT_MOST_S = 0.5, 15.0  # before the first and between later attempts to reconnect
LIFETIME_S = 86400.0
FAST_S, SLOW_S = 4.0, 275.0  # what the server allows a clock, less what a Date header tells ill
REFUSED, BUG = 2, 1  # of the exit codes of privacy.errors
_LOG = logging.getLogger("fedward.site")
_DRAW = random.SystemRandom()


@dataclass(frozen=True)
class NodeKey:
    """The key that signs a site's requests: EC P-384, of the transport alone; ``public`` is PEM."""

    _key: ec.EllipticCurvePrivateKey = field(repr=False)
    public: bytes

    def headers(self) -> Mapping[str, str]:
        """Return the headers of one request, with the time signed as Flower wants it."""
        stamp = now().isoformat()
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public).decode(),
            TIMESTAMP_HEADER: stamp,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(
                sign_message(self._key, stamp.encode())
            ).decode(),
        }


def create_key(path: Path) -> NodeKey:
    """Make a new key and keep it in ``path``, mode 0600; DataError as `privacy.keyfile.keep`."""
    key = ec.generate_private_key(ec.SECP384R1())
    keyfile.keep(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return NodeKey(key, public_key_to_bytes(key.public_key()))


def load_key(path: Path) -> NodeKey:
    """Return the key in ``path``; DataError as `privacy.keyfile.read`, or it holds no such key."""
    try:
        key = load_pem_private_key(keyfile.read(path) or b"", None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DataError(
            f"{path}: expected an EC P-384 private key in PEM without a password, found something "
            "else; it was left as it is",
            "restore the file from your own copy, or enrol again",
        )
    return NodeKey(key, public_key_to_bytes(key.public_key()))


class Fleet:
    """One site's place in the server's fleet."""

    def __init__(
        self, address: Address, key: NodeKey, node: int, payload_bytes: int, home: Path
    ) -> None:
        """Connect to nothing yet.

        Args:
            address: of the server.
            key: of this site.
            node: the number that the server gave this site's key.
            payload_bytes: of a message, above which it is refused.
            home: a folder of ours that Flower is told to use; nothing is put there.

        Raises:
            DataError: as `client.channel.Channel`.
        """
        os.environ["FLWR_HOME"] = str(home)
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self._address, self._key, self._node = address, key, Node(node_id=node)
        self._channel = Channel(address, payload_bytes + ENVELOPE_BYTES)
        self._pulse = Channel(address, ENVELOPE_BYTES)
        self._where = f"{address.host}:{address.port}"
        self._trouble: str | None = ""  # what was logged last, without digits; None: all is well

    def serve(
        self,
        app: ClientApp,
        kinds: Sequence[str],
        stop: threading.Event,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Answer messages until ``stop`` is set; what goes wrong on the way is waited out. Once.

        Trouble is told on the logger ``fedward.site``, one line each, when it begins and ends.

        Args:
            app: answers; it is called in this thread.
            kinds: ``query.<kind>`` of these is answered, all else with an error.
            stop: ends it within a second or two, whoever sets it (the app too); an answer that
                is ready is sent first.
            gone: whether the site has left: an answer that is ready is then not sent.
        """
        wanted = frozenset(f"query.{kind}" for kind in kinds)
        threads = [
            threading.Thread(target=work, args=(stop,), name="fedward-fleet", daemon=True)
            for work in (self._beat, self._end)
        ]
        for thread in threads:
            thread.start()
        try:
            self._answer_all(app, wanted, stop, gone)
        finally:
            stop.set()
            for thread in threads:
                thread.join(BEAT_LIMIT_S)
            self._channel.close()
            self._pulse.close()

    def _answer_all(
        self,
        app: ClientApp,
        wanted: frozenset[str],
        stop: threading.Event,
        gone: Callable[[], bool],
    ) -> None:
        failures, wait_s = 0, 0  # the first pull does not wait: it shows whether we are welcome
        while not stop.is_set():
            asked = time.monotonic()
            try:
                message = self._pull(wait_s)
            except AbsentError as error:
                self._tell(error, stop)
                failures, wait_s = failures + 1, 0
                stop.wait(_pause(failures))
                continue
            self._tell(None, stop)
            if message is not None:
                end = asked + _lifetime(message)
                payload, code = self._answer(app, wanted, message)
                name = message.metadata.message_id
                drop = gone if payload is not None else _never  # a refusal tells nothing
                taken = self._push(self._pushed(name, payload, code), end, stop, drop)
                # What the server never takes is asked again and again, unless it hears of it.
                if not taken and not self._push(self._pushed(name, None, BUG), end, stop, _never):
                    stop.wait(WAIT_MOST_S)
            elif wait_s and time.monotonic() - asked < 1.0:  # another pull of ours ended it
                stop.wait(1.0)
            failures, wait_s = 0, WAIT_S_MAX

    def _pull(self, wait_s: int) -> Message | None:
        """Return the next message, if there is one within ``wait_s`` seconds."""
        body = PullMessagesRequest(node=self._node).SerializeToString()
        reply = self._post(self._channel, PULL, body, {WAIT_HEADER: str(wait_s)}, TRANSFER_S)
        response = PullMessagesResponse()
        try:
            response.ParseFromString(reply)
        except DecodeError:
            raise self._odd("a message, got something else") from None
        if not response.messages_list:
            return None
        message: Message = response.messages_list[0]
        if message.metadata.dst_node_id != self._node.node_id:
            raise self._odd("a message to this site, got another's")
        return message

    def _answer(
        self, app: ClientApp, wanted: frozenset[str], message: Message
    ) -> tuple[bytes | None, int]:
        """Return the payload that the app answers, or None and the code of its refusal."""
        if message.metadata.message_type not in wanted or not _is_ours(message.content):
            _LOG.warning("a message of a kind that is not answered here was refused")
            return None, REFUSED
        context = Context(message.metadata.run_id, self._node.node_id, {}, AppContent(), {})
        try:
            reply = app(message_from_proto(message), context)
            if reply.has_error():
                return None, reply.error.code
            record = reply.content.get(RECORD)
            payload = record.get(PAYLOAD) if isinstance(record, AppRecord) else None
        except Exception as bug:  # the outermost loop; its text stays here
            _LOG.error("the answer failed by a fault of the program: %s", type(bug).__name__)
            return None, BUG
        return (payload, 0) if isinstance(payload, bytes) else (None, BUG)

    def _pushed(self, name: str, payload: bytes | None, code: int) -> bytes:
        """Return the request that answers the message ``name``; of a refusal, the code alone."""
        answer = Message(
            metadata=Metadata(
                message_id=secrets.token_hex(32),
                src_node_id=self._node.node_id,
                dst_node_id=SUPERLINK_NODE_ID,
                reply_to_message_id=name,
            )
        )
        if payload is None:
            answer.error.CopyFrom(Error(code=code, reason="refused"))
        else:
            value = ConfigRecord.Item(key=PAYLOAD, value=ConfigRecordValue(bytes=payload))
            record = ConfigRecord(items=[value])
            answer.content.items.append(RecordDict.Item(key=RECORD, config_record=record))
        request = PushMessagesRequest(node=self._node, messages_list=[answer])
        return bytes(request.SerializeToString())

    def _push(
        self, body: bytes, end: float, stop: threading.Event, drop: Callable[[], bool]
    ) -> bool:
        """Send an answer until it is taken, or nobody waits for it; False when it never will be.

        As soon as ``drop`` says so it is not sent any more, not even a last time.
        """
        failures = 0
        while not drop():
            if stop.is_set():
                self._push_last(body)
                return True
            try:
                return self._offer(body)
            except AbsentError as error:
                self._tell(error, stop)
            failures += 1
            pause = _pause(failures)
            if time.monotonic() + pause > end:
                return True
            stop.wait(pause)
        return True

    def _push_last(self, body: bytes) -> None:
        last = Channel(self._address, ENVELOPE_BYTES)  # the other one was cut
        with contextlib.suppress(AbsentError):
            self._send(last, PUSH, body, {}, LAST_S)
        last.close()

    def _offer(self, body: bytes) -> bool:
        status = self._send(self._channel, PUSH, body, {}, TRANSFER_S).status
        if status == 410:
            _LOG.warning("an answer came too late and was dropped")
        elif status in (400, 403, 413):
            _LOG.error("the server does not take this answer (HTTP status %d)", status)
            return False
        elif status != 200:
            raise self._odd(f"it to take an answer, got HTTP status {status}")
        return True

    def _send(
        self, channel: Channel, path: str, body: bytes, more: Mapping[str, str], limit_s: float
    ) -> Reply:
        """Sign and send one request; AbsentError also when the server refuses this site."""
        reply = channel.post(path, lambda: {**self._key.headers(), **more}, body, limit_s)
        if reply.status != 401:
            return reply
        if reply.skew_s is not None and not -SLOW_S < reply.skew_s < FAST_S:
            how = "fast" if reply.skew_s > 0 else "slow"
            raise AbsentError(
                f"{self._where}: this machine's clock is {abs(reply.skew_s):.0f} s {how}; "
                "the server refuses its requests",
                "set the clock, best by NTP",
            )
        raise AbsentError(
            f"{self._where}: the server does not know this site's key, or has revoked it",
            "ask the coordinator",
        )

    def _post(
        self, channel: Channel, path: str, body: bytes, more: Mapping[str, str], limit_s: float
    ) -> bytes:
        reply = self._send(channel, path, body, more, limit_s)
        if reply.status != 200:
            raise self._odd(f"an answer, got HTTP status {reply.status}")
        return reply.body

    def _odd(self, got: str) -> AbsentError:
        return AbsentError(f"{self._where}: expected {got}")

    def _beat(self, stop: threading.Event) -> None:
        """Tell the server that this site is alive, also while the app works."""
        beat = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=BEAT_S)
        body, pause = beat.SerializeToString(), 0.0
        while not stop.wait(pause):
            try:
                self._post(self._pulse, BEAT, body, {}, BEAT_LIMIT_S)
                pause = BEAT_S * _DRAW.uniform(0.7, 0.9)
            except AbsentError:  # the pull has told why
                pause = _DRAW.uniform(1.0, 5.0)

    def _end(self, stop: threading.Event) -> None:
        """Cut the waiting requests when it is time."""
        stop.wait()
        self._channel.end()
        self._pulse.end()

    def _tell(self, trouble: AbsentError | None, stop: threading.Event) -> None:
        """Log a trouble when it begins or changes, and when it ends."""
        line = None
        if trouble is not None:
            line = f"{trouble} (hint: {trouble.hint})" if trouble.hint else str(trouble)
        kind = line and re.sub(r"\d+", "", line)  # seconds differ each time
        if kind == self._trouble or stop.is_set():
            return
        self._trouble = kind
        if line is None:
            _LOG.info("connected to %s", self._where)
        else:
            _LOG.warning("%s; trying again", line)


def _never() -> bool:
    return False


def _is_ours(content: RecordDict) -> bool:
    """Say whether a content is one record with one value of bytes, and nothing else."""
    if len(content.items) != 1 or content.items[0].key != RECORD:
        return False
    values = content.items[0].config_record.items
    return len(values) == 1 and values[0].key == PAYLOAD and values[0].value.HasField("bytes")


def _lifetime(message: Message) -> float:
    """Return for how many seconds an answer is worth sending; the clocks may differ."""
    ttl: float = message.metadata.ttl
    return ttl if 0.0 < ttl < LIFETIME_S else LIFETIME_S


def _pause(failures: int) -> float:
    """Return the seconds before the next attempt: doubled each time, capped, and never in step."""
    most = min(WAIT_MOST_S, WAIT_FIRST_S * 2.0 ** min(failures - 1, 16))
    return _DRAW.uniform(0.5, 1.0) * most
