"""Raw columns to the records of a study: features, pictures or token ids, in the input's order.

What a value becomes depends on the study alone, never on the other records. It reads no file.
"""

import hashlib
import math

import numpy as np
import numpy.typing as npt

from client.data import ceiling
from client.data.cells import Floats, Ints, categories, numbers, series, texts
from client.data.molecules import molecule_features, scaffolds
from client.data.records import Records
from client.data.table import Cells, Mask, Table
from client.data.tokens import letter_ids, word_ids
from privacy.errors import DataError
from shared_models.contract import (
    AnyColumn,
    CategoryColumn,
    Data,
    ImageColumn,
    LettersColumn,
    MaskColumn,
    MoleculeColumn,
    NumberColumn,
    SeriesColumn,
    Variable,
    WordsColumn,
)
from shared_models.inputs import InputSpec, input_spec, scalar_names
from shared_models.study import Study

Floats32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

CHUNK_VALUES = 1 << 22  # float64 values in hand at once while a large array is scaled


def encode(study: Study, table: Table) -> Records:
    """Check every cell against the data contract and return the records, N of them or none.

    Raises:
        DataError: a cell breaks the contract, or the records pass the ceiling.
        StudyError: the columns are not those that the task wants.
    """
    spec, data = input_spec(study), study.data
    itemsize = 8 if spec.kind == "tokens" else 4
    size = math.prod(spec.shape) * itemsize
    table = table.first(ceiling.fit(table.length, size, "records", table.faults))
    public = {name: np.full(table.length, value) for name, value in table.public.items()}
    # One answer is always there; of several, each says whether it may be missing.
    alone = data.targets if len(data.targets) == 1 else ()
    indices: dict[str, Ints] = {}
    numbered: dict[str, Floats] = {}
    for name, column in data.columns.items():
        if isinstance(column, CategoryColumn):
            indices[name] = categories(table, name, column, refuse_missing=name in alone)
            public[name] = np.array([*column.values, ""])[indices[name]]  # missing: -1, the last
        elif isinstance(column, NumberColumn) and name not in data.inputs:
            numbered[name] = numbers(table, name, column, refuse_missing=name in alone)
    targets = _targets(data, table, indices, numbered)
    inputs = _inputs(table, data, spec, indices)
    names = _groups(table, data) if data.patient is None else texts(table, data.patient)
    kept = table.kept()  # from here on only they count: patients are numbered, records joined
    inputs, targets = inputs[kept], targets[kept]
    public = {name: values[kept] for name, values in public.items()}
    if names is None:
        return Records(inputs, targets, row_identities(inputs), None, public)
    # A lone surrogate, which JSON can write, is a letter like any other.
    identities = tuple(text.encode("utf-8", "surrogatepass") for text in names[kept])
    patients = None if data.patient is None else patient_indices(identities)
    return Records(inputs, targets, identities, patients, public)


def row_identities(inputs: Floats32 | Ints) -> tuple[bytes, ...]:
    """Return the SHA-256 of each row's little-endian bytes: equal inputs, equal identities."""
    rows = np.ascontiguousarray(inputs, dtype=inputs.dtype.newbyteorder("<"))
    return tuple(hashlib.sha256(row).digest() for row in rows)


def patient_indices(identities: tuple[bytes, ...]) -> Ints:
    """Return (N,) dense indices of the patients, in the order in which they first appear."""
    index: dict[bytes, int] = {}
    return np.array([index.setdefault(name, len(index)) for name in identities], dtype=np.int64)


def scale_values(values: Floats, column: NumberColumn | Variable) -> Floats:
    """Scale [low, high] to [-1, 1]; NaN, a missing value, stays NaN. Any shape."""
    span = column.high - column.low
    above = np.clip(values - column.low, 0.0, span)
    share: Floats = np.log1p(above) / np.log1p(span) if column.scale == "log" else above / span
    return share * 2 - 1


def _groups(table: Table, data: Data) -> npt.NDArray[np.object_] | None:
    """Return (N,) names of what is held out as a whole though it is no patient, or None."""
    for name, column in data.inputs.items():
        if isinstance(column, MoleculeColumn) and column.split == "scaffold":
            return scaffolds(table, name)
    return None


