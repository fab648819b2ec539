"""Flower's SuperLink inside the coordinator's process: its app, its state, and its wire format.

The one file of the server that touches modules of Flower which are not public. It opens no socket
and starts no process: `server.gateway` lets sites in, and the routes of people and of executors
have no door at all. Flower's state keeps nodes, runs and what was asked of whom; no payload enters
it, so none reaches its database.
"""

import logging
import os
import secrets
import threading
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported: it phones nobody
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from fastapi import FastAPI
from flwr.common.constant import (
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    TRANSPORT_TYPE_GRPC_RERE,
    Status,
    SubStatus,
)
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, RecordDict
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_IN_MEMORY_DB_NAME,
    NOOP_FEDERATION_ID,
    NodeStatus,
    TaskType,
)
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    public_key_to_bytes,
    verify_signature,
)
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, get_federation_manager
from flwr.superlink.main import create_app
from google.protobuf.message import DecodeError
from sqlalchemy.exc import SQLAlchemyError

from privacy.errors import DataError, PrivacyError
from shared_models.transport import PAYLOAD, RECORD, WAIT_S_MAX

PULL, PUSH, BEAT = (
    f"/v1/fleet/{name}" for name in ("pull-messages", "push-messages", "send-node-heartbeat")
)
STAMP = TIMESTAMP_HEADER.encode()
SIGNED = (FLEET_HTTP_PUBLIC_KEY_HEADER.encode(), STAMP, FLEET_HTTP_SIGNATURE_HEADER.encode())
BEAT_S = 30.0  # a site's heartbeat; Flower calls it offline after twice that
RUN_BEAT_S = 20.0  # Flower gives a run up 60 s after its last heartbeat
FAST_S = SYSTEM_TIME_TOLERANCE  # how far a site's clock may be ahead of ours,
SLOW_S = TIMESTAMP_TOLERANCE - WAIT_S_MAX  # or behind: Flower looks again when a pull has waited
_LOG = logging.getLogger("fedward.server")
_Request = TypeVar("_Request", PullMessagesRequest, PushMessagesRequest, SendNodeHeartbeatRequest)


