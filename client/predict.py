"""A model taken home, used on local records: predictions, and figures where the answer is known.

Records and predictions stay on this machine. It trains nothing and asks nobody.
"""

import csv
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from client.data.read import read_records
from client.data.records import Records
from client.screen import say
from privacy.errors import DataError, FedwardError
from shared_models import wording
from shared_models.contract import MaskColumn
from shared_models.durable import write_durably
from shared_models.inputs import records_at_once
from shared_models.mask import Mask
from shared_models.metrics import Figure
from shared_models.model_file import DESCRIPTION, MODEL
from shared_models.registry import build_network
from shared_models.study import Study, parse_study
from shared_models.tasks import target_of

DESCRIPTION_BYTES_MAX = 1 << 22
_HINT = "a model is a folder with model.safetensors and model.json, as a study leaves them"


@dataclass(frozen=True)
class Predicted:
    """N predictions.

    Attributes:
        study: of the model.
        values: (N, C) probabilities, or (N,) numbers in the unit of the target; or (N, A) answers
            that the target names; or (N, C, *sizes) chances of structures at each point.
        figures: against the records' own answers; None where they have none.
        why: why there are no figures.
    """

    study: Study
    values: npt.NDArray[np.float64]
    figures: Mapping[str, Figure] | None
    why: str

    def document(self) -> dict[str, object]:
        """Return it for machines."""
        figures, masks = self.figures, self.masks()
        return {
            "study_digest": self.study.digest(),
            "classes": list(target_of(self.study).classes),
            "predictions": (self.values if masks is None else self._points(masks)).tolist(),
            "metrics": figures and {name: asdict(one) for name, one in figures.items()},
        }

    def write(self, file: TextIO) -> None:
        """Write one line a record, in the records' order: its number and what is answered.

        Of masks, how many points each structure has; `masks` are the points themselves.
        """
        lines = csv.writer(file, lineterminator="\n")
        classes, columns = self.study.data.classes, target_of(self.study).classes
        masks = self.masks()
        if masks is not None:
            lines.writerow(["record", *(f"points({name})" for name in columns)])
            lines.writerows([i, *row] for i, row in enumerate(self._points(masks).tolist(), 1))
            return
        if self.values.ndim == 2 and classes != columns:
            lines.writerow(["record", *columns])
            lines.writerows([i, *map(repr, row)] for i, row in enumerate(self.values.tolist(), 1))
            return
        if not classes:
            lines.writerow(["record", *self.study.data.targets])
            lines.writerows([i, repr(one)] for i, one in enumerate(self.values.tolist(), 1))
            return
        lines.writerow(["record", *self.study.data.targets, *(f"p({name})" for name in classes)])
        best = self.values.argmax(axis=1)
        for number, row in enumerate(self.values.tolist(), 1):
            lines.writerow([number, classes[best[number - 1]], *(f"{one:.6f}" for one in row)])

    def masks(self) -> npt.NDArray[np.uint16] | None:
        """Return (N, *sizes) masks as the study's files have them; None of another task."""
        target = target_of(self.study)
        if not isinstance(target, Mask):
            return None
        return self._levels()[target.decided(self.values)]

    def _levels(self) -> npt.NDArray[np.uint16]:
        """Return the number that stands for each value in a mask's file."""
        column = self.study.data.columns[self.study.data.targets[0]]
        if not isinstance(column, MaskColumn):
            raise ValueError("expected a study of task segmentation")
        return np.array(column.levels or range(len(column.values)), dtype=np.uint16)

    def _points(self, masks: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
        """Return (N, C) how many points each structure has."""
        flat = masks.reshape(len(masks), -1)
        counts = [np.count_nonzero(flat == level, axis=1) for level in self._levels()[1:]]
        return np.stack(counts, axis=1).astype(np.int64)


def predict(model: Path, data: Path) -> Predicted:
    """Return what a model says of records.

    Args:
        model: the folder, or its model.safetensors.
        data: a file or folder of records that keep the study's contract; the target may be absent.

    Raises:
        DataError: the model is none, or is damaged; a record breaks the contract.
    """
    study, network = load_model(model)
    records, why = read_answered(study, data)
    values = forward(study, network, records)
    figures = None
    if not why:
        figures = target_of(study).exact_figures(records.targets, values)
    return Predicted(study, values, figures, why)


def load_model(path: Path) -> tuple[Study, torch.nn.Module]:
    """Return the study of a model, and its network with the weights.

    Raises:
        DataError: it is no such folder, or the two files do not belong together.
    """
    folder = path.parent if path.name == MODEL else path
    try:
        with (folder / DESCRIPTION).open("rb") as file:
            text = file.read(DESCRIPTION_BYTES_MAX + 1)
        document: Any = json.loads(text) if len(text) <= DESCRIPTION_BYTES_MAX else None
        study = parse_study(document["study"], str(folder / DESCRIPTION))
        digest = document["study_digest"]
        weights = (folder / MODEL).read_bytes()
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})", _HINT) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{folder / DESCRIPTION}: expected a model's, found another", _HINT) from (
            error
        )
    network = build_network(study)
    wanted = {name: tuple(one.shape) for name, one in network.named_parameters()}
    try:
        tensors = safetensors.numpy.load(weights)
    except safetensors.SafetensorError as error:
        raise DataError(f"{folder / MODEL}: expected safetensors, found others", _HINT) from error
    found = {name: one.shape for name, one in tensors.items()}
    fits = found == wanted and all(one.dtype == np.float32 for one in tensors.values())
    if not fits or study.digest() != digest or _digest_of(weights) != digest:
        raise DataError(
            f"{folder}: expected weights of the model's study, found another's; nothing was read",
            "sha256sum -c SHA256SUMS checks a bundle",
        )
    if not all(np.isfinite(one).all() for one in tensors.values()):
        raise DataError(f"{folder / MODEL}: expected finite weights, found others")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(tensors[name]))
    return study, network.eval()


