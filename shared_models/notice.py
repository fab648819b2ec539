"""The notice that ends a study at a site: why it ended, with which state, and what was released.

The server signs it and the state's bytes follow it. A site compares their hash with the state that
it computed itself; what it does when it has none is its own to decide. It opens no connection.
"""

import hashlib
import json
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from privacy.errors import ProtocolError
from privacy.keys import SIGNATURE_BYTES, Identity, verify
from shared_models.contract import Section
from shared_models.letters import Digest
from shared_models.study import GROUPS_MAX

KIND = "ended"  # of the message that carries it
NOTICE_BYTES_MAX = 1 << 20  # without the state: 17 times 64 figures of 600 bytes and less
_HEADER = b"fedward notice"  # no letter, no roster, no head and no message of FSA1 begins so
_LENGTH_BYTES = 4

Reason = Literal["finished", "early", "stopped"]
REASONS: dict[Reason, str] = {
    "finished": "all rounds are done",
    "early": "the released loss fell no further, and the study says to stop then",
    "stopped": "it could not go on; the model is that of the last round that was done",
}


class ReleasedFigure(Section):
    """One released metric with its 95 % limits; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int


FIGURES_MAX, NAME_MAX = 64, 80
# A study's columns are in some names, auc_NR-AR: any text that is one line.
Metric = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", max_length=NAME_MAX)]
Released = Annotated[dict[Metric, ReleasedFigure], Field(max_length=FIGURES_MAX)]


class Notice(Section):
    """What the server says at the end.

    Attributes:
        plan: digest of the plan that was run.
        reason: one of `REASONS`; what "stopped" a study is in the server's log.
        model: SHA-256 of the final state's bytes, as `shared_models.strategies.state_hash`.
        released: the figures of the last evaluation that was opened; none when there was none.
        subgroups: the same by group; None of a group too small to be told.
    """

    plan: Digest
    reason: Reason
    model: Digest
    released: Released
    subgroups: dict[str, Released | None] = Field(default_factory=dict, max_length=GROUPS_MAX)


def notable(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that a notice has room for: the first ones, whose names are one line."""
    fit = {name: one for name, one in figures.items() if len(name) <= NAME_MAX and _line(name)}
    return dict(islice(fit.items(), FIGURES_MAX))


def write_notice(identity: Identity, notice: Notice, state: bytes) -> bytes:
    """Return the message: signature, length of the notice (u32), the notice, the state.

    Raises:
        ValueError: the notice names another state.
    """
    if hashlib.sha256(state).hexdigest() != notice.model:
        raise ValueError("expected the state that the notice names, got another")
    text = _canonical(notice)
    length = len(text).to_bytes(_LENGTH_BYTES, "little")
    return identity.sign(_HEADER, text) + length + text + state


def read_notice(data: bytes, server: bytes, plan: bytes) -> tuple[Notice, bytes]:
    """Return the notice and the state's bytes, which are still to be read as a state.

    Args:
        data: the message.
        server: the pinned Ed25519 key.
        plan: digest of the approved plan, 32 bytes.

    Raises:
        ProtocolError: it is no notice, not signed by ``server``, of another plan, or its state is
            not the one that it names.
    """
    start = SIGNATURE_BYTES + _LENGTH_BYTES
    length = int.from_bytes(data[SIGNATURE_BYTES:start], "little")
    if len(data) < start or length > min(NOTICE_BYTES_MAX, len(data) - start):
        raise ProtocolError("expected the notice of a study's end, got other bytes; it was refused")
    text = data[start : start + length]
    if not verify(server, _HEADER, text, data[:SIGNATURE_BYTES]):
        raise ProtocolError("expected a notice under the pinned key, got another; it was refused")
    try:
        notice = Notice.model_validate_json(text)
    except (ValidationError, RecursionError):
        notice = None
    if notice is None or _canonical(notice) != text:
        raise ProtocolError("expected the notice of a study's end, got other bytes; it was refused")
    if notice.plan != plan.hex():
        raise ProtocolError("expected the end of the approved plan, got another's; it was refused")
    state = data[start + length :]
    if hashlib.sha256(state).hexdigest() != notice.model:
        raise ProtocolError("expected the state that the notice names, got another")
    return notice, state


def _line(text: str) -> bool:
    return bool(text) and not any(ord(one) < 32 or 127 <= ord(one) < 160 for one in text)


def _canonical(notice: Notice) -> bytes:
    return json.dumps(
        notice.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()