class RefusedError(Exception):
    """A request that is answered by an HTTP status alone; it never reaches a person."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Envelope:
    """What Flower knows of a message: all but its payload.

    Attributes:
        name: its id, 32 random bytes in hexadecimal: of Flower's form, and not to be guessed.
        reply: the same, for its answer.
        node: who is asked.
        kind: the message type.
        until: Unix time after which Flower drops it.
    """

    name: str
    reply: str
    node: int
    kind: str
    created: float
    until: float
    run: int
    task: int


@dataclass(frozen=True)
class Pushed:
    """What a site sends as an answer, unchecked.

    Attributes:
        nodes: in whose name it is sent.
        question: the name of the message it answers.
        payload: of the answer; None when it is an error.
        code: of the error.
    """

    nodes: frozenset[int]
    question: str
    payload: bytes | None
    code: int


class SuperLink:
    """Flower's state of one coordinator, and the run in it."""

    def __init__(self, database: Path | None, home: Path) -> None:
        """Open the state.

        Args:
            database: SQLite file, made with mode 0600. None: in memory.
            home: FLWR_HOME of this process, inside our own folder; nothing is put there.

        Raises:
            DataError: the database cannot be made or read.
        """
        os.environ["FLWR_HOME"] = str(home)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("flwr").setLevel(logging.CRITICAL)  # what fails there is told in our log
        self._database = database
        with self._failing():
            if database is not None and not database.exists():
                os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
            self.app = _app(database)
            self._state: LinkState = self.app.state.linkstate_factory.state()
        self._run: tuple[int, int] | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._keep_run, name="fedward-run", daemon=True).start()

    def close(self) -> None:
        """End the run."""
        self._closed.set()
        run, self._run = self._run, None
        if run is not None:
            with self._failing():
                self._state.finish_task(run[1], SubStatus.COMPLETED, "")
                self._state.cleanup_run(run[0])

    # --- nodes ---------------------------------------------------------------------------------

    def nodes(self) -> dict[bytes, int]:
        """Return the nodes by their keys (PEM), without those that were deleted."""
        alive = [NodeStatus.REGISTERED, NodeStatus.ONLINE, NodeStatus.OFFLINE]
        with self._failing():
            return {
                info.public_key: info.node_id for info in self._state.get_node_info(statuses=alive)
            }

    def create_node(self, pem: bytes) -> int:
        """Return a new node with this key (as `normal` returns it).

        Raises:
            PrivacyError: there was a node with this key; it can never come back.
        """
        with self._failing():
            try:
                node = self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, pem, BEAT_S)
            except ValueError:
                raise PrivacyError("expected a new key, got one that was revoked") from None
            # Messages can wait for a node that is offline, not for one that never was online.
            self._state.activate_node(node, BEAT_S)
            self._state.deactivate_node(node)
        return node

    def delete_node(self, node: int) -> None:
        """Delete a node: Flower refuses its next request."""
        with self._failing():
            self._state.delete_node(NOOP_FLWR_AID, node)

    # --- messages ------------------------------------------------------------------------------

    def send(self, kind: str, nodes: Iterable[int], deadline_s: float) -> list[Envelope]:
        """Give Flower one message for each node, without payload; return those that it took."""
        run, task = self._running()
        created = now().timestamp()
        until = created + deadline_s + FAST_S + TIMESTAMP_TOLERANCE  # sites' clocks count, too
        sent = []
        with self._failing(), self._transaction():
            for node in nodes:
                name, reply = secrets.token_hex(32), secrets.token_hex(32)
                one = Envelope(name, reply, node, f"query.{kind}", created, until, run, task)
                # The object before the message: a pull looks for it.
                self._state.object_store.preregister(run, ObjectTree(object_id=name))
                message = Message(metadata=_metadata(one), content=RecordDict())
                if self._state.store_message_ins(message_from_proto(message)) is not None:
                    sent.append(one)
        return sent

    def forget(self, sent: Iterable[Envelope]) -> None:
        """Delete messages and their answers."""
        sent = list(sent)
        with self._failing(), self._transaction():
            self._state.delete_messages({one.name for one in sent})
            for run in {one.run for one in sent}:
                self._state.delete_sessions_in_run(run)
        for one in sent:
            self._state.object_store.delete(one.name)
            self._state.object_store.delete(one.reply)

    # --- the run -------------------------------------------------------------------------------

    def _running(self) -> tuple[int, int]:
        """Return the run and its task, which are made when there are none, or they are over."""
        with self._failing():
            if self._run is None or not self._state.acknowledge_task_heartbeat(self._run[1]):
                self._run = self._begin()
        return self._run

    def _begin(self) -> tuple[int, int]:
        """End what a killed process left, and begin a run; it has no bundle."""
        state = self._state
        unfinished = [Status.PENDING, Status.STARTING, Status.RUNNING]
        for left in state.get_run_info(statuses=unfinished):
            if left.primary_task_id is not None:
                state.finish_task(left.primary_task_id, SubStatus.FAILED, "")
            state.cleanup_run(left.run_id)
        run = state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        task = state.get_run_info(run_ids=[run])[0].primary_task_id
        if task is None or state.claim_task(task) is None or not state.activate_task(task):
            raise RuntimeError("Flower did not begin a run")
        return run, task

    def _keep_run(self) -> None:
        while not self._closed.wait(RUN_BEAT_S):
            run = self._run
            if run is not None:
                try:
                    self._state.acknowledge_task_heartbeat(run[1])
                except SQLAlchemyError as error:  # the next exchange tells it to people
                    _LOG.debug("the run's heartbeat failed: %s", type(error).__name__)

    def _transaction(self) -> AbstractContextManager[object]:
        session: AbstractContextManager[object] = (
            nullcontext() if self._database is None else self._state.session()  # type: ignore[attr-defined]
        )
        return session

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or type(error).__name__
            raise DataError(
                f"{self._database}: cannot be read or written ({cause}); nothing was sent"
            ) from None
        except OSError as error:
            raise DataError(f"{self._database}: cannot be made ({error.strerror})") from None


# --- keys and requests -------------------------------------------------------------------------