def _targets(
    data: Data, table: Table, indices: dict[str, Ints], numbered: dict[str, Floats]
) -> Ints | Floats32 | Labels:
    """Return (N,) of one target column, (N, C) of several: classes, or numbers where any is one.

    Of a mask, (N, *sizes): the place of each point's value.
    """
    if not all(name in data.columns for name in data.targets):
        return np.zeros(table.length, dtype=np.int64)  # a model is used where nobody knows
    if len(data.targets) > 1:
        parts = [indices.get(name, numbered.get(name)) for name in data.targets]
        columns = np.stack([part for part in parts if part is not None], axis=1)
        numeric = numbered.keys() & {*data.targets}
        return columns.astype(np.float32) if numeric else columns.astype(np.int64)
    (name,) = data.targets
    column = data.columns[name]
    if isinstance(column, MaskColumn):
        return _masks(table, name, column, data.image.sizes)
    if not isinstance(column, CategoryColumn):
        return numbered[name].astype(np.float32)
    if not data.positive:
        return indices[name]
    yes = np.array([value in data.positive for value in column.values], dtype=np.int64)
    return yes[indices[name]]


def _inputs(table: Table, data: Data, spec: InputSpec, indices: dict[str, Ints]) -> Floats32 | Ints:
    columns = data.inputs
    if spec.kind == "parts":
        return _parts(table, columns, spec, indices)
    for name, column in columns.items():
        if isinstance(column, LettersColumn):
            return letter_ids(table, name, column)
        if isinstance(column, WordsColumn):
            return word_ids(table, name, column)
        if isinstance(column, MoleculeColumn):
            return molecule_features(table, name, column)
        if isinstance(column, ImageColumn):
            return _images(table, name, column)
        if isinstance(column, SeriesColumn):
            return _series(table, name, column, _scalars(table, columns, indices), spec.shape)
    return _scalars(table, columns, indices)


def _scalars(table: Table, columns: dict[str, AnyColumn], indices: dict[str, Ints]) -> Floats32:
    """Return (N, F): the number and category columns in the order of ``scalar_names``."""
    features = np.zeros((table.length, len(scalar_names(columns))), dtype=np.float32)
    place = 0
    for name, column in columns.items():
        if isinstance(column, NumberColumn):
            values = scale_values(numbers(table, name, column), column)
            missing = np.isnan(values)
            values[missing] = _fill(column)
            features[:, place] = values
            place += 1
        elif isinstance(column, CategoryColumn):
            missing = indices[name] < 0
            there = np.flatnonzero(~missing)
            features[there, place + indices[name][there]] = 1.0
            place += len(column.values)
        else:
            continue
        if column.missing == "indicator":
            features[:, place] = missing
            place += 1
    return features


def _parts(
    table: Table, columns: dict[str, AnyColumn], spec: InputSpec, indices: dict[str, Ints]
) -> Floats32:
    """Return (N, F): each part flat, then for each whether any of it was given."""
    out = np.empty((table.length, *spec.shape), dtype=np.float32)
    nothing = np.empty((table.length, 0), dtype=np.float32)
    place = 0
    for number, part in enumerate(spec.parts):
        if part.name == "static":
            found, given = _scalars(table, columns, indices), _given(table, columns, indices)
        else:
            kind = SeriesColumn if part.name == "series" else ImageColumn
            name, column = next((n, c) for n, c in columns.items() if isinstance(c, kind))
            given = _measured(table.columns[name])
            if isinstance(column, SeriesColumn):
                found = _series(table, name, column, nothing, part.shape)
            elif isinstance(column, ImageColumn):
                found = _images(table, name, column)
        size = math.prod(part.shape)
        out[:, place : place + size] = found.reshape(table.length, size)
        out[:, number - len(spec.parts)] = given
        place += size
    return out


def _given(table: Table, columns: dict[str, AnyColumn], indices: dict[str, Ints]) -> Mask:
    """Return (N,) whether any number or category of a record is there."""
    given = np.zeros(table.length, dtype=np.bool_)
    for name, column in columns.items():
        if isinstance(column, NumberColumn):
            given[~np.isnan(numbers(table, name, column))] = True
        elif isinstance(column, CategoryColumn):
            given[indices[name] >= 0] = True
    return given


def _measured(cells: Cells) -> Mask:
    """Return (N,) whether any cell of a record is no NaN."""
    if cells.dtype.kind != "f":
        return np.ones(len(cells), dtype=np.bool_)
    flat = cells.reshape(len(cells), math.prod(cells.shape[1:]))  # -1 knows no size of no record
    nothing: Mask = np.all(np.isnan(flat), axis=1)
    return ~nothing


