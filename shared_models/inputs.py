"""The shape and the feature names of a network's input, as the data contract fixes them.

It turns no record into numbers: the readers of a site do, in the order that is named here.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

from privacy.errors import StudyError
from shared_models.contract import (
    AnyColumn,
    CategoryColumn,
    ImageColumn,
    LettersColumn,
    MoleculeColumn,
    NumberColumn,
    SeriesColumn,
    WordsColumn,
)
from shared_models.study import Study

C = TypeVar("C")

PADDING = 0  # the token id that stands for nothing


PartName = Literal["static", "series", "image"]


@dataclass(frozen=True)
class PartSpec:
    """One kind of input among several.

    Attributes:
        name: of the kind.
        shape: static (F,) | series (T, F) | image (C, H, W).
        names: of the F features; () for an image.
    """

    name: PartName
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputSpec:
    """What one record looks like to a network.

    Attributes:
        kind: features (F,) | series (T, F) | image (C, H, W), float32; tokens (L,), int64; parts
            (F,), float32: each part flat, then for each 1 where the record has it, else 0.
        shape: of one record, without the batch.
        names: of the F features; () for images, tokens, molecules and parts.
        vocabulary: number of token ids, padding included; 0 for numbers.
        parts: in their order, of kind parts.
    """

    kind: Literal["features", "series", "image", "tokens", "parts"]
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    vocabulary: int = 0
    parts: tuple[PartSpec, ...] = ()


def input_spec(study: Study) -> InputSpec:
    """Return the shape of one record's input.

    Raises:
        StudyError: the columns are not those that the task wants.
    """
    inputs = study.data.inputs
    if study.task in {"tabular", "survival"}:
        return _scalars(study)
    kinds = {type(column) for column in inputs.values()}
    if study.task == "anomaly" and not kinds & {SeriesColumn, ImageColumn}:
        return _scalars(study)
    if study.task == "fusion":
        return _parts(study)
    if study.task in {"series", "warning"} or (study.task == "anomaly" and SeriesColumn in kinds):
        series = _only(study, SeriesColumn)
        names = _series_names(series)
        names += scalar_names({n: c for n, c in inputs.items() if c is not series})
        return InputSpec("series", (series.steps, len(names)), names)
    if study.task in {"image", "anomaly"}:
        image = _only(study, ImageColumn)
        return InputSpec("image", (image.channels, image.height, image.width))
    if study.task == "molecule":
        return InputSpec("features", (_only(study, MoleculeColumn).buckets,))
    words = any(isinstance(column, WordsColumn) for column in inputs.values())
    tokens = _only(study, WordsColumn) if words else _only(study, LettersColumn)
    size = len(tokens.alphabet) if isinstance(tokens, LettersColumn) else tokens.buckets
    return InputSpec("tokens", (tokens.length,), vocabulary=size + 1)


def scalar_names(columns: dict[str, AnyColumn]) -> tuple[str, ...]:
    """Return the names of the features of number and category columns, in the study's order.

    A number is one feature, a category one a value (one-hot); missing = "indicator" adds one more.
    """
    names: list[str] = []
    for name, column in columns.items():
        if isinstance(column, NumberColumn):
            names.append(name)
        elif isinstance(column, CategoryColumn):
            names.extend(f"{name}={value}" for value in column.values)
        else:
            continue
        if column.missing == "indicator":
            names.append(f"{name} missing")
    return tuple(names)


def _series_names(series: SeriesColumn) -> tuple[str, ...]:
    names = tuple(series.variables)
    if series.missing in {"indicator", "forward_indicator"}:
        names += tuple(f"{name} missing" for name in series.variables)
    return names


def _parts(study: Study) -> InputSpec:
    """Return the parts: static values, a series, a picture; two of them or all."""
    inputs = study.data.inputs
    parts = []
    names = scalar_names(inputs)
    if names:
        parts.append(PartSpec("static", (len(names),), names))
    if any(isinstance(column, SeriesColumn) for column in inputs.values()):
        series = _only(study, SeriesColumn)
        names = _series_names(series)
        parts.append(PartSpec("series", (series.steps, len(names)), names))
    if any(isinstance(column, ImageColumn) for column in inputs.values()):
        image = _only(study, ImageColumn)
        parts.append(PartSpec("image", (image.channels, image.height, image.width)))
    known = (NumberColumn, CategoryColumn, SeriesColumn, ImageColumn)
    if len(parts) < 2 or not all(isinstance(column, known) for column in inputs.values()):
        raise _wants(study, "two kinds of input or three: number or category, series, image")
    size = sum(math.prod(part.shape) for part in parts) + len(parts)
    return InputSpec("parts", (size,), parts=tuple(parts))


def _scalars(study: Study) -> InputSpec:
    names = scalar_names(study.data.inputs)
    if len(names) == 0:
        raise _wants(study, "number or category columns")
    return InputSpec("features", (len(names),), names)


def _only(study: Study, kind: type[C]) -> C:
    found = [column for column in study.data.inputs.values() if isinstance(column, kind)]
    if len(found) != 1:
        raise _wants(study, f"exactly one input column ({kind.__name__})")
    return found[0]


def _wants(study: Study, wanted: str) -> StudyError:
    return StudyError(f"data.columns: task {study.task!r} expected {wanted}")
