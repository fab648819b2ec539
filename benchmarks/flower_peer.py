"""Flower's SecAgg+ in one process: its own workflow and client modifier, cut into timed pieces.

A round is recorded once and its messages are replayed. Nothing of Flower is changed but who carries
them; the strategy does nothing, so what would follow the sum is not timed.
"""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
    Key,
    Stage,
)
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.compat.common import recorddict_compat
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.task_identity import TaskIdentity

MODULUS = 2**32  # the workflow's default
WEIGHT = 1000  # examples of each client: as many as the workflow's default allows

Vector = npt.NDArray[np.float32]


class Flower:
    """n clients and a server, their messages of one round recorded."""

    def __init__(self, n: int, vector: Callable[[int], Vector], value_bound: float) -> None:
        """Run a round, in which nobody drops out, and check its mean.

        Args:
            n: clients, all of which are each other's neighbours; 7 of 10 shares open a secret.
            vector: of each client, (P,) by its number.
            value_bound: clipping range.
        """
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
        logging.getLogger("flwr").setLevel(logging.ERROR)
        self._n, self._vector = n, vector
        self._workflow = SecAggPlusWorkflow(1.0, 0.7, clipping_range=value_bound)
        self._clients = {node: _Client(vector(node - 1)) for node in range(1, n + 1)}
        self._replies: dict[tuple[str, int, int], Message] = {}  # stage, node, dropped
        self._mean = np.zeros(0, dtype=np.float32)
        self.server()
        exact = np.mean([vector(index)[:100] for index in range(n)], axis=0)
        if not np.abs(self._mean[:100] - exact).max() < 1e-5 * value_bound:  # a step is 5e-7
            raise RuntimeError("expected the mean of the vectors from Flower, got another")

    def client(self) -> float:
        """Time one client's four stages, less its training."""
        return sum(self._clients[1].again(stage) for stage in Stage.all())

    def masks(self) -> float:
        """Time what its third stage does to mask quantised values, by the same functions."""
        quantised = [np.zeros(self._vector(0).size, dtype=np.int32)]
        seeds = [os.urandom(32) for _ in range(self._n)]
        shapes: list[tuple[int, ...]] = [one.shape for one in quantised]
        began = time.process_time()
        masked = parameters_addition(quantised, pseudo_rand_gen(seeds[0], MODULUS, shapes))
        for index, seed in enumerate(seeds[1:]):
            fold = parameters_addition if index % 2 else parameters_subtraction
            masked = fold(masked, pseudo_rand_gen(seed, MODULUS, shapes))
        parameters_mod(masked, MODULUS)
        return time.process_time() - began

    def server(self, dropped: int = 0) -> float:
        """Time the workflow, less its clients; ``dropped`` of them never send their vector."""
        self._away = 0.0
        exchange: Any = SimpleNamespace(send_and_receive=partial(self._exchange, dropped))
        context = self._context()
        began = time.process_time()
        self._workflow(exchange, context)
        return time.process_time() - began - self._away

    @property
    def upload_bytes(self) -> int:
        """Bytes of the masked vector of a client."""
        reply: Any = self._replies[Stage.COLLECT_MASKED_VECTORS, 1, 0].content[RECORD_KEY_CONFIGS]
        return sum(len(part) for part in reply[Key.MASKED_PARAMETERS])

    def _exchange(self, dropped: int, messages: list[Message], timeout: None) -> list[Message]:
        """Return the replies, each computed once."""
        del timeout
        began = time.process_time()
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
            late = stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK)
            if late and node > self._n - dropped:
                continue
            key = (str(stage), node, dropped if stage == Stage.UNMASK else 0)
            if key not in self._replies:
                self._replies[key] = self._clients[node].answer(message)
            replies.append(self._replies[key])
        self._away += time.process_time() - began
        return replies

    def _context(self) -> LegacyContext:
        none = ndarrays_to_parameters([np.zeros(1, dtype=np.float32)])
        proxies = [SimpleNamespace(node_id=node) for node in self._clients]
        strategy: Any = SimpleNamespace(
            configure_fit=lambda *_: [(proxy, FitIns(none, {})) for proxy in proxies],
            aggregate_fit=self._aggregate,
        )
        state = RecordDict(
            {
                MAIN_CONFIGS_RECORD: ConfigRecord({WorkflowKey.CURRENT_ROUND: 1}),
                MAIN_PARAMS_RECORD: recorddict_compat.parameters_to_arrayrecord(none, True),
            }
        )
        manager: Any = SimpleNamespace(num_available=lambda: self._n)
        context = Context(1, 0, {}, state, {})
        return LegacyContext(context, strategy=strategy, client_manager=manager)

    def _aggregate(self, number: int, results: Any, failures: Any) -> tuple[None, dict[str, Any]]:
        del number
        if failures or not results:
            raise RuntimeError("expected a sum from Flower")
        if not self._mean.size:
            self._mean = parameters_to_ndarrays(results[0][1].parameters)[0]
        return None, {}


class _Client:
    """One client: the modifier around an application that returns its vector."""

    def __init__(self, vector: Vector) -> None:
        self._parameters = ndarrays_to_parameters([vector])
        self._state: dict[str, Any] = {}
        self._asked: dict[str, tuple[Message, dict[str, Any]]] = {}  # and the state before
        self._away = 0.0

    def answer(self, message: Message) -> Message:
        """Answer a message and go on to the next stage."""
        stage = str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
        if stage == Stage.UNMASK:  # asked once for each number of dropped clients
            self._state = self._asked.get(stage, (message, self._state))[1]
        self._asked[stage] = (_copy(message), dict(self._state))
        reply, self._state = self._run(message, self._state)
        return reply

    def again(self, stage: str) -> float:
        """Time the answer to a recorded message, less training."""
        message, state = self._asked[stage]
        message, self._away = _copy(message), 0.0
        began = time.process_time()
        self._run(message, state)
        return time.process_time() - began - self._away

    def _run(self, message: Message, state: dict[str, Any]) -> tuple[Message, dict[str, Any]]:
        records = RecordDict({RECORD_KEY_STATE: ConfigRecord(dict(state))} if state else {})
        context = Context(1, 1, {}, records, {})
        reply = secaggplus_mod(_copy(message), context, self._train)
        return reply, dict(records.config_records[RECORD_KEY_STATE])

    def _train(self, message: Message, context: Context) -> Message:
        del context
        began = time.process_time()
        result = FitRes(Status(Code.OK, ""), self._parameters, WEIGHT, {})
        content = recorddict_compat.fitres_to_recorddict(result, True)
        reply = Message(content, reply_to=message)
        self._away += time.process_time() - began
        return reply


def _copy(message: Message) -> Message:
    """Return a message of its own: the modifier takes the stage out of what it is given."""
    records = {
        name: ConfigRecord(dict(record)) if isinstance(record, ConfigRecord) else record
        for name, record in message.content.items()
    }
    meta = message.metadata
    copy = Message(RecordDict(records), meta.dst_node_id, meta.message_type)
    copy.metadata.__dict__["_message_id"] = "1"  # a reply names the message it answers
    return copy
