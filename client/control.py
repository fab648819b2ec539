"""A site's SCAFFOLD control variate on disk: one file a round, the last two kept.

Two, because a round that is run again after a crash must start from the one before it.
"""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from privacy.errors import DataError
from shared_models.weights import Vector32


def load_control(folder: Path, number: int, parameters: int) -> Vector32:
    """Return (P,) the control variate before round ``number``; zeros before the first.

    Raises:
        DataError: the file is damaged or of another network.
    """
    stored = [path for path in _files(folder) if _round(path) < number]
    if not stored:
        return np.zeros(parameters, dtype=np.float32)
    try:
        control = safetensors.numpy.load_file(stored[-1])["control"]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise DataError(f"{stored[-1]}: expected a control variate; nothing was sent") from error
    if control.shape != (parameters,) or control.dtype != np.float32:
        raise DataError(f"{stored[-1]}: expected {parameters} float32 values; nothing was sent")
    return control


def store_control(folder: Path, number: int, control: Vector32) -> None:
    """Keep (P,) the control variate after round ``number``; forget all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"control-{number:06d}.safetensors"
    aside = path.with_suffix(".new")
    aside.write_bytes(safetensors.numpy.save({"control": control}))
    aside.replace(path)
    for old in _files(folder)[:-2]:
        old.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("control-*.safetensors"), key=_round)


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("control-"))