def _digest_of(weights: bytes) -> str | None:
    """Return the digest in the header, which safetensors has read already."""
    length = int.from_bytes(weights[:8], "little")
    header: Any = json.loads(weights[8 : 8 + length])
    digest = header.get("__metadata__", {}).get("study_digest")
    return digest if isinstance(digest, str) else None


def read_answered(study: Study, data: Path) -> tuple[Records, str]:
    """Return the records, and why their targets cannot be used; empty when they can.

    Raises:
        DataError: a record breaks the contract otherwise than by its target.
    """
    try:
        return read_records(study, data), ""
    except DataError as error:
        why = error
    try:
        records = read_records(unanswered(study), data)
    except FedwardError:
        raise why from None
    return records, str(why)


def unanswered(study: Study) -> Study:
    """Return the study without its target's columns: how records without answers are read."""
    data = study.data
    columns = {name: one for name, one in data.columns.items() if name not in data.targets}
    return study.model_copy(update={"data": data.model_copy(update={"columns": columns})})


def forward(study: Study, network: torch.nn.Module, records: Records) -> npt.NDArray[np.float64]:
    """Return the predictions of N records: (N, C) probabilities, (N,) numbers, or as named."""
    inputs = torch.from_numpy(records.inputs)
    with torch.no_grad():
        pieces = [network(part) for part in torch.split(inputs, records_at_once(inputs.shape[1:]))]
    return target_of(study).predictions(torch.cat(pieces))


def write_predictions(found: Predicted, out: Path | None) -> None:
    """Write the lines into a file, whole or not at all, or to stdout; masks into an .npz file.

    Raises:
        DataError: the file cannot be written.
    """
    if out is None:
        found.write(sys.stdout)
        return
    masks = found.masks()
    if masks is not None and out.suffix == ".npz":
        packed = io.BytesIO()
        np.savez_compressed(packed, masks=masks)
        content = packed.getvalue()
    else:
        text = io.StringIO()
        found.write(text)
        content = text.getvalue().encode()
    try:
        write_durably(out, content)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror})") from error


def show_figures(found: Predicted, console: Console) -> None:
    """Print how the answers compare with those of the records, or why they cannot be."""
    if found.figures is None:
        words = f"no figures, since the records' own answers cannot be read: {found.why}"
        say(console, words)
        return
    table = Table("metric", "value", "95 % interval", "records", box=box.SIMPLE_HEAD)
    for name, one in found.figures.items():
        limits = f"{wording.show(one.low)} to {wording.show(one.high)}"
        table.add_row(wording.label(name), wording.show(one.value), limits, f"{one.n:,}")
    console.print(table)
