"""What we use of Flower beyond its public interface, so that a new Flower says what it changed.

The names are read from our own adapters: nothing here has to be kept in step by hand.
"""

import ast
import dataclasses
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import flwr
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.common import constant
from flwr.proto import error_pb2, fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, recorddict_pb2
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore import constant as core
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ("server/superlink.py", "client/fleet.py", "server/app.py", "client/app.py")
VERSION = f"flwr {flwr.__version__}"


def used(path: str) -> list[tuple[str, str, str]]:
    """Every name that a file of ours takes from Flower."""
    return [
        (path, node.module, alias.name)
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr"
        for alias in node.names
        if node.module is not None
    ]


NAMES = [one for path in ADAPTERS for one in used(path)]


def missing(path: str, module: str, name: str) -> str | None:
    try:
        found = importlib.import_module(module)
    except ImportError:
        return f"{VERSION} has no module {module}, of which {path} uses {name}"
    if not hasattr(found, name):
        return f"{VERSION} has no {module}.{name}, which {path} uses"
    return None


def test_flower_has_every_name_that_we_use() -> None:
    assert len(NAMES) > 40  # else the adapters were not read
    assert [line for one in NAMES if (line := missing(*one))] == []


def test_a_missing_name_is_told() -> None:
    assert missing("client/fleet.py", "flwr.app", "Gone") == (
        f"{VERSION} has no flwr.app.Gone, which client/fleet.py uses"
    )
    assert missing("client/fleet.py", "flwr.gone", "X") == (
        f"{VERSION} has no module flwr.gone, of which client/fleet.py uses X"
    )


CALLS: dict[object, dict[str, list[str]]] = {
    LinkState: {
        "create_node": ["owner_aid", "owner_name", "public_key", "heartbeat_interval"],
        "delete_node": ["owner_aid", "node_id"],
        "activate_node": ["node_id", "heartbeat_interval"],
        "deactivate_node": ["node_id"],
        "get_node_info": ["statuses"],
        "store_message_ins": ["message"],
        "delete_messages": ["message_ins_ids"],
        "delete_sessions_in_run": ["run_id"],
        "create_run": [
            "fab_id",
            "fab_version",
            "fab_hash",
            "override_config",
            "federation_id",
            "federation_config",
            "flwr_aid",
            "primary_task_type",
        ],
        "get_run_info": ["run_ids", "statuses"],
        "claim_task": ["task_id"],
        "activate_task": ["task_id"],
        "acknowledge_task_heartbeat": ["task_id"],
        "finish_task": ["task_id", "sub_status", "details"],
        "cleanup_run": ["run_id"],
    },
    ObjectStore: {"preregister": ["run_id", "object_tree"], "delete": ["object_id"]},
}


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [(owner, name, words) for owner, calls in CALLS.items() for name, words in calls.items()],
)
def test_flower_takes_what_we_pass(owner: type, name: str, parameters: list[str]) -> None:
    method = getattr(owner, name, None)
    assert method is not None, f"{VERSION}: {owner.__name__} has no {name}"
    taken = inspect.signature(method).parameters
    gone = [word for word in parameters if word not in taken]
    assert not gone, f"{VERSION}: {owner.__name__}.{name} no longer takes {gone}"
    needed = [
        word
        for word, one in taken.items()
        if one.default is inspect.Parameter.empty and word not in (*parameters, "self")
    ]
    assert not needed, f"{VERSION}: {owner.__name__}.{name} also needs {needed}"


def test_the_superlink_is_configured_by_the_fields_that_we_set() -> None:
    tree = ast.parse((ROOT / "server/superlink.py").read_text())
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "SuperLinkLifespanConfig"
    )
    ours = {keyword.arg for keyword in call.keywords}
    theirs = {one.name for one in dataclasses.fields(SuperLinkLifespanConfig)}
    assert ours == theirs, f"{VERSION}: its configuration changed by {sorted(ours ^ theirs)}"
    assert list(inspect.signature(create_app).parameters) == ["config", "superlink_lifespan_class"]


