"""The Flower adapter of the client: message kinds in, bytes to the site's answer, bytes out.

All that a site decides is elsewhere; this file only knows how Flower carries it.
"""

import logging
import os
from collections.abc import Callable, Sequence

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported: it phones nobody
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from privacy.errors import FedwardError
from shared_models.transport import PAYLOAD, RECORD

# answer(kind, node id, message) -> reply; raises FedwardError to refuse.
Answer = Callable[[str, int, bytes], bytes]

_LOG = logging.getLogger("fedward.site")


def make_app(
    kinds: Sequence[str], answer: Answer, log: Callable[[Exception], None] | None = None
) -> ClientApp:
    """Return a ClientApp that answers ``query.<kind>`` for each of ``kinds`` and nothing else.

    A refusal travels as its exit code alone: no text of a site leaves it. Its reason goes to the
    site's log, the logger ``fedward.site``.

    Args:
        kinds: what is answered.
        answer: the site, or in a simulation the sites.
        log: keeps a bug's text at the site, and the server gets code 1. None lets a bug through:
            Flower would send its text on, so only a simulation, which is the site, does that.
    """
    app = ClientApp()

    def respond(kind: str) -> Callable[[Message, Context], Message]:
        def handler(message: Message, context: Context) -> Message:
            del context
            record = message.content.get(RECORD)
            payload = record.get(PAYLOAD) if isinstance(record, ConfigRecord) else None
            if not isinstance(payload, bytes):
                return Message(Error(code=2, reason="refused"), reply_to=message)
            try:
                reply = answer(kind, message.metadata.dst_node_id, payload)
            except FedwardError as error:
                _LOG.warning("%s was refused: %s", kind, error)
                return Message(Error(code=error.exit_code, reason="refused"), reply_to=message)
            except Exception as bug:
                if log is None:
                    raise
                log(bug)
                return Message(Error(code=1, reason="refused"), reply_to=message)
            return Message(RecordDict({RECORD: ConfigRecord({PAYLOAD: reply})}), reply_to=message)

        return handler

    for kind in kinds:
        app.query(kind)(respond(kind))
    return app