def _fill(column: NumberColumn) -> float:
    """Return what stands for a missing number, after scaling."""
    if column.fill is None:
        return 0.0
    return float(scale_values(np.array([column.fill]), column)[0])


def _images(table: Table, name: str, column: ImageColumn) -> Floats32:
    """Return (N, C, *sizes) in [0, 1]; sizes are (H, W) or (D, H, W)."""
    cells = table.columns[name]
    shape = (*column.sizes, column.channels)
    if cells.shape[1:] == shape[:-1] and column.channels == 1:
        cells = cells[..., None]  # (N, H, W) -> (N, H, W, 1)
    if cells.dtype.kind not in "biuf" or cells.shape != (table.length, *shape):
        raise table.fault(0, name, f"pictures of shape {shape}", f"an array {cells.shape[1:]}")
    images = np.empty((table.length, column.channels, *shape[:-1]), dtype=np.float32)

    def fault(row: int) -> DataError:
        return table.fault(row, name, f"values from {column.low:g} to {column.high:g}", "others")

    for rows in _chunks(table.length, math.prod(shape)):
        values = cells[rows].astype(np.float64)  # (n, *sizes, C)
        if column.missing == "constant":
            values[~_measured(cells[rows])] = column.low
        bad = ~((values >= column.low) & (values <= column.high))
        table.leave(rows.start + np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)), fault)
        values[bad] = column.low
        scaled = (values - column.low) / (column.high - column.low)
        images[rows] = np.moveaxis(scaled + 0.0, -1, 1)  # no -0.0; (n, *sizes, C) -> (n, C, ...)
    return images


def _masks(table: Table, name: str, column: MaskColumn, sizes: tuple[int, ...]) -> Labels:
    """Return (N, *sizes) places of the points' values in the study's list."""
    cells = table.columns[name]
    if cells.shape[1:] == (*sizes, 1):
        cells = cells[..., 0]  # (N, H, W, 1) -> (N, H, W)
    if cells.dtype.kind not in "biuf" or cells.shape != (table.length, *sizes):
        raise table.fault(0, name, f"masks of shape {sizes}", f"an array {cells.shape[1:]}")
    levels = column.levels or range(len(column.values))
    masks = np.zeros(cells.shape, dtype=np.uint8)
    known = np.zeros(cells.shape, dtype=np.bool_)
    for place, level in enumerate(levels):
        own = cells == level
        masks[own] = place
        known |= own
    whole = np.asarray(known.reshape(table.length, math.prod(sizes)).all(axis=1))
    table.refuse(~whole, name, f"points of {', '.join(map(str, levels))} alone", "others")
    return masks


def _series(
    table: Table, name: str, column: SeriesColumn, scalars: Floats32, shape: tuple[int, ...]
) -> Floats32:
    """Return (N, T, F): variables, their indicators, then scalar columns at every step."""
    steps, variables = column.steps, len(column.variables)
    out = np.empty((table.length, *shape), dtype=np.float32)
    for rows in _chunks(table.length, math.prod(shape)):
        values = series(table, name, column, rows)  # (n, T, V)
        for index, variable in enumerate(column.variables.values()):
            values[:, :, index] = scale_values(values[:, :, index], variable)
        missing = np.isnan(values)
        if column.missing in {"forward", "forward_indicator"}:
            values = _carry_forward(values, missing)
        out[rows, :, :variables] = np.nan_to_num(values, nan=0.0)  # 0 is the middle of the range
        if column.missing in {"indicator", "forward_indicator"}:
            out[rows, :, variables : 2 * variables] = missing
    first = shape[1] - scalars.shape[1]
    out[:, :, first:] = np.broadcast_to(
        scalars[:, None, :], (table.length, steps, scalars.shape[1])
    )  # (N, S) -> (N, T, S)
    return out


def _carry_forward(values: Floats, missing: npt.NDArray[np.bool_]) -> Floats:
    """Return (n, T, V) with every gap holding the last value before it; NaN where there is none."""
    steps = np.arange(values.shape[1])[None, :, None]
    last = np.maximum.accumulate(np.where(missing, 0, steps), axis=1)  # step last seen, or 0
    return np.take_along_axis(values, last, axis=1)


def _chunks(length: int, values_per_record: int) -> list[slice]:
    """Return slices of records with about ``CHUNK_VALUES`` values each."""
    step = max(1, CHUNK_VALUES // max(1, values_per_record))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
