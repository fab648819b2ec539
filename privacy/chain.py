"""What the rows of a site's ledger say: events and policies, each as one canonical text.

It opens no file: ``privacy.ledger`` keeps the rows, in a chain (``privacy.chainfile``).
"""

import hashlib
import json
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from privacy.accounting import Event
from privacy.chainfile import Link, changed
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


def row_of(link: Link) -> Row:
    """Return what a link of the ledger says, or raise PrivacyError: it is no entry."""
    try:
        entry = _ENTRY.validate_json(link.text)
    except ValueError:  # sound in itself, so another program wrote it
        raise changed("ledger", link.number) from None
    return Row(link.number, link.key, entry, link.digest)
