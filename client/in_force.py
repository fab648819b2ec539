"""The policy that debits are made under, as the ledger has it, beside the one in the file.

It adopts nothing: `fedward-site start` does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from rich.console import Console

from client.budget import verified_rows
from client.folder import POLICY
from client.policy import load_policy
from privacy.chain import Adopted


@dataclass(frozen=True)
class InForce:
    """A site's policy.

    Attributes:
        policy: what is in force, or what the file says while the ledger has none: every key.
        digest: SHA-256 of its canonical JSON, in hexadecimal.
        row: of the ledger, that has it; None while the ledger has none.
        file_digest: of the policy in the file; None where there is no file.
        changes: keys that the file has otherwise, each with the value in force and in the file.
    """

    policy: Mapping[str, object]
    digest: str
    row: int | None
    file_digest: str | None
    changes: Mapping[str, tuple[object, object]]

    @property
    def differs(self) -> bool:
        """Whether the file is another policy than the one in force."""
        return self.digest != self.file_digest

    def document(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "policy": dict(self.policy),
            "digest": self.digest,
            "ledger_row": self.row,
            "file_differs": self.differs,
            "file_digest": self.file_digest,
            "changes": {
                key: {"in_force": old, "file": new} for key, (old, new) in self.changes.items()
            },
        }


def read_in_force(folder: Path) -> InForce:
    """Return the policy of a site's folder, its ledger verified.

    Raises:
        DataError: the file is no policy, or there is neither a file nor a policy in the ledger.
        PrivacyError: the ledger was changed or cut.
    """
    last = next(
        (row for row in reversed(verified_rows(folder)) if isinstance(row.entry, Adopted)), None
    )
    lost = last is not None and not (folder / POLICY).exists()
    filed = None if lost else load_policy(folder / POLICY)
    digest = None if filed is None else filed.digest()
    written: Mapping[str, object] = {} if filed is None else json.loads(filed.canonical())
    if last is None or not isinstance(last.entry, Adopted):
        return InForce(written, digest or "", None, digest, {})
    adopted: Mapping[str, object] = json.loads(last.entry.policy)
    old, new = _flat(adopted), _flat(written)
    changes = {
        key: (old.get(key), new.get(key))
        for key in (*old, *new)
        if filed is not None and old.get(key) != new.get(key)
    }
    return InForce(adopted, last.entry.digest, last.number, digest, changes)


def show_in_force(found: InForce, console: Console, words: Console) -> None:
    """Print the policy as TOML to ``console``, and where the file differs to ``words``."""
    since = "not written down yet" if found.row is None else f"in force since row {found.row}"
    console.out(f"# {since}; digest {found.digest}", highlight=False)
    console.out(tomli_w.dumps(_said(found.policy)).strip(), highlight=False)
    if found.row is None:
        words.out("The ledger has no policy yet: `fedward-site start` writes this one down.")
    if found.file_digest is None:
        words.out(f"{POLICY} is missing: write what is printed here back into it.")
    if not found.differs or found.file_digest is None:
        return
    words.out(f"{POLICY} differs from what is in force:", highlight=False)
    for key, (old, new) in found.changes.items():
        words.out(f"  {key}: {_value(old)} in force, {_value(new)} in the file", highlight=False)
    words.out("No debit is made until `fedward-site start` has written the file down.")


def _flat(document: Mapping[str, object], inside: str = "") -> dict[str, object]:
    """Return the values by their dotted keys."""
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{inside}{key}.")
        else:
            flat[f"{inside}{key}"] = value
    return flat


def _said(document: Mapping[str, object]) -> dict[str, object]:
    """Return the document without what it leaves open, which TOML cannot write."""
    return {
        key: _said(value) if isinstance(value, Mapping) else value
        for key, value in document.items()
        if value is not None
    }


def _value(value: object) -> str:
    return "nothing" if value is None else json.dumps(value)
