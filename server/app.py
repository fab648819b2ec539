"""The Flower adapter of the server: an exchange of bytes with named sites, over a Grid.

It reads no payload; a refused or missing answer is simply not among the answers.
"""

import os
from collections.abc import Iterator, Mapping

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported: it phones nobody
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.rounds import Exchange
from shared_models.transport import PAYLOAD, RECORD


def make_exchange(grid: Grid, nodes: Mapping[str, int]) -> Exchange:
    """Return an exchange with the sites of ``nodes`` (name to Flower node id).

    Messages are built when the grid asks for them and answers are passed on as they arrive, so
    that neither is ever held for all sites at once.
    """
    names = {node: name for name, node in nodes.items()}

    def exchange(
        kind: str, outgoing: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        messages = _messages(f"query.{kind}", outgoing, nodes)
        answered: set[str] = set()
        for reply in grid.send_and_receive(messages, timeout=deadline_s):
            if reply.has_error():
                continue
            record = reply.content.get(RECORD)
            payload = record.get(PAYLOAD) if isinstance(record, ConfigRecord) else None
            site = names.get(reply.metadata.src_node_id)
            if not isinstance(payload, bytes) or site is None or site not in outgoing:
                continue
            if site not in answered:  # the first answer counts
                answered.add(site)
                yield site, payload

    return exchange


def _messages(
    kind: str, outgoing: Mapping[str, bytes], nodes: Mapping[str, int]
) -> Iterator[Message]:
    last, content = None, RecordDict()
    for site, payload in outgoing.items():
        # Most rounds send one and the same object to all sites: it is wrapped once.
        if payload is not last:
            last, content = payload, RecordDict({RECORD: ConfigRecord({PAYLOAD: payload})})
        yield Message(content, nodes[site], kind)
