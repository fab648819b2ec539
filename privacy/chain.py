"""The rows of a site's ledger as a chain: canonical texts, each hashed with the row before it.

It opens no file: ``privacy.ledger`` keeps the rows, in SQLite.
"""

import hashlib
import json
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from privacy.accounting import Event
from privacy.errors import PrivacyError
from privacy.heads import Head


class Adopted(BaseModel):
    """A policy that was in force from this row on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    policy: str = Field(min_length=1, max_length=100_000)  # its canonical text

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.policy.encode()).hexdigest()


Entry = Event | Adopted
_ENTRY: TypeAdapter[Entry] = TypeAdapter(
    Annotated[Entry, Field(union_mode="left_to_right")]  # events are the rule
)


class Row(NamedTuple):
    """One row as it stands in the ledger; ``digest`` covers it and every row before it."""

    number: int  # from 1
    key: str
    entry: Entry
    digest: str

    @property
    def head(self) -> Head:
        """The chain's end when this row was its last."""
        return Head(self.number, self.digest)


def canonical(entry: Entry) -> str:
    """Return the one JSON text of an entry: sorted keys, no spaces, shortest exact floats."""
    return json.dumps(entry.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)


def row_digest(previous: str, number: int, key: str, text: str) -> str:
    """Return SHA-256, in hex, of the previous digest and this row's canonical JSON."""
    row = json.dumps([number, key, text], separators=(",", ":"))
    return hashlib.sha256(bytes.fromhex(previous) + row.encode()).hexdigest()


def checked(values: tuple[object, ...], before: Head) -> Row:
    """Return the row after ``before``, or raise PrivacyError naming the first that is wrong."""
    number, key, text, digest = values
    expected = before.rows + 1
    if not isinstance(number, int) or number != expected:
        raise PrivacyError(f"expected ledger row {expected}, got row {number}: the chain is broken")
    if isinstance(key, str) and isinstance(text, str) and isinstance(digest, str):
        try:
            sound = row_digest(before.digest, number, key, text) == digest
            if sound:
                return Row(number, key, _ENTRY.validate_json(text), digest)
        except ValueError:  # a digest that is no hex, or an event of another shape
            pass
    raise PrivacyError(f"expected the digest of ledger row {number} to hold, got a changed row")
