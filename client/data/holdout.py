"""Which records are held out, or left out: by a keyed hash of their identity or a public column.

Never by count: moving one record in or out of a site leaves every other record where it is.
"""

import hmac
import math

import numpy as np
import numpy.typing as npt

from client.data.records import Records
from privacy.errors import DataError, StudyError
from shared_models.contract import number_of
from shared_models.sections import Evaluation

SPLIT_KEY_BYTES = 32
_FOLDS_LABEL = b"fedward folds"
_KEPT_LABEL = b"fedward kept"


def held_out(
    records: Records, evaluation: Evaluation, split_key: bytes, *, approved: bool = False
) -> npt.NDArray[np.bool_]:
    """Return (N,) True for the records that are evaluated on and never trained on.

    Args:
        records: of one site.
        evaluation: its holdout fraction, or its public column and values.
        split_key: the site's own, 32 bytes, the same for every run of a study.
        approved: at a site that has begun, where nothing is refused because of a record: a patient
            whom the column puts on both sides is held out with all records.

    Raises:
        StudyError: there is no such public column.
        DataError: the column would put one patient on both sides; not when ``approved``.

    Guarantee: a record's side depends on the key and on its own identity alone.
    Source: section 7 of the protocol: HMAC-SHA256 below the fraction.
    """
    if evaluation.holdout_column is not None:
        return _by_column(records, evaluation, approved)
    below = math.floor(evaluation.holdout * 2**64)
    hashes = _hashes(records, split_key)
    return np.array([value < below for value in hashes], dtype=np.bool_)


def fold_of(records: Records, folds: int, split_key: bytes) -> npt.NDArray[np.int64]:
    """Return (N,) the fold 0 to folds - 1 in which each record is held out.

    Folds have equal sizes in expectation only: exact ones would move other records.

    Raises:
        ValueError: fewer than two folds.
    """
    if not folds >= 2:
        raise ValueError(f"expected folds >= 2, got {folds}")
    key = hmac.digest(split_key, _FOLDS_LABEL, "sha256")  # independent of the hold-out's hashes
    return np.array([value * folds >> 64 for value in _hashes(records, key)], dtype=np.int64)


def kept(records: Records, fraction: float, split_key: bytes) -> npt.NDArray[np.bool_]:
    """Return (N,) True for the records that a site with too many of them trains on.

    Args:
        records: of one site.
        fraction: fixed when the site enrols (`enrolled_fraction`) and never from a later count.
        split_key: the site's own, 32 bytes, the same for every run of a study.

    Guarantee: a record is kept by the key and its own identity alone. "The first records_max" would
    let one record push out another, and so count twice.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"expected a fraction in (0, 1], got {fraction}")
    below = math.floor(fraction * 2**64)
    key = hmac.digest(split_key, _KEPT_LABEL, "sha256")  # independent of the hold-out's hashes
    return np.array([value < below for value in _hashes(records, key)], dtype=np.bool_)


def enrolled_fraction(units: int, records_max: int) -> float:
    """Return the fraction at which a site that enrols with ``units`` stays within ``records_max``.

    It leaves three deviations of what a keyed hash keeps. A record too many is no breach: the ring
    is sized for more than real gradients ever fill, and what does not fit is clamped.
    """
    if units <= records_max:
        return 1.0
    return max(records_max - 3 * math.sqrt(records_max), 1.0) / units


def _hashes(records: Records, key: bytes) -> list[int]:
    """Return the first 64 bits of every identity's HMAC-SHA256, big-endian."""
    if len(key) != SPLIT_KEY_BYTES:
        raise ValueError(f"expected a split key of {SPLIT_KEY_BYTES} bytes, got {len(key)}")
    return [
        int.from_bytes(hmac.digest(key, identity, "sha256")[:8], "big")
        for identity in records.identities
    ]


def _by_column(records: Records, evaluation: Evaluation, approved: bool) -> npt.NDArray[np.bool_]:
    column, values = evaluation.holdout_column or "", evaluation.holdout_values
    if column not in records.public:
        raise StudyError(
            f"evaluation.holdout_column: expected one of "
            f"{', '.join(sorted(records.public)) or 'none, there is no public column'}, "
            f"found {column!r}"
        )
    wanted = {number_of(value) for value in values}
    found, where = np.unique(records.public[column], return_inverse=True)
    mask = np.array([number_of(str(value)) in wanted for value in found], dtype=np.bool_)[where]
    if records.patients is not None and len(records):
        seen = np.zeros((int(records.patients.max()) + 1, 2), dtype=np.bool_)
        seen[records.patients, mask.astype(np.int64)] = True
        both = seen[:, 0] & seen[:, 1]
        if approved:
            return mask | both[records.patients]
        if both.any():
            raise DataError(
                f"evaluation.holdout_column {column!r}: expected every patient on one side, found "
                "one on both; no record was used"
            )
    return mask
