"""The proof of what a site did: its log, verified, and what left the building under which approval.

It changes nothing and asks nobody. Whoever else has signed the log's end is compared with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client import folder as names
from client.journal import Journal, Note, ledger_ends
from client.screen import say
from privacy import identity as identities
from privacy.chain import Row
from privacy.errors import DataError, PrivacyError
from privacy.heads import Head, Heads, SignedHead
from privacy.ledger import Ledger
from shared_models.fingerprint import fingerprint

_DIGEST = 12  # characters of a digest that tell it from others on a screen
_UNSIGNED = "Nobody has signed an end of this log yet: nothing was approved."
_MESSAGES = {  # by the question that they answer: section 2 of the protocol
    "hello": "keys of a run",
    "roster": "part of a group key",
    "group": "receipt",
    "start": "shares of keys",
    "cohort": "masked vector",
    "survivors": "who is summed",
    "unmask": "shares of masks",
    "result": "receipt",
    "ended": "receipt of the end",
}
_LETTERS = {
    "look": "letter: question",
    "enrol": "letter: enrolment",
    "approve": "letter: approval",
    "leave": "letter: farewell",
}


@dataclass(frozen=True)
class Audit:
    """A log that holds.

    Attributes:
        notes: all rows.
        head: the end of the chain.
        signed: what the coordinator has signed of this log: the end that it has seen last.
        peers: the ends of other hospitals' logs that were seen here, by their six words: each
            signed by its own hospital, and passed on by the coordinator.
        debits: rows of the ledger, whose end the log names with every message.
        approved: whether anything was approved here, after which ends of the log are signed.
    """

    notes: tuple[Note, ...]
    head: Head
    signed: Head | None
    peers: dict[str, Head]
    debits: int
    approved: bool

    @property
    def sent(self) -> tuple[Note, ...]:
        """The messages and letters that left."""
        return tuple(note for note in self.notes if note.kind in ("sent", "letter"))

    @property
    def warning(self) -> str:
        """What this verdict cannot say; empty when there is nothing to warn of."""
        if self.signed is not None or not self.approved:
            return ""
        return (
            "no end of this log that the coordinator has signed is here to compare with, although "
            "a plan was approved: that rows were cut from its end would not show. `fedward-site "
            "start` asks the coordinator for it as long as the study runs."
        )

    def document(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "rows": self.head.rows,
            "head": self.head.digest,
            "signed_rows": None if self.signed is None else self.signed.rows,
            "warning": self.warning or None,
            "peers": {
                words: {"rows": head.rows, "head": head.digest}
                for words, head in self.peers.items()
            },
            "ledger_rows": self.debits,
            "bytes_sent": _bytes(self.sent),
            "notes": [
                {"row": one.number, "time": one.time, "kind": one.kind, **one.facts}
                for one in self.notes
            ],
        }


def read_audit(folder: Path) -> Audit:
    """Verify the log and the ledger of a site's folder, and return what they say.

    Raises:
        DataError: there is no log.
        PrivacyError: the first wrong row is named: changed, removed, or shorter than what others
            have signed; or the ledger does not go through an end that the log names.
    """
    path = folder / names.JOURNAL
    if not path.exists():
        raise DataError(
            f"{folder}: expected the folder of a site, found no log in it",
            "`fedward-site enrol` begins one",
        )
    own = identities.load(folder / names.IDENTITY).public
    heads: list[SignedHead] = []
    if (folder / names.LOGS).exists():
        with Heads(folder / names.LOGS) as file:
            heads = file.all()
    ends = [one.head for one in heads if one.owner == own]
    with Journal(path) as journal:
        head = journal.verify(*ends)
        notes = tuple(journal.rows())
    return Audit(
        notes=notes,
        head=head,
        signed=max(ends, default=None),
        peers={
            fingerprint(one.owner): one.head
            for one in heads
            if one.owner != own and one.signer == one.owner
        },
        debits=len(_ledger(folder, notes)),
        approved=(folder / names.APPROVAL).exists()
        or any(note.kind in ("approve", "sent") for note in notes),
    )


def _ledger(folder: Path, notes: Sequence[Note]) -> list[Row]:
    """Return the ledger's rows, once they go through every end that the log names."""
    ends = ledger_ends(notes)
    if not (folder / names.LEDGER).exists():
        if ends:
            raise PrivacyError(
                f"{folder / names.LEDGER}: expected the ledger that the log names, found none"
            )
        return []
    with Ledger(folder / names.LEDGER) as ledger:
        ledger.verify(*ends)
        return ledger.rows()


def show_audit(audit: Audit, console: Console, words: Console) -> None:
    """Print decisions and messages, and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("row", "when (UTC)", "round", "what", "bytes", "approval"):
        table.add_column(
            title,
            justify="right" if title in ("row", "round", "bytes") else "left",
            no_wrap=title != "what",
        )
    for note in audit.notes:
        facts = note.facts
        what = _decision(note)
        size = f"{int(str(facts['bytes'])):,}" if "bytes" in facts else ""
        plan = str(facts.get("approval", facts.get("plan", "")))
        when = note.time.removesuffix("+00:00").replace("T", " ")
        number = str(facts.get("round") or "")
        table.add_row(str(note.number), when, number, Text(what), size, plan[:_DIGEST])
    console.print(table)
    lines = [
        f"{len(audit.sent)} messages left, {_bytes(audit.sent):,} bytes in all. Not counted: while "
        "waiting or at work, signed questions for news, with the end of this log and signs of "
        "life; and the made numbers by which `doctor` and each start try the way.",
        f"The log holds: {_rows(audit.head.rows)}, end {audit.head.digest}.",
        f"The ledger holds, and goes through every end that the log names: {_rows(audit.debits)}.",
    ]
    if audit.signed is not None:
        lines.append(f"The coordinator has signed it up to row {audit.signed.rows}.")
    else:
        lines.append(f"Warning: {audit.warning}" if audit.warning else _UNSIGNED)
    lines += [
        f"Seen of the log of {peer}: {_rows(head.rows)}, end {head.digest[:_DIGEST]}."
        for peer, head in audit.peers.items()
    ]
    for line in lines:
        say(words, line)


def _decision(note: Note) -> str:
    facts = note.facts
    if note.kind == "sent":
        return f"sent: {_MESSAGES[str(facts['message'])]}"
    if note.kind == "letter":
        return f"sent: {_LETTERS[str(facts['letter'])]}"
    if note.kind == "refused":
        return f"refused: {facts['message']} (code {facts['code']})"
    if note.kind == "approve":
        names_ = facts["confirmed"]
        said = ", ".join(names_) if isinstance(names_, list) and names_ else "nobody"
        return f"approved; confirmed: {said}"
    if note.kind == "roster":
        revoked = facts["revoked"]
        out = f", without {', '.join(revoked)}" if isinstance(revoked, list) and revoked else ""
        return f"roster version {facts['version']}{out}"
    if note.kind == "ended":
        return f"the study ended: {facts['reason']}"
    return {"enrol": "enrolled", "policy": "policy in force", "leave": "left"}[note.kind]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _bytes(notes: Sequence[Note]) -> int:
    return sum(int(str(note.facts["bytes"])) for note in notes)
