"""What of a record is shown as one: its columns, its hours and variables, its pixels, its letters.

It follows from the study alone. It sees no record.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag

from privacy.errors import StudyError
from shared_models.contract import AnyColumn, SeriesColumn
from shared_models.inputs import InputSpec, input_spec, scalar_names
from shared_models.study import Study

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

REGIONS_MAX = 512  # of a series or a text, hidden one after the other
SIDE = 7  # a picture is hidden in squares of a seventh of its side: Zeiler and Fergus 2014
FEW, LARGE = 4, 1 << 13  # fewer squares a side are shuffled of a picture of so many numbers
CALLED = {"static": "values", "series": "series", "image": "picture"}  # parts, on a page
GROUPS_MAX = 64  # of places or buckets, shuffled one after the other


@dataclass(frozen=True)
class Group:
    """Cells that are shuffled among records together."""

    name: str
    cells: Ints  # flat indices


@dataclass(frozen=True)
class Layout:
    """The M cells of a record.

    Attributes:
        kind: features | series | image | tokens | molecule | parts.
        shape: of the cells: (V,) columns, (T, V) steps and variables, (H, W) pixels, (L,) places,
            (B,) buckets, (M,) of all parts, with whether each is there at the end.
        names: of the V columns or variables; () for others.
        cell_of: of the input's shape: the flat index of the cell that each number belongs to.
        regions: (R, M) True for the cells that are hidden together; of a molecule none, since each
            of its own cells is hidden alone.
        groups: what is shuffled together.
        parts: of kind parts, in their order.
    """

    kind: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    cell_of: Ints
    regions: Mask
    groups: tuple[Group, ...]
    parts: tuple["Part", ...] = ()


@dataclass(frozen=True)
class Part:
    """One kind of input among several, laid out as it is alone.

    Attributes:
        name: of the part.
        shape: of its input.
        layout: of its own cells.
        numbers: its place in a record's one vector.
        cells: its place among the M cells.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    numbers: slice
    cells: slice


def layout_of(study: Study) -> Layout:
    """Return the cells of a study's records.

    Raises:
        StudyError: records of this kind cannot be explained.
    """
    spec = input_spec(study)
    if spec.kind == "parts":
        return _parts(study, spec)
    if spec.kind == "features" and not spec.names:
        return _molecule(spec.shape)
    if spec.kind == "volume":
        raise StudyError(
            "data.columns: expected records that can be drawn on a page, found volumes"
        )
    return _alone(spec.kind, study.data.inputs, spec.shape)


def _alone(kind: str, columns: dict[str, AnyColumn], shape: tuple[int, ...]) -> Layout:
    if kind == "series":
        return _series(columns, shape)
    if kind == "image":
        return _image(shape)
    return _tokens(shape) if kind == "tokens" else _features(columns)


def _features(columns: dict[str, AnyColumn]) -> Layout:
    names, cell_of = _columns(columns)
    groups = tuple(Group(name, np.array([v])) for v, name in enumerate(names))
    regions = np.eye(len(names), dtype=np.bool_)
    return Layout("features", (len(names),), names, cell_of, regions, groups)


def _molecule(shape: tuple[int, ...]) -> Layout:
    """A bucket is a cell; a record says what falls into it, and so which can be hidden."""
    places = np.arange(shape[0], dtype=np.int64)
    groups = tuple(Group(f"bucket {place}", places[place : place + 1]) for place in places)
    return Layout("molecule", shape, (), places, np.zeros((0, *shape), dtype=np.bool_), groups)


def _series(columns: dict[str, AnyColumn], shape: tuple[int, ...]) -> Layout:
    """A variable and the mark that it is missing are one; so are the values of a category."""
    variables = next(
        tuple(column.variables) for column in columns.values() if isinstance(column, SeriesColumn)
    )
    others, rest = _columns(columns)
    marks = shape[1] - len(rest) - len(variables)  # none, or one a variable
    order = [*range(len(variables)), *range(marks)]
    column_of = np.concatenate([np.array(order, dtype=np.int64), len(variables) + rest])  # (F,)
    names = (*variables, *others)
    steps, width = shape[0], len(names)
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
    """Each part has the cells that it has alone; whether it is there is one cell more.

    On average, a picture is one: beside columns and variables its squares are small.
    """
    parts: list[Part] = []
    numbers = cells = 0
    for part in spec.parts:
        wanted = "features" if part.name == "static" else part.name
        columns = {
            name: column
            for name, column in study.data.inputs.items()
            if isinstance(column, SeriesColumn) == (part.name == "series")
        }
        own = _alone(wanted, columns, part.shape)
        size, count = own.cell_of.size, own.regions.shape[1]
        places = slice(numbers, numbers + size), slice(cells, cells + count)
        parts.append(Part(part.name, part.shape, own, *places))
        numbers, cells = numbers + size, cells + count
    there = cells + np.arange(len(parts))
    pieces = [part.layout.cell_of.reshape(-1) + part.cells.start for part in parts]
    regions = block_diag(*(part.layout.regions for part in parts), np.eye(len(parts)))
    groups = [group for part in parts for group in _moved(part)]
    marks = (Group(f"{CALLED[part.name]} there", there[k : k + 1]) for k, part in enumerate(parts))
    return Layout(
        "parts",
        (cells + len(parts),),
        (),
        np.concatenate([*pieces, there]),
        regions.astype(np.bool_),
        (*groups, *marks),
        tuple(parts),
    )


def _moved(part: Part) -> list[Group]:
    """Return what is shuffled of a part, by the cells of the whole record."""
    if part.name == "image":
        return [Group(CALLED[part.name], np.arange(part.cells.start, part.cells.stop))]
    return [Group(group.name, group.cells + part.cells.start) for group in part.layout.groups]


def _image(shape: tuple[int, ...]) -> Layout:
    channels, height, width = shape
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
    across = SIDE if math.prod(shape) < LARGE else FEW
    down, right = math.ceil(height / across), math.ceil(width / across)
    tiles = product(range(0, height, down), range(0, width, right))
    groups = tuple(
        Group(
            f"row {row + 1}, column {column + 1}",
            flat[row : row + down, column : column + right].reshape(-1),
        )
        for row, column in tiles
    )
    return Layout("image", (height, width), (), cell_of, regions.reshape(len(regions), -1), groups)


def _tokens(shape: tuple[int, ...]) -> Layout:
    (length,) = shape
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
