"""What the coordinator keeps between two rounds: model, strategy state, history; atomic on disk.

Vectors are safetensors, the rest JSON. It holds sums and what follows from them, never one site's.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from privacy.errors import DataError, ProtocolError
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
    """

    digest: str
    state: State
    history: tuple[Row, ...]
    spent_attempts: int = 0
    stopped: bool = False


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a crash at any point leaves this one or the one before.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        blob = state_bytes(checkpoint.state)
        name = f"round-{checkpoint.state.round:06d}.safetensors"
        write_durably(folder / name, blob)
        document = {
            "study_digest": checkpoint.digest,
            "round": checkpoint.state.round,
            "state": name,
            "sha256": hashlib.sha256(blob).hexdigest(),
            "history": [dict(row) for row in checkpoint.history],
            "spent_attempts": checkpoint.spent_attempts,
            "stopped": checkpoint.stopped,
        }
        # The JSON names the vectors that belong to it: replacing it is the one moment of change.
        write_durably(folder / "checkpoint.json", json.dumps(document).encode())
        for old in folder.glob("round-*.safetensors"):
            if old.name != name:
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
    except (OSError, ValueError, KeyError, TypeError, ProtocolError) as error:
        raise DataError(
            f"{path}: expected a checkpoint of this study, found a damaged one",
            "start again in another folder",
        ) from error


def write_durably(path: Path, content: bytes) -> None:
    """Write a file aside, sync it, rename it over ``path`` and sync the folder."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
