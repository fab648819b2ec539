"""Figures of groups of held-out records, by a stated public column, beside those of all records.

It computes no figure (the target does) and adds no noise. Cells, in order: those of all records,
then those of each group, by the target's own layout.

Guarantee: without groups one unit moves the cells by a vector of norm D2 at most. With them it is
counted a second time, in its group: each of its rows once, in one group, with the weight that it
has among all. So the second part's norm is D2 at most too, however many groups there are and
however a patient's rows are spread over them, and the whole is sqrt(2) D2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from privacy.cell_noise import CellNoise
from shared_models.cells import Cells
from shared_models.contract import CategoryColumn
from shared_models.metrics import Figure
from shared_models.study import MISSING_GROUP, Study
from shared_models.target import Answers, Array, Figures
from shared_models.tasks import target_of

Groups = npt.NDArray[np.int64]
_DEVIATIONS = 3  # a group is told when its noise alone would not often look like it


@dataclass(frozen=True)
class Told:
    """What an evaluation says.

    Attributes:
        figures: of all records.
        subgroups: figures by group; None of a group that is too small to be told.
    """

    figures: Figures
    subgroups: dict[str, Figures | None]


def group_names(study: Study) -> tuple[str, ...]:
    """Return the groups of a study: the column's values, and "missing" where it may be; or ()."""
    asked = study.evaluation.subgroups
    column = None if asked is None else study.data.columns[asked.column]
    if not isinstance(column, CategoryColumn):
        return ()
    return column.values if column.missing == "refuse" else (*column.values, MISSING_GROUP)


def groups_of(study: Study, values: npt.NDArray[np.str_]) -> Groups:
    """Return the (N,) group of each record.

    Args:
        study: with groups.
        values: (N,) of the column, as `client.data.records.Records.public` has them.
    """
    names = {name: place for place, name in enumerate(group_names(study))}
    return np.array([names[str(value) or MISSING_GROUP] for value in values], dtype=np.int64)


def lane_names(study: Study, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the name of every cell of an evaluation, from those of all records."""
    asked = study.evaluation.subgroups
    if asked is None:
        return names
    own = (f"{asked.column}={group}: {name}" for group in group_names(study) for name in names)
    return (*names, *own)


def cell_sensitivity(study: Study) -> float:
    """Return the largest L2 norm of one unit's noised cells, in counts."""
    alone = target_of(study).cell_sensitivity
    return alone * math.sqrt(2) if group_names(study) else alone


def count_cells(study: Study, targets: Array, predictions: Answers, groups: Groups | None) -> Cells:
    """Count one site's held-out records, (N,) of them.

    A prediction that is not finite counts nowhere, in silence, as in noised cells: a refusal would
    tell that its record is there.

    Raises:
        ValueError: as `Target.count_cells`.
    """
    target = target_of(study)
    sound = np.isfinite(predictions).all(axis=tuple(range(1, predictions.ndim)))  # (N,)
    targets, predictions = targets[sound], predictions[sound]
    groups = None if groups is None else groups[sound]
    parts = [target.count_cells(targets, predictions)]
    parts += [
        target.count_cells(targets[rows], predictions[rows]) for rows in _members(study, groups)
    ]
    return np.concatenate(parts)


def count_noised_cells(
    study: Study,
    targets: Array,
    predictions: Answers,
    units: npt.NDArray[np.int64] | None,
    groups: Groups | None,
    step: int,
) -> Cells:
    """Count one site's held-out units before noise; arguments as `Target.count_noised_cells`."""
    target = target_of(study)
    parts = [target.count_noised_cells(targets, predictions, units, step)]
    for rows in _members(study, groups):
        # Rows of other groups count nowhere, yet keep their part of their patient's one count.
        own = predictions.astype(np.float64)
        own[~rows] = np.nan
        parts.append(target.count_noised_cells(targets, own, units, step))
    return np.concatenate(parts)


def figures_from_cells(study: Study, cells: Cells) -> Told:
    """Return what an exact sum says; errors as `Target.figures_from_cells`."""
    asked = study.evaluation.subgroups
    target = target_of(study)
    if asked is None:
        return Told(target.figures_from_cells(cells), {})
    return _told(study, _parts(study, cells), target.figures_from_cells, asked.smallest)


def figures_from_noised_cells(study: Study, cells: Cells, noise: CellNoise, shares: int) -> Told:
    """Return what a noisy sum of ``shares`` sites says.

    A group is told when more records are counted in it than `smallest` and than three deviations of
    what noise alone would add up to over its cells.

    The groups' cells add up to those of all but for the noise. Their least-squares estimates under
    that condition have G / (G + 1) of its variance, for all records and for each group (Hay et al.
    2010, arXiv:0904.0942, theorem 3): post-processing, and nothing more is spent.
    """
    asked, count = study.evaluation.subgroups, len(group_names(study))
    target = target_of(study)
    if asked is None:
        return Told(target.figures_from_noised_cells(cells, noise, shares), {})
    parts = _parts(study, cells)
    gap = np.rint((parts[0] - parts[1:].sum(axis=0)) / (count + 1)).astype(np.int64)
    parts = np.concatenate((parts[:1] - gap, parts[1:] + gap))
    left = replace(noise, variance=math.ceil(noise.variance * count / (count + 1)))
    floor = _DEVIATIONS * left.deviation(shares) * math.sqrt(parts.shape[1])

    def figures(own: Cells) -> Figures:
        return target.figures_from_noised_cells(own, left, shares)

    return _told(study, parts, figures, max(asked.smallest, floor))


def exact_figures(
    study: Study, targets: Array, predictions: Answers, groups: Groups | None
) -> dict[str, Figures | None]:
    """Return the figures of the groups' predictions themselves; errors as `Target`'s."""
    asked, target = study.evaluation.subgroups, target_of(study)
    found: dict[str, Figures | None] = {}
    for name, rows in zip(group_names(study), _members(study, groups), strict=True):
        enough = asked is not None and rows.sum() >= asked.smallest
        found[name] = target.exact_figures(targets[rows], predictions[rows]) if enough else None
    return found


def _members(study: Study, groups: Groups | None) -> list[npt.NDArray[np.bool_]]:
    """Return the (N,) members of each group; none of a study without groups."""
    names = group_names(study)
    if not names:
        return []
    if groups is None:
        raise ValueError("expected the group of each record")
    return [groups == place for place in range(len(names))]


def _parts(study: Study, cells: Cells) -> Cells:
    """Return (G + 1, L): the cells of all records, then of each group."""
    count = len(group_names(study)) + 1
    if len(cells) % count:
        raise ValueError(f"expected {count} times as many cells as of one group, got {len(cells)}")
    return cells.reshape(count, -1)


def _told(study: Study, parts: Cells, figures: Callable[[Cells], Figures], smallest: float) -> Told:
    groups: dict[str, Figures | None] = {}
    for name, own in zip(group_names(study), parts[1:], strict=True):
        found = figures(own)
        groups[name] = found if _records(found) >= smallest else None
    return Told(figures(parts[0]), groups)


def _records(figures: dict[str, Figure]) -> int:
    return max(figure.n for figure in figures.values())
