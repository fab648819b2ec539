"""What of a record is shown as one: its columns, its hours and variables, its pixels, its letters.

It follows from the study alone. It sees no record.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from privacy.errors import StudyError
from shared_models.contract import AnyColumn, SeriesColumn
from shared_models.inputs import InputSpec, input_spec, scalar_names
from shared_models.study import Study

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

REGIONS_MAX = 512  # of a series or a text, hidden one after the other
SIDE = (
    7  # a picture is hidden in squares of a seventh of its side, as Zeiler and Fergus hide theirs
)
GROUPS_MAX = 64  # of places, shuffled one after the other


@dataclass(frozen=True)
class Group:
    """Cells that are shuffled among records together."""

    name: str
    cells: Ints  # flat indices


@dataclass(frozen=True)
class Layout:
    """The M cells of a record.

    Attributes:
        kind: features | series | image | tokens.
        shape: of the cells: (V,) columns, (T, V) steps and variables, (H, W) pixels, (L,) places.
        names: of the V columns or variables; () for pixels and places.
        cell_of: of the input's shape: the flat index of the cell that each number belongs to.
        regions: (R, M) True for the cells that are hidden together.
        groups: what is shuffled together.
    """

    kind: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    cell_of: Ints
    regions: Mask
    groups: tuple[Group, ...]


def layout_of(study: Study) -> Layout:
    """Return the cells of a study's records.

    Raises:
        StudyError: records of this kind cannot be explained.
    """
    spec = input_spec(study)
    if study.task in {"segmentation", "warning"}:
        raise StudyError(f"task: expected one with one answer a record, found {study.task!r}")
    if spec.kind == "features":
        return _features(study)
    if spec.kind == "series":
        return _series(study, spec)
    if spec.kind == "image":
        return _image(spec)
    if spec.kind == "parts":
        return _parts(study, spec)
    if spec.kind == "tokens":
        return _tokens(spec)
    raise StudyError(f"task: expected one that can be explained, found {study.task!r}")


def _features(study: Study) -> Layout:
    names, cell_of = _columns(study.data.inputs)
    groups = tuple(Group(name, np.array([v])) for v, name in enumerate(names))
    regions = np.eye(len(names), dtype=np.bool_)
    return Layout("features", (len(names),), names, cell_of, regions, groups)


def _series(study: Study, spec: InputSpec) -> Layout:
    """A variable and the mark that it is missing are one; so are the values of a category."""
    columns = study.data.inputs
    variables = next(
        tuple(column.variables) for column in columns.values() if isinstance(column, SeriesColumn)
    )
    others, rest = _columns(columns)
    marks = spec.shape[1] - len(rest) - len(variables)  # none, or one a variable
    order = [*range(len(variables)), *range(marks)]
    column_of = np.concatenate([np.array(order, dtype=np.int64), len(variables) + rest])  # (F,)
    names = (*variables, *others)
    steps, width = spec.shape[0], len(names)
    cell_of = np.arange(steps)[:, None] * width + column_of  # (T, 1) x (F,) -> (T, F)
    window = math.ceil(steps * width / REGIONS_MAX)
    starts = list(range(0, steps, window))
    regions = np.zeros((len(starts) * width, steps, width), dtype=np.bool_)
    for number, (start, v) in enumerate(product(starts, range(width))):
        regions[number, start : start + window, v] = True
    groups = tuple(
        Group(name, np.arange(steps, dtype=np.int64) * width + v) for v, name in enumerate(names)
    )
    return Layout(
        "series", (steps, width), names, cell_of, regions.reshape(len(regions), -1), groups
    )


def _parts(study: Study, spec: InputSpec) -> Layout:
    """A column is one cell, a variable with all its steps, a picture, and whether a part is there.

    What is finer than that, a study of the part alone shows.
    """
    names: list[str] = []
    cells: list[Ints] = []
    for part in spec.parts:
        if part.name == "static":
            own, cell_of = _columns(study.data.inputs)
        elif part.name == "series":
            own = tuple(name for name in part.names if f"{name} missing" in part.names)
            own = own or part.names  # a variable and its marks are one
            cell_of = np.tile(np.arange(part.shape[1]) % len(own), part.shape[0])
        else:
            own, cell_of = ("picture",), np.zeros(math.prod(part.shape), dtype=np.int64)
        cells.append(len(names) + cell_of)
        names += own
    cells.append(len(names) + np.arange(len(spec.parts)))
    names += [f"{part.name} there" for part in spec.parts]
    groups = tuple(Group(name, np.array([v])) for v, name in enumerate(names))
    regions = np.eye(len(names), dtype=np.bool_)
    return Layout("features", (len(names),), tuple(names), np.concatenate(cells), regions, groups)


def _image(spec: InputSpec) -> Layout:
    channels, height, width = spec.shape
    flat = np.arange(height * width, dtype=np.int64).reshape(height, width)
    cell_of = np.broadcast_to(flat, (channels, height, width))
    patch = max(1, height // SIDE), max(1, width // SIDE)
    rows, columns = (
        _starts(size, side, max(1, side // 2))
        for size, side in zip((height, width), patch, strict=True)
    )
    regions = np.zeros((len(rows) * len(columns), height, width), dtype=np.bool_)
    for number, (row, column) in enumerate(product(rows, columns)):
        regions[number, row : row + patch[0], column : column + patch[1]] = True
    tiles = product(range(0, height, patch[0]), range(0, width, patch[1]))
    groups = tuple(
        Group(
            f"row {row + 1}, column {column + 1}",
            flat[row : row + patch[0], column : column + patch[1]].reshape(-1),
        )
        for row, column in tiles
    )
    return Layout("image", (height, width), (), cell_of, regions.reshape(len(regions), -1), groups)


def _tokens(spec: InputSpec) -> Layout:
    (length,) = spec.shape
    places = np.arange(length, dtype=np.int64)
    window = math.ceil(length / REGIONS_MAX)
    regions = places // window == np.arange(math.ceil(length / window))[:, None]  # (R, L)
    step = math.ceil(length / GROUPS_MAX)
    groups = tuple(
        Group(_places(start + 1, min(start + step, length)), places[start : start + step])
        for start in range(0, length, step)
    )
    return Layout("tokens", (length,), (), places, regions, groups)


def _places(first: int, last: int) -> str:
    return f"place {first}" if first == last else f"places {first} to {last}"


def _columns(columns: dict[str, AnyColumn]) -> tuple[tuple[str, ...], Ints]:
    """Return the names of the number and category columns, and which of them each feature is of."""
    widths = {name: len(scalar_names({name: column})) for name, column in columns.items()}
    names = tuple(name for name, width in widths.items() if width)
    return names, np.repeat(np.arange(len(names)), [widths[name] for name in names])


def _starts(size: int, side: int, stride: int) -> list[int]:
    """Return where squares begin so that every pixel lies in one; the last ends at the edge."""
    return [*range(0, size - side, stride), size - side]
