"""What the coordinator keeps between two rounds: model, strategy state, history; atomic on disk.

Vectors are safetensors, the rest JSON. It holds sums and what follows from them, never one site's.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privacy.errors import DataError, ProtocolError
from shared_models.durable import write_durably
from shared_models.strategies import State, read_state, state_bytes

Row = Mapping[str, object]  # plain JSON


@dataclass(frozen=True)
class Checkpoint:
    """A study between two rounds.

    Attributes:
        digest: of the study.
        state: model and strategy state after the last round.
        history: one row a round, oldest first.
        spent_attempts: attempts that ended without a sum, so far.
        stopped: early stopping has ended the study.
        before: the study before the last sum, which may have to be taken back; it has none itself.
    """

    digest: str
    state: State
    history: tuple[Row, ...]
    spent_attempts: int = 0
    stopped: bool = False
    before: "Checkpoint | None" = None


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a crash at any point leaves this one or the one before.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        both = [one for one in (checkpoint, checkpoint.before) if one is not None]
        documents, files = [], {}
        for one in both:
            blob = state_bytes(one.state)
            digest = hashlib.sha256(blob).hexdigest()
            # A round that is run again leads to another state: so the name has the state's hash.
            name = f"round-{one.state.round:06d}-{digest[:16]}.safetensors"
            files[name] = blob
            documents.append(
                {
                    "study_digest": one.digest,
                    "round": one.state.round,
                    "state": name,
                    "sha256": digest,
                    "history": [dict(row) for row in one.history],
                    "spent_attempts": one.spent_attempts,
                    "stopped": one.stopped,
                }
            )
        for name, blob in files.items():
            if not (folder / name).exists():
                write_durably(folder / name, blob)
        # The JSON names the vectors that belong to it: replacing it is the one moment of change.
        document = {**documents[0], "before": documents[1:]}
        write_durably(folder / "checkpoint.json", json.dumps(document).encode())
        for old in folder.glob("round-*.safetensors"):
            if old.name not in files:
                old.unlink()
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error


def load(folder: Path, parameters: int) -> Checkpoint | None:
    """Return the last checkpoint of a folder, or None when it has none.

    Raises:
        DataError: the folder holds a damaged checkpoint.
    """
    path = folder / "checkpoint.json"
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_bytes())
        before = [_read(folder, one, parameters) for one in document["before"]]
        now = _read(folder, document, parameters)
        return replace(now, before=before[0] if before else None)
    except (OSError, ValueError, KeyError, TypeError, ProtocolError) as error:
        raise DataError(
            f"{path}: expected a checkpoint of this study, found a damaged one",
            "start again in another folder",
        ) from error


def _read(folder: Path, document: Any, parameters: int) -> Checkpoint:
    """Return one of the two checkpoints of a document; errors are for `load` to name."""
    blob = (folder / document["state"]).read_bytes()
    if hashlib.sha256(blob).hexdigest() != document["sha256"]:
        raise DataError(f"{folder / document['state']}: expected the checkpoint's SHA-256")
    return Checkpoint(
        digest=document["study_digest"],
        state=read_state(blob, parameters),
        history=tuple(document["history"]),
        spent_attempts=document["spent_attempts"],
        stopped=document["stopped"],
    )
