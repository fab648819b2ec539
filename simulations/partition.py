"""Divides one set of records among the virtual sites of a simulation; a deployment never calls it.

Every record belongs to exactly one site, and a site may be left with one class, one record or none.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from client.data.records import Records
from privacy.errors import DataError, StudyError
from shared_models.contract import CategoryColumn
from shared_models.sections import SITES_MIN
from shared_models.study import Study

Rows: TypeAlias = npt.NDArray[np.int64]

SEED_LABEL = b"partition"  # keeps this generator apart from others of the same seed


def partition(study: Study, records: Records, seed: int) -> list[tuple[str, Rows]]:
    """Return the sites and the rows of ``records`` that each holds, as the study's simulation says.

    Args:
        study: its simulation.sites and simulation.partition.
        records: N of them, of all sites together.
        seed: of the simulation; the same seed gives the same sites, whatever drew before.

    Returns:
        One (name, (n,) increasing rows) a site. iid: equal shares, to one unit. dirichlet:ALPHA:
        each class is divided by its own draw of proportions, so that labels are skewed.
        quantity:ALPHA: one draw of proportions for all records. column:NAME: a site a value of a
        public column that occurs, in the study's order. A unit is a record, or a patient with all
        their records where the study has a patient column (a patient's class is that of their
        first record); column:NAME leaves patients where the column has them.

    Raises:
        StudyError: no such public column, fewer than three natural sites, a Dirichlet draw that
            does not sum to 1, or label skew of a target without classes.
        DataError: a record without a site, or a patient at two when the unit of privacy is one.
        ValueError: partition "files", whose sites come from ``client.data.read.read_sites``.

    Source: Hsu et al. 2019, arXiv:1909.06335, section 3 (label skew); Li et al. 2022,
        arXiv:2102.02079, section 4 (label and quantity skew by Dirichlet draws).
    """
    kind, _, option = study.simulation.partition.partition(":")
    if kind == "column":
        return _natural(study, records, option)
    generator = np.random.default_rng([seed, *SEED_LABEL])
    units, first = _units(records)
    count = study.simulation.sites
    if kind == "iid":
        shares = np.array_split(generator.permutation(len(first)), count)
    elif kind == "quantity":
        shares = _by_draw(generator, np.arange(len(first)), count, float(option))
    elif kind == "dirichlet":
        shares = _label_skew(study, records, generator, first, float(option))
    else:
        raise ValueError(f"expected a partition of one set of records, got {kind!r}")
    return _named(units, shares)


def _units(records: Records) -> tuple[Rows, Rows]:
    """Return (N,) the unit of every record, and the first row of every unit."""
    if records.patients is None:
        rows = np.arange(len(records), dtype=np.int64)
        return rows, rows
    _, first, units = np.unique(records.patients, return_index=True, return_inverse=True)
    return units.astype(np.int64), first.astype(np.int64)


def _named(units: Rows, shares: list[Rows]) -> list[tuple[str, Rows]]:
    """Return the rows of every site's units, under names that sort in the sites' order."""
    site_of = np.zeros(sum(map(len, shares)), dtype=np.int64)
    for site, share in enumerate(shares):
        site_of[share] = site
    site_of_row = site_of[units]  # (N,)
    order = np.argsort(site_of_row, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(site_of_row, minlength=len(shares)))
    width = max(3, len(str(len(shares))))
    return [
        (f"site-{site:0{width}d}", rows)
        for site, rows in enumerate(np.split(order, ends[:-1]), start=1)
    ]


def _by_draw(generator: np.random.Generator, units: Rows, count: int, alpha: float) -> list[Rows]:
    """Divide ``units`` among ``count`` sites, in proportions drawn from a symmetric Dirichlet."""
    proportions = generator.dirichlet(np.full(count, alpha))
    if not abs(proportions.sum() - 1) < 1e-6:  # ALPHA near the largest float: zeros or NaN
        raise StudyError(f"simulation.partition: expected a smaller ALPHA, found {alpha}")
    ends = np.rint(np.cumsum(proportions) * len(units)).astype(np.int64)
    return np.split(generator.permutation(units), np.minimum(ends[:-1], len(units)))


def _label_skew(
    study: Study, records: Records, generator: np.random.Generator, first: Rows, alpha: float
) -> list[Rows]:
    classes, count = len(study.data.classes), study.simulation.sites
    if not classes:
        raise StudyError(
            "simulation.partition: expected a category target with dirichlet (label skew)",
            "quantity:ALPHA skews the sizes of sites for any target",
        )
    labels = records.targets[first]  # (U,)
    parts = [
        _by_draw(generator, np.flatnonzero(labels == label), count, alpha)
        for label in range(classes)
    ]
    return [np.concatenate(share) for share in zip(*parts, strict=True)]


def _natural(study: Study, records: Records, name: str) -> list[tuple[str, Rows]]:
    if name not in records.public:
        raise StudyError(
            f"simulation.partition: expected a public column after column:, one of "
            f"{', '.join(sorted(records.public)) or '(there is none)'}, found {name!r}"
        )
    values = records.public[name]  # (N,)
    if (values == "").any():
        row = int(np.argmax(values == ""))
        raise DataError(
            f"record {row + 1}, column {name!r}: expected a site for every record, found none"
        )
    column = study.data.columns.get(name)
    known = column.values if isinstance(column, CategoryColumn) else tuple(np.unique(values))
    sites = [(str(site), np.flatnonzero(values == site)) for site in known]
    sites = [(site, rows) for site, rows in sites if len(rows)]
    if len(sites) < SITES_MIN:
        raise StudyError(
            f"simulation.partition: expected a column with >= {SITES_MIN} sites, "
            f"found {len(sites)} in {name!r}"
        )
    if study.privacy.mode != "none" and study.privacy.unit == "patient":
        _one_site_a_patient(records, sites, name)
    return sites


def _one_site_a_patient(records: Records, sites: list[tuple[str, Rows]], name: str) -> None:
    if records.patients is None:
        return
    patients = [len(np.unique(records.patients[rows])) for _, rows in sites]
    if sum(patients) > len(np.unique(records.patients)):
        raise DataError(
            f"column {name!r}: expected every patient at one site with privacy.unit = 'patient', "
            "found one at two; no record was used"
        )
