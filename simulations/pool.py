"""The records of all virtual sites in one place, in the order of the sites: a site is two slices.

Memory therefore does not grow with the number of sites.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.data.holdout import enrolled_fraction, fold_of, held_out, kept
from client.data.read import read_records, read_sites
from client.data.records import Records, join
from client.site import Split
from client.split import by_patient
from client.training import Tensors
from privacy.errors import DataError, StudyError
from shared_models.sections import SITES_MIN, DistributedPrivacy
from shared_models.study import Study
from shared_models.subgroups import groups_of
from simulations.partition import partition
from simulations.seeds import seeded_key

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """All records, sorted by site and, within a site, training before held-out.

    Attributes:
        sites: names, in order.
        inputs: (N, *shape) of all records.
        targets: (N,).
        patients: (N,) index of the patient within its side of its site where patients are the unit,
            else None.
        starts: (S,) first record of each site.
        splits: (S,) first held-out record of each site.
        ends: (S,) one past the last record of each site.
        groups: (N,) place of each record's group, or None in a study without groups.
    """

    sites: tuple[str, ...]
    inputs: torch.Tensor
    targets: torch.Tensor
    patients: npt.NDArray[np.int64] | None
    starts: Rows
    splits: Rows
    ends: Rows
    groups: Rows | None = None

    def split(self, index: int) -> Split:
        """Return the records of one site, as views."""
        start, middle, end = self.starts[index], self.splits[index], self.ends[index]
        return Split(self._tensors(slice(start, middle)), self._tensors(slice(middle, end)))

    def train(self) -> Tensors:
        """Return all training records, as a copy."""
        return self._tensors(torch.from_numpy(np.flatnonzero(~self._held())))

    def held(self) -> Tensors:
        """Return all held-out records, as a copy."""
        return self._tensors(torch.from_numpy(np.flatnonzero(self._held())))

    def held_site(self) -> Rows:
        """Return (H,) the index of the site of each held-out record, in the order of held()."""
        return np.repeat(np.arange(len(self.sites)), self.ends - self.splits)

    def _held(self) -> npt.NDArray[np.bool_]:
        held = np.zeros(len(self.targets), dtype=np.bool_)
        for middle, end in zip(self.splits, self.ends, strict=True):
            held[middle:end] = True
        return held

    def _tensors(self, rows: slice | torch.Tensor) -> Tensors:
        groups = None if self.groups is None else self.groups[rows]
        patients = None  # numbered within a side of a site: those of several would be confused
        if isinstance(rows, slice) and self.patients is not None:
            patients = self.patients[rows]
        return Tensors(self.inputs[rows], self.targets[rows], patients, groups)


@dataclass(frozen=True)
class Gathered:
    """The records as read, and which of them belong to which site."""

    records: Records
    sites: tuple[tuple[str, Rows], ...]


def gather(study: Study, data: Path | None) -> Gathered:
    """Read the records and divide them among virtual sites.

    Raises:
        DataError: the files break the study's contract.
        StudyError: the partition does not fit the records.
    """
    if study.simulation.partition == "files":
        if data is None:
            raise DataError("--data: missing, partition 'files' wants a folder")
        parts = read_sites(study, data)
        ends = np.cumsum([len(records) for _, records in parts])
        rows = np.split(np.arange(ends[-1] if len(ends) else 0), ends[:-1])
        sites = tuple((name, own) for (name, _), own in zip(parts, rows, strict=True))
        records = join([records for _, records in parts])
    else:
        records = read_records(study, data)
        sites = tuple(partition(study, records, study.simulation.seed))
    if len(sites) < SITES_MIN:
        raise StudyError(f"simulation.sites: expected >= {SITES_MIN} sites, found {len(sites)}")
    if len(records) == 0:
        raise DataError("expected records, found none")
    return Gathered(records, sites)


def pool(study: Study, gathered: Gathered, fold: int | None = None) -> Pool:
    """Split each site's records into training and held-out ones and lay them side by side.

    A site with more training records (or patients) than a distributed study's records_max keeps
    some of them, as its steward would have fixed it when the site enrolled.

    Args:
        study: says how records are held out.
        gathered: all records with their sites.
        fold: which of the study's folds is held out; None without folds.
    """
    key = seeded_key(study.simulation.seed, "split")  # one key: equal records, equal side
    records, evaluation = gathered.records, study.evaluation
    if fold is None:
        held = held_out(records, evaluation, key)
    else:
        held = fold_of(records, evaluation.folds or 1, key) == fold
    order, starts, splits, ends = [], [], [], []
    position = 0
    for _, rows in gathered.sites:
        train, rest = rows[~held[rows]], rows[held[rows]]
        train = _enrolled(study, records, train, key)
        starts.append(position)
        splits.append(position + len(train))
        position += len(train) + len(rest)
        ends.append(position)
        order += [train, rest]
    everyone = records.take(np.concatenate(order) if order else np.empty(0, dtype=np.int64))
    sides = [*zip(starts, splits, strict=True), *zip(splits, ends, strict=True)]
    slices = [slice(first, last) for first, last in sides]
    asked = evaluation.subgroups
    return Pool(
        sites=tuple(name for name, _ in gathered.sites),
        inputs=torch.from_numpy(everyone.inputs),
        targets=torch.from_numpy(everyone.targets),
        patients=_patients(everyone, slices) if by_patient(study) else None,
        starts=np.array(starts),
        splits=np.array(splits),
        ends=np.array(ends),
        groups=None if asked is None else groups_of(study, everyone.public[asked.column]),
    )


def _enrolled(study: Study, records: Records, train: Rows, key: bytes) -> Rows:
    privacy = study.privacy
    if not isinstance(privacy, DistributedPrivacy):
        return train
    patients = records.patients if by_patient(study) else None
    units = len(train) if patients is None else len(np.unique(patients[train]))
    fraction = enrolled_fraction(units, privacy.records_max)
    return train if fraction == 1 else train[kept(records.take(train), fraction, key)]


def _patients(records: Records, slices: Sequence[slice]) -> npt.NDArray[np.int64] | None:
    """Number the patients on each side of each site from 0, without gaps."""
    if records.patients is None:
        return None
    numbered = np.zeros(len(records), dtype=np.int64)
    for rows in slices:
        numbered[rows] = np.unique(records.patients[rows], return_inverse=True)[1]
    return numbered