FIELDS = {
    node_pb2.Node: ["node_id"],
    error_pb2.Error: ["code", "reason"],
    message_pb2.Message: ["metadata", "content", "error"],
    message_pb2.Metadata: [
        "run_id",
        "message_id",
        "src_node_id",
        "dst_node_id",
        "reply_to_message_id",
        "ttl",
        "message_type",
        "created_at",
        "src_task_id",
    ],
    message_pb2.ObjectTree: ["object_id"],
    recorddict_pb2.RecordDict: ["items"],
    recorddict_pb2.RecordDict.Item: ["key", "config_record"],
    recorddict_pb2.ConfigRecord: ["items"],
    recorddict_pb2.ConfigRecord.Item: ["key", "value"],
    recorddict_pb2.ConfigRecordValue: ["bytes"],
    fleet_pb2.PullMessagesRequest: ["node"],
    fleet_pb2.PullMessagesResponse: ["messages_list", "message_object_trees"],
    fleet_pb2.PushMessagesRequest: ["node", "messages_list", "message_object_trees"],
    heartbeat_pb2.SendNodeHeartbeatRequest: ["node", "heartbeat_interval"],
}


@pytest.mark.parametrize(
    ("message", "fields"), FIELDS.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_the_wire_has_the_fields_that_we_use(message: type, fields: list[str]) -> None:
    theirs = message.DESCRIPTOR.fields_by_name  # type: ignore[attr-defined]
    gone = [name for name in fields if name not in theirs]
    assert not gone, f"{VERSION}: {message.__name__} has no {gone}"


def test_the_fleet_has_the_routes_that_we_use() -> None:
    from client.fleet import BEAT, PULL, PUSH
    from server import superlink

    assert (superlink.PULL, superlink.PUSH, superlink.BEAT) == (PULL, PUSH, BEAT)
    for path, request in {
        PULL: fleet_pb2.PullMessagesRequest,
        PUSH: fleet_pb2.PushMessagesRequest,
        BEAT: heartbeat_pb2.SendNodeHeartbeatRequest,
    }.items():
        assert PROTOBUF_REQUEST_TYPES.get(("POST", path)) is request, f"{VERSION}: no {path}"


def test_flowers_numbers_are_those_that_we_count_with() -> None:
    from client import fleet
    from server import superlink

    assert (constant.TIMESTAMP_TOLERANCE, constant.SYSTEM_TIME_TOLERANCE) == (300, 5), VERSION
    assert fleet.FAST_S < superlink.FAST_S
    assert fleet.SLOW_S < superlink.SLOW_S
    assert constant.HEARTBEAT_MIN_INTERVAL <= fleet.BEAT_S <= constant.HEARTBEAT_MAX_INTERVAL
    patience = constant.HEARTBEAT_PATIENCE * constant.HEARTBEAT_DEFAULT_INTERVAL
    assert patience / 2 > superlink.RUN_BEAT_S, VERSION
    assert constant.SUPERLINK_NODE_ID == 1, VERSION
    headers = (core.FLEET_HTTP_PUBLIC_KEY_HEADER, core.FLEET_HTTP_SIGNATURE_HEADER)
    assert all(name == name.lower() for name in (*headers, constant.TIMESTAMP_HEADER)), VERSION


def test_a_reply_needs_no_identity_of_a_task() -> None:
    """What `client.app` does with a message that `client.fleet` read."""
    asked = Message(
        content=RecordDict(),
        metadata=Metadata(5, "name", 1, 7, "", "", 1.8e9, 60.0, "query.echo", 3),
    )
    for answer in (RecordDict({"fedward": ConfigRecord({"payload": b"x"})}), Error(3, "refused")):
        reply = Message(answer, reply_to=asked)
        assert reply.metadata.reply_to_message_id == "name"
        assert reply.metadata.src_node_id == 7


@pytest.mark.parametrize("modules", ["client.app, client.fleet", "server.superlink"])
def test_flower_phones_nobody(modules: str, tmp_path: Path) -> None:
    """In a fresh interpreter, whatever is imported first and whatever the environment says."""
    script = (
        f"import {modules}\n"
        "from flwr.supercore import telemetry, update_check\n"
        "import os\n"
        "assert telemetry.FLWR_TELEMETRY_ENABLED == '0'\n"
        "assert os.getenv(update_check.FLWR_DISABLE_UPDATE_CHECK) == '1'\n"
    )
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "1", "FLWR_DISABLE_UPDATE_CHECK": "0"}
    subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, timeout=120
    )


def test_flower_is_told_a_home_inside_our_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", "restored when this is over")
    from flwr.supercore.utils import get_flwr_home

    from server.superlink import SuperLink

    link = SuperLink(None, tmp_path / "flower")
    assert get_flwr_home() == tmp_path / "flower"
    link.close()
    assert not (tmp_path / "flower").exists()
