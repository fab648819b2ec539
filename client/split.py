"""One site's records on the two sides of the hold-out, as its rounds want them.

It reads no file. Which side a record is on is decided by a key of the site's own, or by a public
column; how many are used was fixed when the site enrolled.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client.data.holdout import enrolled_fraction, held_out, kept
from client.data.records import Records
from client.site import Split
from client.training import Tensors
from shared_models.sections import DistributedPrivacy
from shared_models.study import Study
from shared_models.subgroups import groups_of

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """How many a site has: for its own screen alone.

    Attributes:
        records: in all, held-out ones included.
        patients: of them; None where the study names no patient column.
        units: of the study's promise: records, or patients.
        train: records that are trained on.
        held: records that are evaluated on.
        fraction: part of the training records that is used, so that a distributed study's
            records_max holds; 1 in other studies.
    """

    records: int
    patients: int | None
    units: int
    train: int
    held: int
    fraction: float


def by_patient(study: Study) -> bool:
    """Say whether the study's promise is made to patients and not to records."""
    return study.privacy.mode != "none" and study.privacy.unit == "patient"


def count(study: Study, records: Records, key: bytes) -> Counts:
    """Return a site's figures at enrolment.

    Args:
        study: that the site would take part in.
        records: N of this site.
        key: the site's split key, 32 bytes.
    """
    held = held_out(records, study.evaluation, key)
    privacy, fraction = study.privacy, 1.0
    if isinstance(privacy, DistributedPrivacy):
        fraction = enrolled_fraction(_units(study, records, ~held), privacy.records_max)
    patients = None if records.patients is None else len(np.unique(records.patients))
    return Counts(
        records=len(records),
        patients=patients,
        units=_units(study, records, np.ones(len(records), dtype=np.bool_)),
        train=len(_trained(records, held, key, fraction)),
        held=int(held.sum()),
        fraction=fraction,
    )


def split(study: Study, records: Records, key: bytes, fraction: float) -> Split:
    """Return the records to train on, and those to evaluate on.

    Args:
        study: says how records are held out.
        records: N of this site.
        key: the site's split key, 32 bytes.
        fraction: as `count` said when the site enrolled.
    """
    held = held_out(records, study.evaluation, key, approved=True)
    train = _trained(records, held, key, fraction)
    return Split(_tensors(study, records, train), _tensors(study, records, np.flatnonzero(held)))


def _trained(records: Records, held: npt.NDArray[np.bool_], key: bytes, fraction: float) -> Rows:
    rows = np.flatnonzero(~held)
    return rows if fraction == 1 else rows[kept(records.take(rows), fraction, key)]


def _units(study: Study, records: Records, rows: npt.NDArray[np.bool_]) -> int:
    if by_patient(study) and records.patients is not None:
        return len(np.unique(records.patients[rows]))
    return int(rows.sum())


def _tensors(study: Study, records: Records, rows: Rows) -> Tensors:
    """Return some records; where patients are the unit they are numbered from 0, without gaps."""
    units = None
    if by_patient(study) and records.patients is not None:
        units = np.unique(records.patients[rows], return_inverse=True)[1].astype(np.int64)
    inputs, targets = (torch.from_numpy(one[rows]) for one in (records.inputs, records.targets))
    asked = study.evaluation.subgroups
    groups = None if asked is None else groups_of(study, records.public[asked.column][rows])
    return Tensors(inputs, targets, units, groups)