def normal(pem: bytes) -> bytes:
    """Return the one PEM of a site's transport key (EC P-384): Flower compares bytes.

    Raises:
        DataError: it is no such key.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise DataError("expected a site's transport key (EC P-384, PEM), got something else")
    return public_key_to_bytes(key)


def authenticate(signed: Mapping[bytes, bytes], nodes: Mapping[bytes, int]) -> int:
    """Return the node whose key signed the time in the headers ``signed``, not long ago.

    Flower checks the same once more, and that the node is the one in the request.

    Raises:
        RefusedError: 401.
    """
    try:
        pem, stamp, signature = (signed[name] for name in SIGNED)
        public = b64decode(pem, validate=True)
        node = nodes[public]
        age = (now() - datetime.fromisoformat(stamp.decode("ascii"))).total_seconds()
        if -FAST_S < age < SLOW_S and verify_signature(
            _public(public), stamp, b64decode(signature, validate=True)
        ):
            return node
    except (KeyError, ValueError, TypeError):  # TypeError: a time without its zone
        pass
    raise RefusedError(401)


@lru_cache(maxsize=256)
def _public(pem: bytes) -> EllipticCurvePublicKey:
    return bytes_to_public_key(pem)


def read_node(path: str, body: bytes) -> int:
    """Return in which node's name a pull or a heartbeat is sent; RefusedError 400."""
    if path == PULL:
        return int(_parse(PullMessagesRequest, body).node.node_id)
    return int(_parse(SendNodeHeartbeatRequest, body).node.node_id)


def read_push(body: bytes) -> Pushed:
    """Return what a push says; RefusedError 400 when it is no answer of our own sites."""
    request = _parse(PushMessagesRequest, body)
    if len(request.messages_list) != 1:
        raise RefusedError(400)
    message = request.messages_list[0]
    failed = message.HasField("error") or not message.HasField("content")
    return Pushed(
        nodes=frozenset({request.node.node_id, message.metadata.src_node_id}),
        question=message.metadata.reply_to_message_id,
        payload=None if failed else _payload(message.content),
        code=message.error.code,
    )


def write_pull(sent: Envelope, payload: bytes) -> bytes:
    """Return the reply to a pull: the message and, inside it, what `client.app` reads."""
    value = ConfigRecord.Item(key=PAYLOAD, value=ConfigRecordValue(bytes=payload))
    record = RecordDict.Item(key=RECORD, config_record=ConfigRecord(items=[value]))
    message = Message(metadata=_metadata(sent), content=RecordDict(items=[record]))
    tree = ObjectTree(object_id=sent.name)
    response = PullMessagesResponse(messages_list=[message], message_object_trees=[tree])
    return bytes(response.SerializeToString())


def write_push(sent: Envelope) -> bytes:
    """Return a push as Flower gets it, an empty answer: no byte of it is the site's."""
    present = now().timestamp()
    reply = Message(
        metadata=Metadata(
            run_id=sent.run,
            message_id=sent.reply,
            src_node_id=sent.node,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=sent.name,
            ttl=max(1.0, sent.until - present),
            message_type=sent.kind,
            created_at=present,
        ),
        content=RecordDict(),
    )
    request = PushMessagesRequest(
        node=Node(node_id=sent.node),
        messages_list=[reply],
        message_object_trees=[ObjectTree(object_id=sent.reply)],
    )
    return bytes(request.SerializeToString())


def _metadata(sent: Envelope) -> Metadata:
    return Metadata(
        run_id=sent.run,
        message_id=sent.name,
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=sent.node,
        ttl=sent.until - sent.created,
        message_type=sent.kind,
        created_at=sent.created,
        src_task_id=sent.task,
    )


def _payload(content: RecordDict) -> bytes:
    """Return the payload of a content that holds nothing else."""
    if len(content.items) == 1 and content.items[0].key == RECORD:
        values = content.items[0].config_record.items
        if len(values) == 1 and values[0].key == PAYLOAD and values[0].value.HasField("bytes"):
            return bytes(values[0].value.bytes)
    raise RefusedError(400)


def _parse(kind: type[_Request], body: bytes) -> _Request:
    request = kind()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise RefusedError(400) from None
    return request


def _app(database: Path | None) -> FastAPI:
    """Return the SuperLink's app. What is not needed for a request is never started.

    It is made on memory and then given its state: otherwise its objects, which are empty here,
    would cost statements of SQL too.
    """
    config = SuperLinkLifespanConfig(
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation="process",
        superexec_auth_secret=secrets.token_bytes(32),  # nobody is told: executors have no door
        enable_supernode_auth=True,
        authn_plugin=NoOpControlAuthnPlugin(),
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        runtime_dependency_install=False,
        simulation=False,
        insecure=True,  # TLS is the gateway's
        control_address="",
        fleet_api_address=None,
        health_server_address=None,
        host="",
        port=0,
        certificates=None,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
    )
    app = create_app(config, SuperLinkLifespan)
    if database is not None:
        factory = LinkStateFactory(str(database), get_federation_manager(), ObjectStoreFactory())
        app.state.linkstate_factory = app.state.runtime_state_factory = factory
    return app
